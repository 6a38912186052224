"""MATH without MATH500; facts in ../catalogue.py."""
