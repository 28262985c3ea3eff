"""What the operator keeps and reads in etcd."""
