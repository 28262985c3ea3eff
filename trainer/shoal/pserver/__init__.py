"""Parameter servers: slots, optimizers, snapshots."""
