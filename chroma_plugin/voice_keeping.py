"""A voice's tie to the folder it is kept in: codes come along with it, and its end is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]


class KeptVoice:
    """The `VoiceKeeper` of a stored voice: what lies on the disk was read before, what is new is
    written later, by another thread.

    Args:
        codes: `[K, T]` by the codec that made them.
        write: has codes written; returns at once.
    """

    def __init__(self, codes: Mapping[str, Codes], write: Callable[[str, Codes], None]) -> None:
        self._codes, self._write = dict(codes), write
        self._gone = False
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    @property
    def gone(self) -> bool:
        """The voice was deleted."""
        return self._gone

    def codes(self, codec: str) -> Codes | None:
        """The codes `[K, T]` that this codec made of the clip, or None."""
        return self._codes.get(codec)

    def keep_codes(self, codec: str, codes: Codes) -> None:
        """Keeps them, unless the voice is gone."""
        with self._lock:
            if self._gone:
                return
            self._codes[codec] = codes
        self._write(codec, codes)

    def when_gone(self, tell: Callable[[], None]) -> None:
        """Calls `tell` when the voice is deleted; at once if it was."""
        with self._lock:
            if not self._gone:
                self._listeners.append(tell)
                return
        tell()

    def end(self) -> None:
        """The voice was deleted: forgets its codes and tells everyone; a second time is nothing."""
        with self._lock:
            self._gone = True
            self._codes.clear()
            listeners, self._listeners = self._listeners, []
        for tell in listeners:
            tell()


def read_codes(path: Path) -> Codes | None:
    """The codes of a file, or None if it is not there or none of ours."""
    with suppress(OSError, ValueError, EOFError), path.open("rb") as file:
        kept: Codes = np.load(file, allow_pickle=False)
        if kept.ndim == 2 and kept.size and kept.dtype == np.int64:
            return kept
    return None
