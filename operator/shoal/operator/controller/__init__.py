"""Reconciles one job at a time: the only package that mixes decisions and I/O."""
