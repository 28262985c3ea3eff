"""The state of the cluster, kept from events in the form that the planner needs."""
