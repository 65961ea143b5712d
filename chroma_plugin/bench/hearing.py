"""One user of the engine: what it says, what it hears and when, and how long the steps took.

The clock starts at the last byte of user audio. Three firsts are told apart:

- first byte: the first audio arrives;
- first playable: the earliest moment from which the whole reply can be played without a gap, known
  afterwards; it is the first byte unless the stream runs dry;
- first audible: the first sound is heard, if playback begins at the first byte. Leading silence is
  not sound.

Times are seconds of a monotonic clock and are handed in, so that a test has its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from chroma_plugin.audio import INPUT_RATE_HZ, OUTPUT_RATE_HZ, Samples, pcm_to_float, read_audio
from chroma_plugin.reply import AudioChunk, ReplyEvent, TurnDone
from chroma_plugin.session import Session

if TYPE_CHECKING:  # whoever listens to a server loads no engine
    from chroma_plugin.engine.engine import Engine
    from chroma_plugin.engine.frames import StepTimes

T = TypeVar("T")

PIECE_S = 0.04
"""How much speech a user pushes at a time."""
AUDIBLE = 10 ** (-50 / 20)
"""RMS of 10 ms from which on it is sound: -50 dBFS."""


@dataclass(slots=True)
class Playback:
    """Plays a reply as it arrives, from its first byte on, and notes when it runs dry.

    Attributes:
        first_s: when the first audio arrived.
        playable_s: the earliest start of a playback without a gap.
        audible_s: when the first sound is heard.
        ends_s: until when there is something to play.
        played_s: the length of what arrived.
        underruns_s: the length of each gap.
    """

    first_s: float | None = None
    playable_s: float | None = None
    audible_s: float | None = None
    ends_s: float = 0.0
    played_s: float = 0.0
    underruns_s: list[float] = field(default_factory=list)

    def feed(self, samples: Samples, now_s: float) -> None:
        """Takes audio that has just arrived."""
        length_s = len(samples) / OUTPUT_RATE_HZ
        if self.first_s is None or self.playable_s is None:
            self.first_s = self.playable_s = self.ends_s = now_s
        elif now_s > self.ends_s:
            self.underruns_s.append(now_s - self.ends_s)
            self.ends_s = now_s
        self.playable_s = max(self.playable_s, now_s - self.played_s)
        if self.audible_s is None and (begins := first_sound(samples)) is not None:
            self.audible_s = self.ends_s + begins / OUTPUT_RATE_HZ
        self.ends_s += length_s
        self.played_s += length_s

    def heard_s(self, now_s: float) -> float:
        """How much of the reply has been played by now."""
        return max(self.played_s - max(self.ends_s - now_s, 0.0), 0.0)


def first_sound(samples: Samples) -> int | None:
    """The first sample that is no silence, to 10 ms; None if all of it is silence."""
    window = OUTPUT_RATE_HZ // 100
    padded = np.pad(samples, (0, -len(samples) % window)).reshape(-1, window)
    loud = np.sqrt(np.mean(np.square(padded), axis=1)) >= AUDIBLE
    return int(loud.argmax()) * window if loud.any() else None


def speech(seconds: float) -> Samples:
    """The packaged question, again and again, 16 kHz."""
    with as_file(files("chroma_plugin") / "assets" / "questions" / "capital.flac") as path:
        question = read_audio(path, INPUT_RATE_HZ)
    return np.resize(question, round(seconds * INPUT_RATE_HZ))


async def speak(session: Session, samples: Samples) -> float:
    """Pushes speech at the pace at which it is spoken.

    Returns:
        When its last byte was spoken; `commit_turn` follows at once.
    """
    piece = round(PIECE_S * INPUT_RATE_HZ)
    begin = last_s = time.perf_counter()
    for start in range(0, len(samples), piece):
        part = samples[start : start + piece]
        spoken_s = (start + len(part)) / INPUT_RATE_HZ
        await asyncio.sleep(max(begin + spoken_s - time.perf_counter(), 0.0))
        last_s = time.perf_counter()
        session.push_audio(part)
    return last_s


@dataclass(slots=True)
class Heard:
    """A reply as its reader had it.

    Attributes:
        asked_s: the clock's zero.
        playback: what arrived and when.
        done: its last event; None if the reader went away before.
        ended_s: when that came.
    """

    asked_s: float
    playback: Playback = field(default_factory=Playback)
    done: TurnDone | None = None
    ended_s: float = 0.0

    def take(self, event: ReplyEvent, now_s: float) -> None:
        """Notes an event of the reply."""
        if isinstance(event, AudioChunk):
            self.playback.feed(pcm_to_float(event.pcm), now_s)
        elif isinstance(event, TurnDone):
            self.done, self.ended_s = event, now_s

    def after_ms(self, moment: str) -> float | None:
        """One of the playback's moments on the clock of this reply."""
        at_s: float | None = getattr(self.playback, moment)
        return None if at_s is None else (at_s - self.asked_s) * 1000

    @property
    def rtf(self) -> float | None:
        """Seconds of work per second of audio: from the question's end to the reply's."""
        if self.done is None or not self.playback.played_s:
            return None
        return (self.ended_s - self.asked_s) / self.playback.played_s


async def hear(stream: AsyncIterator[ReplyEvent], heard: Heard) -> Heard:
    """Reads a reply to its end."""
    async for event in stream:
        heard.take(event, time.perf_counter())
    return heard


def firsts(replies: list[Heard], moment: str) -> list[float]:
    """One of the firsts of each reply that has it, in ms."""
    return [ms for reply in replies if (ms := reply.after_ms(moment)) is not None]


@dataclass(slots=True)
class StepClock:
    """Notes how long every step of an engine took.

    Attributes:
        steps_ms: the length of each step.
        gaps_ms: how long the device had nothing of a step to do before each.
    """

    steps_ms: list[float] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)

    def watch(self, engine: Engine) -> None:
        """Begins to note the steps of a started engine."""
        assert engine._worker is not None
        engine._worker.frames.observe = self._note

    def _note(self, times: StepTimes) -> None:
        self.steps_ms.append(times.ms)
        if times.gap_ms is not None:
            self.gaps_ms.append(times.gap_ms)


@asynccontextmanager
async def open_to(engine: Engine, **settings: Any) -> AsyncIterator[Session]:
    """A session that is closed in the end."""
    session = await engine.open_session(**settings)
    try:
        yield session
    finally:
        await session.aclose()


async def on_engine_thread(engine: Engine, work: Callable[[], T]) -> T:
    """Does something on a started engine's thread, between its replies."""
    worker = engine._worker
    assert worker is not None
    done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def run() -> None:
        try:
            worker.mail.put(done.get_loop(), done.set_result, work())
        except Exception as error:
            worker.mail.put(done.get_loop(), done.set_exception, error)

    worker.post(run)
    return await done
