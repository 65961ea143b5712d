"""What the user said, written down beside the reply that answers it.

Chroma answers sound and needs no text; histories, logs and screens do. Nothing waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from chroma_plugin.audio import Samples
from chroma_plugin.livekit.record import Item
from chroma_plugin.session import Session

log = logging.getLogger(__name__)

TRANSCRIPT_LIMIT_S = 30.0
"""A transcript that takes longer is given up."""

Transcriber = Callable[[Samples], Awaitable[str]]
"""Writes down what is said in float32 mono samples at 16 kHz; "" if that is nothing."""


class Transcripts:
    """Has turns written down, and tells what was said in them.

    Args:
        transcriber: who writes; True is the session's engine, False nobody.
        on_text: is told an item whose text has become known.
    """

    def __init__(self, transcriber: Transcriber | bool, on_text: Callable[[Item], None]) -> None:
        self._transcriber, self._on_text = transcriber, on_text
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, item: Item, session: Session) -> None:
        """Starts to write down a turn that a session has just been told."""
        name = item.chat.id
        if not self._transcriber or name in self._tasks:
            return
        if callable(self._transcriber):
            if item.sound is None:
                return
            writing = self._transcriber(item.sound)
        else:
            writing = session.transcribe(item.turn)
        task = asyncio.ensure_future(self._write(item, writing))
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._tasks.pop(name, None))

    async def _write(self, item: Item, writing: Awaitable[str]) -> None:
        try:
            async with asyncio.timeout(TRANSCRIPT_LIMIT_S):
                said = (await writing).strip()
        except TimeoutError:
            log.warning("no transcript of a turn within %g s", TRANSCRIPT_LIMIT_S)
        except Exception as error:  # the conversation goes on without it
            log.warning("no transcript of a turn: %s", type(error).__name__)  # nobody's words
        else:
            if said:
                item.write(said)
                self._on_text(item)

    async def aclose(self) -> None:
        """Gives up what is not written yet."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
