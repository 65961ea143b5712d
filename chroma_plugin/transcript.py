"""Transcripts that somebody waits for: one piece of work however many wait for it, and none that
nobody waits for any more.

Knows nothing of sessions, engines or hosts; it lives on one event loop, as a session does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from chroma_plugin.errors import ChromaError

TextSink = Callable[[str | ChromaError], None]
"""Takes what was said, or why nobody can tell; once."""


class Transcripts:
    """Who waits for the transcript of which turn.

    Args:
        start: has a turn written down; what is said goes to the sink.
        cancel: withdraws that.
        keep: is told each transcript that came, before those who wait for it.
    """

    def __init__(
        self,
        start: Callable[[int, TextSink], None],
        cancel: Callable[[int], None],
        keep: Callable[[int, str], None],
    ) -> None:
        self._start, self._cancel, self._keep = start, cancel, keep
        self._waiting: dict[int, list[asyncio.Future[str]]] = {}

    async def of(self, turn: int) -> str:
        """Waits for a turn's transcript; whoever waits last takes the work with it when it goes.

        Raises:
            ChromaError: what was sent instead of a text.
        """
        text: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(turn, [])
        waiting.append(text)
        if len(waiting) == 1:
            self._start(turn, partial(self._put, turn, waiting))
        try:
            return await text
        finally:
            if self._waiting.get(turn) is waiting:  # it did not come: this wait was cancelled
                waiting.remove(text)
                if not waiting:
                    del self._waiting[turn]
                    self._cancel(turn)

    def close(self, error: ChromaError) -> None:
        """Tells everyone who waits that there is nothing to wait for."""
        for turn, waiting in list(self._waiting.items()):
            self._put(turn, waiting, error)

    def _put(self, turn: int, waiting: list[asyncio.Future[str]], it: str | ChromaError) -> None:
        if self._waiting.get(turn) is not waiting:  # late: nobody waits for this one any more
            return
        del self._waiting[turn]
        if isinstance(it, str):
            self._keep(turn, it)
        for text in waiting:
            if text.done():
                continue
            if isinstance(it, str):
                text.set_result(it)
            else:
                text.set_exception(it)
