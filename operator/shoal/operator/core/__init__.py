"""Decides the next actions for a job. Pure."""
