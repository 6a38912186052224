"""AMC 12 of 2023; facts in ../catalogue.py."""
