"""Copies a file from the claim of a job's output, through a short-lived pod that reads the claim."""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
import secrets
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Final

from shoal.kube import CommandError, Kube, KubeError, KubeForbiddenError, command_output
from shoal.sdk.cluster.conversion import waiting_reason
from shoal.sdk.cluster.translation import translation
from shoal.sdk.errors import FetchError

__all__ = ["fetch_file"]

_FOLDER: Final = "/shoal/output"
_START_SECONDS: Final = 300.0
_LIFETIME_SECONDS: Final = 3600
_POLL_SECONDS: Final = 0.5
_HEADER: Final = 8
_DIGEST: Final = 32
_USER: Final = 65532
_WAIT: Final = f"import time; time.sleep({_LIFETIME_SECONDS})"
_SEND: Final = """
import hashlib, os, sys
path, out, digest = sys.argv[1], sys.stdout.buffer, hashlib.sha256()
if not os.path.isfile(path):
    folder = os.path.dirname(path)
    found = sorted(os.listdir(folder))[:20] if os.path.isdir(folder) else []
    sys.exit(f"there is no such file; the folder has: {', '.join(found) or 'nothing'}")
with open(path, "rb") as file:
    left = os.fstat(file.fileno()).st_size
    out.write(left.to_bytes(8, "big"))
    while left and (part := file.read(min(left, 1 << 20))):
        digest.update(part)
        out.write(part)
        left -= len(part)
out.write(digest.digest())
out.flush()
"""
"""Writes the length of a file, its content and its SHA-256 to the standard output."""


async def fetch_file(
    kube: Kube, job: Mapping[str, Any], name: str, target: Path, on_progress: Callable[[int, int], None]
) -> None:
    """Copy a file of a job's output to a path on this machine, and verify its checksum.

    Args:
        kube: The client.
        job: The job.
        name: Path of the file on the claim.
        target: Path of the copy, which does not exist yet.
        on_progress: Called with the number of bytes that are copied, and of all.

    Raises:
        FetchError: The job has no claim, the file does not exist, the pod does not start, or the copy is damaged.
        ShoalError: The caller may not create pods, or the API server does not answer.
    """
    metadata, namespace = job["metadata"], job["metadata"]["namespace"]
    claim = (job["spec"].get("output") or {}).get("volumeClaimName")
    if not claim:
        raise FetchError(
            f"job {metadata['name']} has no spec.output.volumeClaimName: its model is in the container that wrote it, and is "
            "lost with its pod"
        )
    path = posixpath.normpath(posixpath.join(_FOLDER, name))
    if not path.startswith(f"{_FOLDER}/"):
        raise FetchError(f"{name} is outside of the claim {claim}")
    pod = _pod(job, claim)
    by_hand = (
        f"; to fetch it by hand, mount the claim {claim} in a pod of your own and run: "
        f"kubectl cp {namespace}/POD:{path} {posixpath.basename(path)}"
    )
    try:
        created = await kube.create(pod)
        try:
            await _until_ready(kube, created)
            await _copy(kube, created, path, target, on_progress)
        finally:
            # Also when the copy is cancelled; the job owns the pod, so it is deleted with it in any case.
            with suppress(KubeError):
                await asyncio.shield(
                    kube.delete(
                        "Pod",
                        created["metadata"]["name"],
                        namespace=namespace,
                        uid=created["metadata"]["uid"],
                        grace_seconds=0,
                    )
                )
    except CommandError as error:
        raise FetchError(f"{name} cannot be read from the claim {claim}: {error}") from None
    except KubeForbiddenError as error:
        raise FetchError(f"{translation(error, f'a pod that reads {claim}', namespace=namespace)}{by_hand}") from error
    except KubeError as error:
        raise translation(error, f"{name} of job {namespace}/{metadata['name']}", namespace=namespace) from error


