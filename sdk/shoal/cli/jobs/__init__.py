"""The commands about submitted jobs, on this machine or on a cluster, by way of the SDK."""
