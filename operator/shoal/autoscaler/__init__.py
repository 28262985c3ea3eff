"""Plans how many trainers each job gets, and on which nodes."""
