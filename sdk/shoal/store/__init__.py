"""etcd: the one module that imports its client, and the keys that operator and master share."""

from shoal.store.client import MAX_OPERATIONS, Status, Store, StoreError, Unavailable
from shoal.store.keys import JobKeys

__all__ = ["MAX_OPERATIONS", "JobKeys", "Status", "Store", "StoreError", "Unavailable"]
