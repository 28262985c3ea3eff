"""The simulated world: cluster, pods, scheduler, jobs and events."""
