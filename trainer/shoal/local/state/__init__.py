"""What `shoal run` keeps of a job in its state folder, and how others read it."""
