"""The state of one job in its master: slot map, task queue, records, progress."""
