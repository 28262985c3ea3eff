"""Addresses of the processes of a job, as text: ``unix:///path``, ``tcp://host:port``, ``file:///path``.

The third form names a file that holds one of the first two. It is read anew at each connect, so a process that comes
back elsewhere is found without anybody being told; on a cluster the name of a Service does the same.
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
"""After which a TCP connection ends whose other machine answers nothing."""


class AddressError(ValueError):
    """An address that cannot be read; the message says which and what it must look like."""


def resolve(address: str) -> str:
    """Follow ``file://`` once.

    Raises:
        AddressError: The address has none of the three forms.
        OSError: The file is not there (yet).
    """
    if address.startswith("file://"):
        return resolve(Path(address.removeprefix("file://")).read_text(encoding="utf-8").strip())
    if address.startswith(("unix://", "tcp://")):
        return address
    raise AddressError(f"address {address!r}: must begin with unix://, tcp:// or file://")


def publish(path: Path, address: str) -> None:
    """Write an address file so that a reader sees the old text or the new one, never a part."""
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
    """Open a blocking socket to an address; ``timeout`` (seconds) is for the connect and stays set.

    Raises:
        AddressError: The address cannot be read.
        OSError: Nobody listens there.
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
    """Let the kernel end a TCP connection whose other machine does not answer, and send small messages at once.

    Nothing is set on a Unix socket: its peer's end is known at once.
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
    """Listen; the second value is the address to tell others (a port 0 filled in).

    A Unix socket left behind by a process that was killed is replaced.

    Raises:
        AddressError: The address cannot be read, a Unix path is too long, the port is taken, the folder is missing.
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
