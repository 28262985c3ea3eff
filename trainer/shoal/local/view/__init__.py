"""What `shoal run` and `shoal status` print."""
