"""Runs tasks against the master and the parameter servers."""
