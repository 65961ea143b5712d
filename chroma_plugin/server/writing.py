"""What the user said, written down by the engine and told in the protocol's events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from chroma_plugin.errors import ChromaError
from chroma_plugin.server import events
from chroma_plugin.server.dialogue import Dialogue
from chroma_plugin.server.items import Item

LIMIT_S = 30.0
"""A transcript that takes longer is given up."""


class Writing:
    """The transcripts of one connection.

    Args:
        dialogue: knows the items and who wrote them.
        send: takes each event.
    """

    def __init__(self, dialogue: Dialogue, send: Callable[[events.Event], None]) -> None:
        self._dialogue, self._send = dialogue, send
        # Spoken, but the session has not been told of it; with the label of who asked, if any.
        self._later: list[tuple[Item, int | None]] = []
        self._labelled: dict[int, asyncio.Task[None]] = {}
        self.tasks = set[asyncio.Task[None]]()

    def begin(self, item: Item) -> None:
        """Has a spoken message written down, as soon as the session knows it."""
        self._later.append((item, None))
        self.follow()

    def follow(self) -> None:
        """Begins with what the session knows by now."""
        waiting, self._later = self._later, []
        for item, label in waiting:
            if item.untold:
                self._later.append((item, label))
            elif label is None:
                self._spawn(self._write(item, {}, LIMIT_S))
            else:
                self._labelled[label] = self._spawn(self._write(item, {"turn": label}, None))

    def begin_labelled(self, label: int) -> None:
        """Has a turn written down that the client knows by its own number."""
        chroma = {"turn": label}
        item = self._dialogue.items.labelled("user", label)
        if item is None:
            missing = {"error": "AudioError"}
            self._send(events.transcript_failed("", "There is no such turn.", chroma | missing))
            return
        self._later.append((item, label))
        self.follow()

    def cancel_labelled(self, label: int) -> None:
        """Withdraws that, if it is not done."""
        self._later = [(item, known) for item, known in self._later if known != label]
        if task := self._labelled.pop(label, None):
            task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def _write(self, item: Item, chroma: dict[str, Any], limit_s: float | None) -> None:
        try:
            async with asyncio.timeout(limit_s):
                text = await self._dialogue.transcribe(item)
        except TimeoutError:
            self._send(events.transcript_failed(item.id, "It took too long.", chroma))
        except ChromaError as error:
            why = chroma | {"error": type(error).__name__}
            self._send(events.transcript_failed(item.id, str(error), why))
        else:
            if text:
                self._send(events.transcript_delta(item.id, text))
            seconds = item.audio_ms / 1000
            self._send(events.transcript_completed(item.id, text, seconds, chroma))
