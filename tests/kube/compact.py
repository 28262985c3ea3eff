"""Compaction of a control plane's etcd, as Kubernetes itself does it every five minutes."""

from __future__ import annotations

import grpc

from shoal.store._stubs import rpc


def compact(cluster) -> int:
    """Compact all revisions but the last, and return the last one."""
    address = cluster._layout.at("etcd").removeprefix("http://")
    with grpc.insecure_channel(address) as channel:
        keys = rpc.KVStub(channel)
        revision = keys.Range(rpc.RangeRequest(key=b"/")).header.revision
        keys.Compact(rpc.CompactionRequest(revision=revision, physical=True))
    return revision
