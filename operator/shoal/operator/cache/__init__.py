"""The operator's cache: what the watches bring, by job."""
