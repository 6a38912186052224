"""Undergraduate science and mathematics; facts in ../catalogue.py."""
