"""Figures against a peer or the machine's limit, each in one run: ``python -m benchmarks.NAME``."""
