"""Texts for the embedded task's base model: right solutions beside sloppy ones."""
