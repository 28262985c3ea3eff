"""Reconciles one job at a time: the only place that mixes decisions and I/O."""
