"""AIME 2025; facts in ../catalogue.py."""
