"""Reconciles TrainingJobs: what is on the cluster follows what each job wants, level by level."""
