"""Training scripts of the benchmarks, in a separate folder, so that they cannot import other benchmark modules."""
