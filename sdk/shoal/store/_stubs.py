"""The only place where gRPC and the etcd client are imported.

gRPC's C core writes warnings to stderr (lost connections, forks while threads run). They are of no use to the user,
because a job tolerates both. The core reads its environment variables once, during the import; they are set for the
import and removed again, so that a training script started by this process does not inherit them.
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


# The client's high-level API is not used: it hides the response headers (cluster id, revision) that this package needs.
grpc, rpc = _import_quietly()

# Broken streams are handled and reported once by this package; without a handler Python prints gRPC's log records too.
logging.getLogger("grpc").addHandler(logging.NullHandler())
