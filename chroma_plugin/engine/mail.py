"""Events on their way from the engine's thread to event loops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


class Mail:
    """Events on their way to event loops, delivered once per round."""

    def __init__(self) -> None:
        self._out: dict[asyncio.AbstractEventLoop, list[tuple[Callable[..., None], Any]]] = {}

    def put(self, loop: asyncio.AbstractEventLoop, receiver: Callable[..., None], it: Any) -> None:
        self._out.setdefault(loop, []).append((receiver, it))

    def send(self) -> None:
        """Hands everything over; what is for a closed loop is dropped."""
        for loop, letters in self._out.items():
            try:
                loop.call_soon_threadsafe(_deliver, letters)
            except RuntimeError:
                log.debug("an event loop was closed before its replies ended")
        self._out = {}


def _deliver(letters: list[tuple[Callable[..., None], Any]]) -> None:
    for receiver, it in letters:
        receiver(it)
