"""The master's handlers: one for each kind of message."""
