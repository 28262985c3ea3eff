"""The state of one job in its master."""
