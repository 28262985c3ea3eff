"""Memory that two processes of one host share: an anonymous file, which the kernel frees with its last process.

The caller creates it, seals its size, and passes its descriptor over the Unix socket; the listener checks the seals before
it maps the file, so that no process can shrink it while another one reads.

``trainer/engine/server_connection.py`` chooses between shared memory and TCP: shared memory whenever the connection is a Unix
socket. On a cluster parameter servers listen on TCP only, so two pods of one node do not share memory.
"""

from __future__ import annotations

import fcntl
import mmap
import os

__all__ = ["create", "open_shared"]

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create(size: int) -> tuple[int, mmap.mmap]:
    """Create shared memory of ``size`` bytes; return its descriptor, which the caller closes, and its mapping.

    Raises:
        OSError: There is not enough memory, or the system does not support memory files.
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
    """Map the shared memory that a peer has passed; close the descriptor.

    Raises:
        OSError: The size differs from the announced one, or is not sealed.
    """
    try:
        if os.fstat(descriptor).st_size != size:
            raise OSError("shared memory of another size than announced")
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise OSError("shared memory whose size is not sealed")
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
