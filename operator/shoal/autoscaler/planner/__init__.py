"""The planner: computes the number of trainers of each job, and their nodes. Pure."""
