"""Snapshots of slots on disk."""
