"""Exponential back-off, the same for every loop that tries again."""

from shoal.retry.backoff import BackOff, KeyedBackOff

__all__ = ["BackOff", "KeyedBackOff"]
