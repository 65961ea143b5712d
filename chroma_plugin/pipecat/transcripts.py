"""What the user said, written down beside the reply that answers it.

Chroma answers sound and needs no text; contexts, logs and screens do. Writing down is slow work of
low rank: nothing waits for it but the user's message in the context.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from loguru import logger

from chroma_plugin.audio import INPUT_RATE_HZ, Samples
from chroma_plugin.session import Session

TRANSCRIPT_LIMIT_S = 30.0
"""A transcript that takes longer is given up."""
TURN_LIMIT_S = 60.0
"""So much of a turn is kept for a transcriber of the user's own."""

Transcriber = Callable[[Samples], Awaitable[str]]
"""Writes down what is said in float32 mono samples at 16 kHz; "" if that is nothing."""

CreateTask = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
OnText = Callable[[int, str], Awaitable[None]]


class Transcripts:
    """Has turns written down, and tells what was said in them.

    Args:
        transcriber: who writes; True is the session's engine, False nobody.
        create_task: as `FrameProcessor.create_task`.
        on_text: is told the number of a turn and its text, which is not empty.
    """

    def __init__(
        self, transcriber: Transcriber | bool, create_task: CreateTask, on_text: OnText
    ) -> None:
        self._transcriber = transcriber
        self._create_task = create_task
        self._on_text = on_text
        self._heard: list[Samples] = []
        self._heard_samples = 0
        self._tasks: dict[int, asyncio.Task[None]] = {}

    @property
    def wanted(self) -> bool:
        """Somebody writes."""
        return bool(self._transcriber)

    def give_way(self) -> None:
        """Writes no more: somebody else in the pipeline does."""
        self._transcriber = False

    def hear(self, samples: Samples) -> None:
        """Keeps a piece of the user's turn, if whoever writes needs it."""
        room = round(TURN_LIMIT_S * INPUT_RATE_HZ) - self._heard_samples
        if callable(self._transcriber) and room > 0:
            self._heard.append(samples[:room])
            self._heard_samples += len(samples[:room])

    def forget(self) -> None:
        """What was kept was no turn."""
        self._heard, self._heard_samples = [], 0

    def begin(self, number: int, turn: int, session: Session) -> None:
        """Starts to write down a turn that has just been committed.

        Args:
            number: what it is called here.
            turn: what the session calls it.
            session: who heard it.
        """
        heard = np.concatenate([*self._heard, np.zeros(0, np.float32)])
        self.forget()
        if callable(self._transcriber):
            self._start(number, partial(self._transcriber, heard))
        elif self._transcriber:
            self._start(number, partial(session.transcribe, turn))

    def _start(self, turn: int, write: Callable[[], Awaitable[str]]) -> None:
        task = self._create_task(self._write(turn, write))
        self._tasks[turn] = task
        task.add_done_callback(lambda _: self._tasks.pop(turn, None))

    async def _write(self, turn: int, write: Callable[[], Awaitable[str]]) -> None:
        try:
            async with asyncio.timeout(TRANSCRIPT_LIMIT_S):
                said = (await write()).strip()
        except TimeoutError:
            logger.warning(f"turn {turn}: no transcript within {TRANSCRIPT_LIMIT_S:g} s")
        except Exception as error:  # the conversation goes on without it
            logger.warning(f"turn {turn}: no transcript: {error}")
        else:
            if said:
                await self._on_text(turn, said)

    async def wait(self, turn: int, seconds: float) -> None:
        """Waits until a turn has been written down, but no longer than this."""
        if task := self._tasks.get(turn):
            await asyncio.wait([task], timeout=seconds)

    async def close(self) -> None:
        """Gives up what is not written yet."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
