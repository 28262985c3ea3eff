"""Everything that Shoal keeps in etcd, and the only package that imports an etcd client.

No client for etcd survives its restart by itself, and none notices an etcd that came back older than it was. This one
does both; its callers see answers that are late, never a broken connection. Who forgot what is told by callback.
"""

from shoal.store.accounts import Accounts
from shoal.store.client import Store
from shoal.store.connection import Tls
from shoal.store.credentials import Credentials
from shoal.store.errors import StoreClosedError, StoreError, StoreRefusedError, StoreUnreachableError
from shoal.store.exchange import DesiredState, ReportedState
from shoal.store.keys import ALL_JOBS, EVERYTHING, OPERATOR_KEY, JobKeys
from shoal.store.operations import (
    MAXIMUM_BYTES,
    MAXIMUM_OPERATIONS,
    Compare,
    Delete,
    EtcdStatus,
    Event,
    KeyValue,
    Listing,
    Put,
    Transaction,
    exists,
    in_batches,
    missing,
    revision_is,
    value_is,
)
from shoal.store.watch import Watch

__all__ = [
    "ALL_JOBS",
    "EVERYTHING",
    "MAXIMUM_BYTES",
    "MAXIMUM_OPERATIONS",
    "OPERATOR_KEY",
    "Accounts",
    "Compare",
    "Credentials",
    "Delete",
    "DesiredState",
    "EtcdStatus",
    "Event",
    "JobKeys",
    "KeyValue",
    "Listing",
    "Put",
    "ReportedState",
    "Store",
    "StoreClosedError",
    "StoreError",
    "StoreRefusedError",
    "StoreUnreachableError",
    "Tls",
    "Transaction",
    "Watch",
    "exists",
    "in_batches",
    "missing",
    "revision_is",
    "value_is",
]
