"""What a script may do and what is refused: its model described, its changes detected."""
