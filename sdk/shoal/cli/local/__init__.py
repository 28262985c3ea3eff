"""The commands about jobs on this machine."""
