"""Client of etcd and schema of all keys; the only package that imports an etcd client library.

Existing client libraries do not survive a restart of etcd and do not detect an etcd that was restored from an older
copy. `Store` handles both: its callers see late answers, never a broken connection. Lost writes are reported by a
callback (``on_history_lost``).
"""

from shoal.store.accounts import Accounts
from shoal.store.client import Store
from shoal.store.connection import Tls
from shoal.store.credentials import Credentials
from shoal.store.errors import StoreClosedError, StoreError, StoreRefusedError, StoreUnreachableError
from shoal.store.exchange import DesiredState, MasterRecord, ReportedScore, ReportedState
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
    "MasterRecord",
    "Put",
    "ReportedScore",
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
