"""Grade-school word problems; facts in ../catalogue.py."""
