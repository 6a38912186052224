"""500 problems of MATH's test set; facts in ../catalogue.py."""
