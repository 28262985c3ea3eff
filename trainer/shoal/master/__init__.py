"""The one master of a job: task queue, membership, checkpoints; its state in etcd."""
