"""The one container image of the node tier: busybox and nothing else, as an archive that containerd imports.

Python and everything that it needs are mounted read-only from this machine at the same paths: see `mounts`. So nothing is
downloaded, and a container runs what is installed here.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

__all__ = ["IMAGE", "mounts", "python_container", "write_image"]

IMAGE = "shoal.test/base:1"
CHECKOUT = Path(__file__).resolve().parent.parent.parent
APPLETS = ("sh", "sleep", "cat", "wget", "nslookup", "true", "false", "ls", "kill", "id")


def write_image(file: Path) -> None:
    """Write a docker archive whose default command sleeps, as a sandbox container has to."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise RuntimeError("there is no busybox")
    if b"/ld-linux" in Path(busybox).read_bytes():
        raise RuntimeError(f"{busybox} needs libraries that the image does not have; apt-get install busybox-static")
    layer = _layer(Path(busybox))
    digest = hashlib.sha256(layer).hexdigest()
    config = {
        "architecture": {"aarch64": "arm64"}.get(platform.machine(), "amd64"),
        "os": "linux",
        "config": {"Env": ["PATH=/busybox:/usr/local/bin:/usr/bin:/bin"], "Cmd": ["/busybox/sleep", "2147483647"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    with tarfile.open(file, "w") as archive:
        for name, content in (
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", layer),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            _add(archive, name, content)


def _layer(busybox: Path) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as layer:
        for name in ("busybox", "etc", "tmp", "proc", "sys", "dev"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            layer.addfile(folder)
        _add(layer, "busybox/busybox", busybox.read_bytes(), mode=0o755)
        for applet in APPLETS:
            link = tarfile.TarInfo(f"busybox/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            layer.addfile(link)
    return content.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def mounts(*more: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the volumes of a pod, and the mounts of its container, with which this Python runs there.

    Args:
        more: Further folders; this checkout is always mounted, as it is often installed in editable form.
    """
    system = [Path(name) for name in ("/usr", "/lib", "/lib64", "/bin")]
    wanted = [*system, Path(sys.base_prefix), Path(sys.prefix), CHECKOUT, *more]
    folders = sorted({folder for folder in wanted if folder.is_dir()})
    folders = [folder for folder in folders if not any(other in folder.parents for other in folders)]
    volumes = [
        {"name": f"host-{number}", "hostPath": {"path": str(folder), "type": "Directory"}}
        for number, folder in enumerate(folders)
    ]
    inside = [
        {"name": f"host-{number}", "mountPath": str(folder), "readOnly": True} for number, folder in enumerate(folders)
    ]
    return volumes, inside


def python_container(
    *arguments: str, name: str = "main", folders: tuple[Path, ...] = (), **more: Any
) -> dict[str, Any]:
    """Return the spec of a pod with one container that runs this Python.

    Args:
        arguments: What follows ``python``.
        folders: Further folders of this machine to mount.
        more: Further fields of the container.
    """
    volumes, inside = mounts(*folders)
    container = {
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": [sys.executable, *arguments],
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        "volumeMounts": inside,
        **more,
    }
    return {"containers": [container], "volumes": volumes, "terminationGracePeriodSeconds": 1}
