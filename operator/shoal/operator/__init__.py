"""Reconciles TrainingJobs: brings the cluster to the state that each job's spec demands, level-triggered."""
