"""Describes a script's model, and detects and refuses what a script must not do."""
