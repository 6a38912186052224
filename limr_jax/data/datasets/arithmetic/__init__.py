"""The embedded task: integer expressions of five levels."""
