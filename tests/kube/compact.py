"""Compacts the history of a control plane's etcd away, as Kubernetes itself does every five minutes."""

from __future__ import annotations

import grpc

from shoal.store._stubs import rpc


def compact(cluster) -> int:
    """All revisions but the last are gone; which that is."""
    address = cluster._layout.at("etcd").removeprefix("http://")
    with grpc.insecure_channel(address) as channel:
        keys = rpc.KVStub(channel)
        revision = keys.Range(rpc.RangeRequest(key=b"/")).header.revision
        keys.Compact(rpc.CompactionRequest(revision=revision, physical=True))
    return revision
