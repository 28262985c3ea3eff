"""Describes a script's model; detects and refuses what a script must not do. ``optim/optimizer.py`` intercepts ``step``."""
