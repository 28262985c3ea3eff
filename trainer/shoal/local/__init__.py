"""Runs a TrainingJob as processes on this machine."""
