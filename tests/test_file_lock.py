"""A lock between processes, as Linux and macOS have it and as Windows does."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chroma_plugin import file_lock as module
from chroma_plugin.file_lock import file_lock

HOLD = """
import sys
from pathlib import Path
from chroma_plugin.file_lock import file_lock
with file_lock(Path(sys.argv[1])):
    print("mine", flush=True)
"""


def test_another_process_waits_for_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path):
        other = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
        )
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.5)
    said, _ = other.communicate(timeout=60)
    assert said == "mine\n"


def test_it_is_let_go_when_something_fails(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError), file_lock(tmp_path / "lock"):
            raise ValueError
    with file_lock(tmp_path / "lock"):
        pass


def test_windows_locks_a_byte_and_waits_as_long_as_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    busy = [OSError(errno.EDEADLOCK, "ten seconds are over")] * 2

    def locking(handle: int, kind: str, count: int) -> None:
        calls.append((kind, count))
        if kind == "lock" and busy:
            raise busy.pop()

    windows = SimpleNamespace(LK_LOCK="lock", LK_UNLCK="unlock", locking=locking)
    monkeypatch.setattr(module, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    with pytest.raises(ValueError), file_lock(tmp_path / "lock"):
        assert calls == [("lock", 1)] * 3
        raise ValueError
    assert calls[3:] == [("unlock", 1)]
    busy.append(OSError(errno.EINVAL, "no locks here"))
    with pytest.raises(OSError, match="no locks here"), file_lock(tmp_path / "lock"):
        pass
