"""Decides what a job needs. Pure."""
