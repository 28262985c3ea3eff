"""The operator's cache of the cluster and of etcd, by job, and the informers that fill it."""
