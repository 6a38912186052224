"""OlympiadBench, mathematics in English with answers; facts in ../catalogue.py."""
