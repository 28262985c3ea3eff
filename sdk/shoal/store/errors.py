"""What can go wrong with etcd, for the one who has to react to it."""

from __future__ import annotations

__all__ = ["StoreClosedError", "StoreError", "StoreRefusedError", "StoreUnreachableError"]


class StoreError(Exception):
    """Something is wrong with etcd or with what was asked of it."""


class StoreUnreachableError(StoreError):
    """Etcd did not answer in the time given. A write may or may not have been applied."""


class StoreRefusedError(StoreError):
    """Etcd answered and will not do this, however often it is asked."""


class StoreClosedError(StoreError):
    """The store was closed, before the call or while it waited. A write may or may not have been applied."""
