"""Where a cluster's parts listen: on the loopback, or in a network namespace of its own.

In a namespace, the addresses of pods and Services do not conflict with any others. One veth pair leads into it, so that a
test outside reaches the API server, and pods reach servers of the test (an etcd, for example) at `outside`:

    host  198.18.N.1 ────── 198.18.N.2  namespace  10.244.0.1 (bridge) ────── pods 10.244.0.0/24
"""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["BRIDGE", "LOOPBACK", "NODE_ADDRESS", "PODS", "Network", "make_namespace", "remove_namespace"]

NODE_ADDRESS = "10.244.0.1"
BRIDGE = "shoal0"
PODS = "10.244.0.0/24"


@dataclass(frozen=True)
class Network:
    """The address that parts listen on and tests connect to, and the namespace that it is in."""

    address: str
    outside: str
    namespace: str | None = None

    @property
    def enter(self) -> list[str]:
        """The prefix of a command that is to run in the namespace.

        It is not ``ip netns exec``, which mounts another /sys that has no control groups.
        """
        return ["nsenter", f"--net=/run/netns/{self.namespace}", "--"] if self.namespace else []

    @property
    def run(self) -> Path:
        """The folder of sockets, whose paths may have at most 107 characters. Control groups have its name, too."""
        assert self.namespace, "only a network namespace has files of its own"
        return Path("/run") / self.namespace

    @property
    def state(self) -> Path:
        """The folder that containers and volumes write to, with mounts below it, so not in a folder that pytest cleans up."""
        return Path("/var/tmp") / self.run.name

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, file: Path) -> Network:
        return cls(**json.loads(file.read_text()))


LOOPBACK = Network("127.0.0.1", "127.0.0.1")


def make_namespace() -> Network:
    """Create a namespace with the node's bridge, and the veth pair into it."""
    number = _free_number()
    network = Network(f"198.18.{number}.2", f"198.18.{number}.1", f"shoal-{secrets.token_hex(4)}")
    name = network.namespace
    assert name
    outer, inner = _outer(network.outside), f"sh{number}i"
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        _run("ip", "address", "add", f"{network.outside}/30", "dev", outer)
        _run("ip", "link", "set", outer, "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{network.address}/30", "dev", inner),
            ("link", "set", inner, "up"),
            ("link", "add", BRIDGE, "type", "bridge"),
            ("address", "add", f"{NODE_ADDRESS}/24", "dev", BRIDGE),
            ("link", "set", BRIDGE, "up"),
            # Packets to Services have to leave the process, so that kube-proxy's rules are applied to them.
            ("route", "add", "default", "dev", BRIDGE),
        ):
            _run("ip", "-n", name, *words)
        _run(*network.enter, "tee", "/proc/sys/net/ipv4/ip_forward", given="1")
        # The host has no route back to pods.
        masquerade = ["-s", PODS, "-d", f"{network.outside}/32", "-j", "MASQUERADE"]
        _run(*network.enter, "iptables", "-t", "nat", "-A", "POSTROUTING", *masquerade)
    except BaseException:
        remove_namespace(network)
        raise
    return network


def remove_namespace(network: Network) -> None:
    """Delete the namespace and the veth pair, if they exist."""
    if network.namespace:
        with contextlib.suppress(RuntimeError):
            _run("ip", "link", "delete", _outer(network.outside))
        with contextlib.suppress(RuntimeError):
            _run("ip", "netns", "delete", network.namespace)


def _outer(address: str) -> str:
    """Return the name of the veth pair's end on the host."""
    return f"sh{address.split('.')[2]}o"


def _free_number() -> int:
    """Return a random number that no interface of this machine uses, as other clusters may choose at the same time."""
    taken = {address.split(".")[2] for address in _addresses() if address.startswith("198.18.")}
    return secrets.choice([number for number in range(1, 255) if str(number) not in taken])


def _addresses() -> list[str]:
    interfaces = json.loads(_run("ip", "-json", "address"))
    return [each["local"] for interface in interfaces for each in interface["addr_info"]]


def _run(*command: str, given: str | None = None) -> str:
    done = subprocess.run(command, input=given, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
