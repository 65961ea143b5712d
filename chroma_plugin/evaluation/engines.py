"""Engines of the evaluations: made for a list of work, and closed when it is done.

Knows nothing of how what they say is judged.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from rich.console import Console

from chroma_plugin.config import EngineConfig
from chroma_plugin.engine.engine import Engine
from chroma_plugin.evaluation.conversation import Reply, hold
from chroma_plugin.evaluation.synthesis import Spoken, Task, missing, speak_all
from chroma_plugin.evaluation.verdict import Hold, Job
from chroma_plugin.training.data import DataPlan, build
from chroma_plugin.training.records import Records

RECORDS_SEED = 10_000
"""Added to the seed of records made here, so that they are none of a recipe's."""


def unheard(
    model: str, device: str, together: int, max_seconds: float, num_threads: int | None = None
) -> EngineConfig:
    """An engine whose replies nobody listens to live: they are made as fast as it goes."""
    return EngineConfig(
        model,
        device,
        max_replies=together,
        max_reply_s=max_seconds,
        max_sessions=max(64, together),
        queue_timeout_s=600.0,
        run_ahead_s=math.inf,
        num_threads=num_threads,
    )


def speaker_of(
    model: str, device: str, together: int, max_seconds: float, seed: int
) -> Callable[[Sequence[Task]], list[Spoken | str]]:
    """Says tasks with an engine that is made when something is missing, for each list anew."""
    config = unheard(model, device, together, max_seconds)

    async def run(tasks: Sequence[Task]) -> list[Spoken | str]:
        engine = Engine(config)
        try:
            if missing(tasks):
                await engine.start()
            with Progress("said") as progress:
                return await speak_all(
                    engine, tasks, seed=seed, together=together, progress=progress.say
                )
        finally:
            await engine.close()

    return lambda tasks: asyncio.run(run(tasks))


def holder_of(model: str, device: str, together: int, max_seconds: float, seed: int) -> Hold:
    """Holds the conversations of all jobs with one engine, on one thread of the CPU."""
    config = unheard(model, device, together, max_seconds, num_threads=1)

    async def run(jobs: Sequence[Job]) -> list[list[list[Reply]]]:
        held = []
        async with Engine(config) as engine:
            for job in jobs:
                with Progress(f"conversations held by {job.name}") as progress:
                    replies = await hold(
                        engine,
                        job.talks,
                        job.ask,
                        job.sampling,
                        seed=seed,
                        together=together,
                        progress=progress.say,
                    )
                held.append(replies)
        return held

    return lambda jobs: asyncio.run(run(jobs))


def held_out_records(folder: Path | None, dialogues: int, seed: int, stack: ExitStack) -> Records:
    """The held-out records of a folder; made by espeak-ng where there are none.

    Args:
        folder: where; one that is gone with the stack if None.
        dialogues: how many to make, in a voice for every two of them.
        seed: of those that are made.
        stack: of what goes in the end.

    Raises:
        ChromaError: espeak-ng is missing, or the folder holds records of other splits only.
    """
    place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
    if not any(place.glob("heldout-*.jsonl")):
        plan = DataPlan(0, dialogues, speaker_dialogues=2, seed=RECORDS_SEED + seed)
        build(plan, place, threads=2)
    return Records(place, "heldout")


def quiet_pipecat() -> None:
    """Takes the sinks of Pipecat's log away, before it greets; nothing if it is missing."""
    with suppress(ImportError):
        from loguru import logger

        logger.remove()


class Progress:
    """A line on stderr, in a terminal only.

    Args:
        what: is done to the things that are counted.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._console = Console(stderr=True, markup=False, highlight=False)
        self._status = self._console.status("") if self._console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def say(self, done: int, of: int) -> None:
        """Tells how far it is."""
        if self._status:
            self._status.update(f"{done} of {of} {self._what}")
