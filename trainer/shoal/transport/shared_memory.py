"""Memory that two processes of one host share: an anonymous file that no kill can leave behind.

The caller makes it, seals its size, and passes it over the Unix socket; the listener maps it after checking the seals,
so that nobody can make it shrink under a reader.
"""

from __future__ import annotations

import fcntl
import mmap
import os

__all__ = ["create", "open_shared"]

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create(size: int) -> tuple[int, mmap.mmap]:
    """Make shared memory of ``size`` bytes: its descriptor (the caller closes it) and its mapping.

    Raises:
        OSError: There is not enough memory, or the system has no memory files.
    """
    descriptor = os.memfd_create("shoal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        return descriptor, mmap.mmap(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise


def open_shared(descriptor: int, size: int) -> mmap.mmap:
    """Map what a peer passed; closes the descriptor.

    Raises:
        OSError: The size is not what was announced, or it could change.
    """
    try:
        if os.fstat(descriptor).st_size != size:
            raise OSError("shared memory of another size than announced")
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise OSError("shared memory whose size is not sealed")
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
