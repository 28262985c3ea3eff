"""What a parameter server holds: tensors, grants and watermarks of its slots. No sockets, threads or clock."""
