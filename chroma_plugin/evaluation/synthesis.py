"""What an engine says when it is asked to: texts word for word, or answers to recordings.

Replies go to a folder as WAV files, their texts beside them, and what lies there already is not
made again: a long run that was broken off goes on, and speech from elsewhere can be judged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chroma_plugin.audio import (
    INPUT_RATE_HZ,
    OUTPUT_RATE_HZ,
    read_audio,
    replace_file,
    write_wav,
)
from chroma_plugin.config import SamplingParams
from chroma_plugin.errors import AudioError, ChromaError, EngineClosed, EngineFailed
from chroma_plugin.reply import AudioChunk, TurnDone
from chroma_plugin.session import SpeechEngine
from chroma_plugin.voice import Voice

Progress = Callable[[int, int], None]
"""How many of how many are done."""


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to say.

    Attributes:
        path: the WAV file that it becomes.
        voice: in whose voice; the packaged one if None.
        text: to be said word for word; None to answer `question`.
        question: a recording to be answered.
    """

    path: Path
    voice: Voice | None = None
    text: str | None = None
    question: Path | None = None


@dataclass(frozen=True, slots=True)
class Spoken:
    """What was said.

    Attributes:
        path: the WAV file.
        text: the reply's own text; for what was found and has no text beside it, the text asked
            for, or nothing.
        made: by the engine now, and not found in the folder.
    """

    path: Path
    text: str
    made: bool


async def speak_all(
    engine: SpeechEngine,
    tasks: Sequence[Task],
    *,
    seed: int = 0,
    together: int = 4,
    progress: Progress = lambda done, of: None,
) -> list[Spoken | str]:
    """Has all of it said, each in a conversation of its own.

    Args:
        engine: one that is started, or need not be, if all is found.
        tasks: what to say; their folders are made.
        seed: of the first task's speech; the others follow it.
        together: conversations at once, no more than the engine's rows.
        progress: told after each.

    Returns:
        In the order of the tasks: what was said, or why it was not.

    Raises:
        EngineFailed: the engine is dead.
        EngineClosed: it is closed.
    """
    room, done = asyncio.Semaphore(together), 0

    async def one(number: int, task: Task) -> Spoken | str:
        nonlocal done
        async with room:
            try:
                said = _found(task) or await _made(engine, task, seed + number)
            except (EngineFailed, EngineClosed):
                raise
            except ChromaError as error:
                return str(error)
            finally:
                done += 1
                progress(done, len(tasks))
            return said

    return list(await asyncio.gather(*(one(i, task) for i, task in enumerate(tasks))))


def missing(tasks: Sequence[Task]) -> bool:
    """Whether an engine is needed for any of them."""
    return any(not task.path.is_file() for task in tasks)


def _found(task: Task) -> Spoken | None:
    if not task.path.is_file():
        return None
    beside = task.path.with_suffix(".txt")
    text = beside.read_text(encoding="utf-8") if beside.is_file() else task.text or ""
    return Spoken(task.path, text, made=False)


async def _made(engine: SpeechEngine, task: Task, seed: int) -> Spoken:
    session = await engine.open_session(voice=task.voice, sampling=SamplingParams(seed=seed))
    try:
        if task.question is not None:
            session.push_audio(read_audio(task.question, INPUT_RATE_HZ))
        stream = session.say(task.text) if task.text is not None else session.commit_turn()
        pcm, text = b"", ""
        async for event in stream:
            if isinstance(event, AudioChunk):
                pcm += event.pcm
            elif isinstance(event, TurnDone):
                text = event.text
    finally:
        await session.aclose()
    if not pcm:
        raise AudioError(f"{task.path.stem}: the reply holds no audio.")
    try:
        task.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(task.path.with_suffix(".txt"), text.encode())
    except OSError as error:
        raise AudioError(f"{task.path}: cannot be written ({error.strerror}).") from error
    write_wav(task.path, pcm, OUTPUT_RATE_HZ)  # last: what is there is whole
    return Spoken(task.path, text, made=True)
