"""The engine of a trainer: executes tasks with the master and the parameter servers."""
