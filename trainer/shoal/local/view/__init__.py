"""Output of `shoal run` and `shoal status`."""
