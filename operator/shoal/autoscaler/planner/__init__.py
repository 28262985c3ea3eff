"""Plans who gets how many trainers, and where. Pure."""
