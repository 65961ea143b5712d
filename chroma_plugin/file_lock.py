"""A lock between processes: `flock` where there is one, the first byte of the file on Windows."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

fcntl: Any
try:
    fcntl = import_module("fcntl")
except ImportError:  # Windows
    fcntl = None


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Holds the lock of a file, which is made if it is missing; waits for whoever has it.

    A process that dies lets go of it. The same thread must not ask for it twice.

    Raises:
        OSError: the file cannot be opened, or its file system knows no locks.
    """
    with path.open("a+b") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield  # closing the file lets go
            return
        msvcrt: Any = import_module("msvcrt")
        while True:
            try:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                break
            except OSError as error:
                if error.errno != errno.EDEADLOCK:  # which says: ten seconds are over
                    raise
        try:
            yield
        finally:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
