"""The script's dataset, loader and order of samples."""
