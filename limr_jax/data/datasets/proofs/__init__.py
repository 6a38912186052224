"""ProofNet, miniF2F and IMO-ProofBench; facts in ../catalogue.py."""
