"""The state of a parameter server: tensors, grants and watermarks of its slots. No sockets, threads or clock."""
