"""What the tests of stock clients share: sound, a wire that can be cut, and a look behind it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import numpy as np

from chroma_plugin.audio import INPUT_RATE_HZ, float_to_pcm, resample
from tests.contract import question
from tests.fakes import FakeEngine

WORDS = "one two three four"
"""What `FakeEngine` answers."""


def tone(seconds: float, rate_hz: int) -> bytes:
    """Sound that the scripted voice activity takes for speech: PCM16, far below what a resampler
    takes away."""
    count = round(seconds * rate_hz)
    wave = 8000 * np.sin(2 * np.pi * 440 * np.arange(count) / rate_hz)
    return wave.astype("<i2").tobytes()


def speech(rate_hz: int) -> bytes:
    """A question that somebody asks: PCM16."""
    return float_to_pcm(resample(question(), INPUT_RATE_HZ, rate_hz))


def silence(seconds: float, rate_hz: int) -> bytes:
    """As long, and nothing."""
    return bytes(2 * round(seconds * rate_hz))


def pieces(sound: bytes, size: int) -> Iterator[bytes]:
    """Sound as a host hands it out."""
    for start in range(0, len(sound), size):
        yield sound[start : start + size]


def told(engine: FakeEngine) -> list[tuple[str, str]]:
    """The texts that the newest of the engine's conversations was given, by role."""
    return [(call[1], call[2]) for call in engine.conversations[-1].calls if call[0] == "add_text"]


def names(engine: FakeEngine) -> list[str]:
    """All that the engine's conversations were told, sound left out."""
    calls = [call[0] for one in engine.conversations for call in one.calls]
    return [name for name in calls if name != "push_audio"]


class Wire:
    """Stands between a client and a server, until it is cut."""

    def __init__(self, server: str) -> None:
        self._host, _, port = server.partition(":")
        self._port = int(port)
        self.place = ""
        self.connections = 0
        self._ends: list[asyncio.StreamWriter] = []
        self._tasks = set[asyncio.Task[None]]()

    def cut(self) -> None:
        """Breaks every connection, as a network does: nobody is told why."""
        for end in self._ends:
            end.transport.abort()
        self._ends.clear()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        other_reader, other_writer = await asyncio.open_connection(self._host, self._port)
        self._ends += [writer, other_writer]
        for source, target in ((reader, other_writer), (other_reader, writer)):
            task = asyncio.create_task(self._carry(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        with suppress(OSError, RuntimeError):
            target.close()

    async def aclose(self) -> None:
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def wire(server: str) -> AsyncIterator[Wire]:
    """A wire to a server; clients connect to its `place`."""
    one = Wire(server)
    listening = await asyncio.start_server(one.accept, "127.0.0.1", 0)
    one.place = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield one
    finally:
        listening.close()
        await one.aclose()


@contextmanager
def complaints(*loggers: str) -> Iterator[list[str]]:
    """What is logged as a warning or worse meanwhile, by these loggers and below."""
    kept: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(f"{record.name}: {record.getMessage()}")

    handler = Keep(logging.WARNING)
    known = [logging.getLogger(name) for name in loggers]
    for one in known:
        one.addHandler(handler)
    try:
        yield kept
    finally:
        for one in known:
            one.removeHandler(handler)


def heard_ms(engine: FakeEngine, session: int = -1) -> float:
    """How much sound a conversation was given."""
    calls: list[Any] = [c for c in engine.conversations[session].calls if c[0] == "push_audio"]
    return sum(len(call[1]) for call in calls) / 16


@asynccontextmanager
async def model() -> AsyncIterator[Any]:
    """An engine with a small model, started: it speaks noise, a second at most."""
    from chroma_plugin.config import EngineConfig
    from chroma_plugin.engine.engine import Engine
    from tests.miniature import MINIATURE

    engine = Engine(EngineConfig(str(MINIATURE), "cpu", max_replies=2, max_reply_s=1.0))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()
