"""Tensors for trainers and parameter servers: views over memory, rows of tables, optimizers, constraints."""
