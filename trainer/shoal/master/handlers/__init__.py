"""The master's handlers: trainers, servers, evaluations, model files and completion."""
