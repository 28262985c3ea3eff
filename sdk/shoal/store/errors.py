"""Errors of the store, by what the caller can do."""

from __future__ import annotations

__all__ = ["StoreClosedError", "StoreError", "StoreRefusedError", "StoreUnreachableError"]


class StoreError(Exception):
    """Base class: etcd failed, or the request was wrong."""


class StoreUnreachableError(StoreError):
    """Etcd did not answer before the timeout. A write may or may not have been applied."""


class StoreRefusedError(StoreError):
    """Etcd rejected the request; a retry is useless."""


class StoreClosedError(StoreError):
    """The store was closed before or during the call. A write may or may not have been applied."""