def _pod(job: Mapping[str, Any], claim: str) -> dict[str, Any]:
    """Return the pod: the image, the user and the nodes of the job's trainers, without a token, read-only."""
    metadata, spec = job["metadata"], job["spec"]
    template = ((spec.get("trainer") or {}).get("template") or {}).get("spec") or {}
    own: Mapping[str, Any] = next(
        (each for each in template.get("containers") or [] if each.get("name") == "trainer"), {}
    )
    kept = ("nodeSelector", "tolerations", "imagePullSecrets", "runtimeClassName")
    default = {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "fsGroup": _USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    mount = {"name": "output", "mountPath": _FOLDER, "readOnly": True}
    # A script's environment may be needed for its interpreter, such as mounts of it: they are kept, the claim is read-only.
    mounts = [each for each in own.get("volumeMounts") or [] if each.get("mountPath") != _FOLDER]
    named = {each["name"] for each in mounts}
    volumes = [each for each in template.get("volumes") or [] if each.get("name") in named]
    container = {
        "name": "fetch",
        "image": own.get("image") or spec.get("image"),
        "command": ["python", "-c", _WAIT],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        "securityContext": own.get("securityContext")
        or {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [*mounts, mount],
    }
    if own.get("env"):
        container["env"] = own["env"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{metadata['name']}-fetch-{secrets.token_hex(3)}",
            "namespace": metadata["namespace"],
            "labels": {"app.kubernetes.io/part-of": "shoal", "app.kubernetes.io/component": "fetch"},
            "ownerReferences": [
                {
                    "apiVersion": job["apiVersion"],
                    "kind": job["kind"],
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                }
            ],
        },
        "spec": {
            **{key: template[key] for key in kept if key in template},
            "restartPolicy": "Never",
            "activeDeadlineSeconds": _LIFETIME_SECONDS,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {**default, **(template.get("securityContext") or {})},
            "containers": [container],
            "volumes": [*volumes, {"name": "output", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}],
        },
    }


async def _until_ready(kube: Kube, pod: Mapping[str, Any]) -> None:
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    reason = ""
    try:
        async with asyncio.timeout(_START_SECONDS):
            while True:
                found = await kube.get("Pod", name, namespace=namespace)
                if found is None:
                    raise FetchError(f"the pod {name}, which reads the claim, was deleted")
                status = found.get("status") or {}
                if status.get("phase") == "Running":
                    return
                if status.get("phase") in {"Failed", "Succeeded"}:
                    raise FetchError(f"the pod {name}, which reads the claim, ended: {status.get('message') or status}")
                reason = ": ".join(filter(None, waiting_reason(found)))
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        text = f"the pod {name}, which reads the claim, has not started after {_START_SECONDS:.0f} s"
        raise FetchError(f"{text}{': ' + reason if reason else ''}") from None


async def _copy(
    kube: Kube, pod: Mapping[str, Any], path: str, target: Path, on_progress: Callable[[int, int], None]
) -> None:
    """Write the file; its last bytes are the checksum."""
    metadata = pod["metadata"]
    command = ["python", "-c", _SEND, path]
    parts = command_output(kube, metadata["name"], command, namespace=metadata["namespace"], container="fetch")
    digest, head, done, whole = hashlib.sha256(), b"", 0, 0
    tail = b""
    with target.open("xb") as file:
        async with aclosing(parts):
            async for part in parts:
                content = part
                if len(head) < _HEADER:
                    head, content = (head + part)[:_HEADER], (head + part)[_HEADER:]
                    whole = int.from_bytes(head, "big")
                body = content[: whole - done]
                tail += content[len(body) :]
                digest.update(body)
                file.write(body)
                done += len(body)
                on_progress(done, whole)
    if len(head) < _HEADER or done < whole or tail != digest.digest():
        raise FetchError(
            f"the copy of {path} is damaged: {done:,} of {whole:,} bytes, checksum {tail.hex() or 'missing'}"
        )
