"""AIME 2024; facts in ../catalogue.py."""
