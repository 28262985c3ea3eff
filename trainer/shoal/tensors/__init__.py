"""Tensors as trainers and parameter servers both need them: views over memory, rows of tables, optimizers."""
