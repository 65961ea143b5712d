"""What the tests of a realtime model say, and how they listen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from livekit import rtc
from livekit.agents import llm

from chroma_plugin.audio import Samples, resample
from chroma_plugin.livekit import RealtimeModel, RealtimeSession
from tests.fakes import FakeEngine

WAIT_S = 30.0
"""Nothing is waited for longer."""
RATE_HZ = 24_000
"""What a room sends."""


def tone(seconds: float, rate_hz: int = RATE_HZ, loudness: float = 0.3) -> Samples:
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (loudness * np.sin(2 * np.pi * 220 * t)).astype(np.float32)


def silence(seconds: float, rate_hz: int = RATE_HZ) -> Samples:
    return np.zeros(round(seconds * rate_hz), np.float32)


def noise(seconds: float, loudness: float, rate_hz: int = RATE_HZ) -> Samples:
    drawn = np.random.default_rng(0).standard_normal(round(seconds * rate_hz))
    return (loudness * drawn).astype(np.float32).clip(-1, 1)


def frame(samples: Samples, rate_hz: int = RATE_HZ, channels: int = 1) -> rtc.AudioFrame:
    pcm = (np.repeat(samples, channels) * 32767).astype(np.int16)
    return rtc.AudioFrame(pcm.tobytes(), rate_hz, channels, len(samples))


def frames(
    samples: Samples, rate_hz: int = RATE_HZ, ms: int = 50, channels: int = 1
) -> list[rtc.AudioFrame]:
    step = rate_hz * ms // 1000
    return [
        frame(samples[start : start + step], rate_hz, channels)
        for start in range(0, len(samples), step)
    ]


def at_room_rate(samples: Samples) -> Samples:
    return resample(samples, 16_000, RATE_HZ)


@dataclass
class Heard:
    """A reply as it was read."""

    text: str = ""
    pieces: list[str] = field(default_factory=list)
    frames: list[rtc.AudioFrame] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    calls: int = 0

    @property
    def seconds(self) -> float:
        return sum(each.samples_per_channel / each.sample_rate for each in self.frames)


async def listen(created: llm.GenerationCreatedEvent) -> Heard:
    """Reads a reply to its end, as the framework does: text and audio side by side."""
    heard = Heard()

    async def read_text(message: llm.MessageGeneration) -> None:
        async for piece in message.text_stream:
            heard.pieces.append(piece)
            heard.text += piece

    async def read_audio(message: llm.MessageGeneration) -> None:
        async for each in message.audio_stream:
            heard.frames.append(each)

    async with asyncio.timeout(WAIT_S):
        async for message in created.message_stream:
            heard.messages.append(message.message_id)
            await asyncio.gather(read_text(message), read_audio(message))
        async for _ in created.function_stream:
            heard.calls += 1
    return heard


async def reply(session: RealtimeSession, **wishes: Any) -> Heard:
    async with asyncio.timeout(WAIT_S):
        created = await session.generate_reply(**wishes)
    return await listen(created)


def say_into(session: RealtimeSession, seconds: float = 1.0) -> None:
    """A turn of the user's, with silence around it; not committed."""
    for each in frames(np.concatenate([silence(0.3), tone(seconds), silence(0.4)])):
        session.push_audio(each)


def calls(engine: FakeEngine, name: str, conversation: int = -1) -> list[tuple[Any, ...]]:
    """What a conversation was asked for under that name."""
    return [call[1:] for call in engine.conversations[conversation].calls if call[0] == name]


def told(engine: FakeEngine, conversation: int = -1) -> list[str]:
    """The order in which a conversation was told, without the sound and the settings."""
    dull = {"push_audio", "set_instructions"}
    return [c[0] for c in engine.conversations[conversation].calls if c[0] not in dull]


def pushed_s(engine: FakeEngine, conversation: int = -1) -> float:
    return sum(len(c[0]) for c in calls(engine, "push_audio", conversation)) / 16_000


class Events(list[Any]):
    """All events of a session, by kind."""

    KINDS = (
        "generation_created",
        "remote_item_added",
        "metrics_collected",
        "error",
        "input_audio_transcription_completed",
        "input_speech_started",
        "input_speech_stopped",
        "chroma_reply_done",
    )

    def __init__(self, session: RealtimeSession) -> None:
        super().__init__()
        for kind in self.KINDS:
            session.on(kind, lambda event, kind=kind: self.append((kind, event)))

    def of(self, kind: str) -> list[Any]:
        return [event for name, event in self if name == kind]


async def until(condition: Any) -> None:
    """Lets the loop run until something is so."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0)


@asynccontextmanager
async def talking(
    engine: FakeEngine | None = None, **options: Any
) -> AsyncIterator[tuple[RealtimeSession, FakeEngine, Events]]:
    """A model's session with a fake engine behind it."""
    engine = engine or FakeEngine()
    model = RealtimeModel(engine=engine, **options)
    session = model.session()
    try:
        yield session, engine, Events(session)
    finally:
        async with asyncio.timeout(WAIT_S):
            await model.aclose()
