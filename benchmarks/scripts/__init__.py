"""Training scripts that benchmarks run; in a folder of their own, which is all that they can import from."""
