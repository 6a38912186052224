"""MATH, levels 3 to 5, as LIMR selected it; facts in ../catalogue.py."""
