"""NuminaMath 1.5, each row verifiable or not; facts in ../catalogue.py."""
