"""The script's optimizers, their options and schedules."""
