"""The state of the cluster as the planner needs it, kept from events."""
