"""Addresses of the processes of a job, as text: ``unix:///path``, ``tcp://host:port``, ``file:///path``.

The third form names a file that holds an address of the first two. The file is read at each connect, so that a process
which restarts at another address is found; on a cluster the name of a Service has the same effect.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
from pathlib import Path

__all__ = ["AddressError", "connect", "listen", "publish", "resolve", "watch_over"]

BACKLOG = 1024
VANISHED_SECONDS = 20
"""The time after which the kernel ends a TCP connection whose remote machine does not respond."""


class AddressError(ValueError):
    """An invalid address, or one at which a process cannot listen; the message has the address and the fix."""


def resolve(address: str) -> str:
    """Return the ``unix://`` or ``tcp://`` address that an address stands for; a ``file://`` address is read.

    Raises:
        AddressError: The address has none of the three forms.
        OSError: The file cannot be read, or does not exist yet.
    """
    if address.startswith("file://"):
        return resolve(Path(address.removeprefix("file://")).read_text(encoding="utf-8").strip())
    if address.startswith(("unix://", "tcp://")):
        return address
    raise AddressError(f"address {address!r}: must begin with unix://, tcp:// or file://")


def publish(path: Path, address: str) -> None:
    """Write an address file atomically: a reader sees the old text or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(address + "\n")
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not host or not port.isdigit():
        raise AddressError(f"address {address!r}: tcp:// needs HOST:PORT")
    return host.strip("[]"), int(port)


def connect(address: str, *, timeout: float) -> socket.socket:
    """Open a blocking socket to an address; ``timeout`` (seconds) applies to the connect and stays set.

    Raises:
        AddressError: The address is invalid.
        OSError: No process listens there.
    """
    address = resolve(address)
    if address.startswith("unix://"):
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.settimeout(timeout)
        try:
            stream.connect(address.removeprefix("unix://"))
        except BaseException:
            stream.close()
            raise
        return stream
    stream = socket.create_connection(_host_and_port(address), timeout=timeout)
    watch_over(stream)
    return stream


def watch_over(stream: socket.socket) -> None:
    """Set TCP keep-alive, the user timeout and TCP_NODELAY, so that the kernel ends a connection to a machine that is lost.

    Nothing is set on a Unix socket, as the kernel reports the end of its peer at once.
    """
    if stream.family == socket.AF_UNIX:
        return
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, VANISHED_SECONDS // 2),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, VANISHED_SECONDS // 4),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_SECONDS * 1000),
    ):
        stream.setsockopt(level, option, value)


def listen(address: str) -> tuple[socket.socket, str]:
    """Listen at an address; return the socket and the address to publish (with the port that replaces a port 0).

    A Unix socket that a killed process has left behind is replaced.

    Raises:
        AddressError: The address is invalid, a Unix path is too long, the port is in use, or the folder is missing.
    """
    try:
        return _listen(address)
    except OSError as error:
        fix = "; use another port, or 0 for any that is free" if error.errno == errno.EADDRINUSE else ""
        raise AddressError(f"cannot listen at {address}: {os.strerror(error.errno or 0).lower()}{fix}") from None


def _listen(address: str) -> tuple[socket.socket, str]:
    if address.startswith("unix://"):
        path = Path(address.removeprefix("unix://"))
        if len(os.fsencode(path)) > 107:
            raise AddressError(f"address {address!r}: a Unix socket's path has at most 107 bytes; use a shorter folder")
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.bind(str(path))
            path.chmod(0o600)
            stream.listen(BACKLOG)
        except BaseException:
            stream.close()
            raise
        return stream, address
    host, port = _host_and_port(resolve(address))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    stream = socket.create_server((host, port), family=family, backlog=BACKLOG)
    return stream, f"tcp://{host}:{stream.getsockname()[1]}"
