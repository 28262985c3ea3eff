"""The operator's part of etcd: set-up, root key and users, bounded reads of records, garbage collection."""
