"""Builds the objects of a job. Pure."""
