"""The only place where gRPC and the etcd client are imported.

gRPC's C core writes warnings to stderr (lost connections, forks beside running threads) that mean nothing to a user
whose job bears both. It reads its settings once, while it is imported, so they are set around the import and taken
back: a training script started by this process must not inherit them.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any, Final

_SETTINGS: Final = {"GRPC_VERBOSITY": "NONE", "GRPC_ENABLE_FORK_SUPPORT": "0", "GLOG_minloglevel": "3"}


def _import_quietly() -> tuple[Any, Any]:
    added = [name for name in _SETTINGS if name not in os.environ]
    os.environ.update({name: _SETTINGS[name] for name in added})
    try:
        return importlib.import_module("grpc"), importlib.import_module("etcd3.etcdrpc")
    finally:
        for name in added:
            del os.environ[name]


# The client's high-level API is passed by: it hides the headers (cluster id, revision) that this package lives by.
grpc, rpc = _import_quietly()

# What gRPC logs of broken streams is handled here and reported once, in our words; without a handler Python prints it.
logging.getLogger("grpc").addHandler(logging.NullHandler())
