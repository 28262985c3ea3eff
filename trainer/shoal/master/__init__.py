"""The master of a job: task queue, membership, checkpoints; its records are in etcd."""
