"""An engine that answers in tones: which reply is heard, and how much of it, can be told.

`python -m tests.pipecat.tones --port 7860` serves the example with it, by the runner's options, and
prints at its end what was asked of it.
"""

from __future__ import annotations

import asyncio
import runpy
import time
from pathlib import Path
from typing import Any

import numpy as np

import chroma_plugin
from chroma_plugin.audio import FRAME_SAMPLES, OUTPUT_RATE_HZ, Samples, float_to_pcm
from chroma_plugin.config import SamplingParams
from chroma_plugin.conversation import ReplyRequest
from chroma_plugin.reply import AudioChunk, EndReason, Sink, TextDelta, TurnDone
from chroma_plugin.session import Session
from chroma_plugin.voice import Voice
from tests.fakes import FakeConversation, FakeEngine

EXAMPLE = Path(__file__).parents[2] / "examples" / "pipecat_webrtc.py"
LOUD = 0.3
"""The amplitude of a tone."""
REPLIES = ((440.0, 15), (660.0, 750), (880.0, 20))
"""The tone of each reply in Hz, and its length in frames: 1.2 s, a minute, 1.6 s."""


def tone(hz: float, frames: int) -> Samples:
    """So many frames of it, at 24 kHz."""
    times = np.arange(frames * FRAME_SAMPLES) / OUTPUT_RATE_HZ
    return (LOUD * np.sin(2 * np.pi * hz * times)).astype(np.float32)


def loudness(samples: Samples, rate_hz: int, hz: float) -> Samples:
    """The amplitude of one tone in every 10 ms of a recording."""
    step = rate_hz // 100
    whole = samples[: len(samples) // step * step].reshape(-1, step)
    wave = np.exp(-2j * np.pi * hz / rate_hz * np.arange(step))
    return (np.abs(whole @ wave) * 2 / step).astype(np.float32)


class ToneEngine(FakeEngine):
    """Each reply of a conversation is its own tone; the last one comes again and again."""

    def __init__(self, replies: tuple[tuple[float, int], ...] = REPLIES, frame_s: float = 0.06):
        super().__init__(frame_s=frame_s)
        self.replies = replies
        self.starts = 0
        self.late_s = 0.0
        self._ticking: asyncio.Task[None] | None = None

    async def tick(self) -> None:
        """Measures how late this process is woken up: starved, it can hold no call."""
        while len(self.conversations) == 1:
            due = time.monotonic() + 0.05
            await asyncio.sleep(0.05)
            self.late_s = max(self.late_s, time.monotonic() - due)

    async def start(self) -> None:
        self.starts += not self.started
        await super().start()

    async def open_session(self, **settings: Any) -> Session:
        self.conversations.append(_Tones(self))
        given = {name: value for name, value in settings.items() if value is not None}
        defaults = {"voice": Voice.default(), "instructions": "", "sampling": SamplingParams()}
        return Session(self.conversations[-1], **(defaults | given))

    async def __aenter__(self) -> ToneEngine:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
        told = f"started {self.starts}, sessions {len(self.conversations)}, closed {self.closed}"
        print(f"{told}, late {self.late_s:.2f} s")


class _Tones(FakeConversation):
    """A little faster than it is played."""

    engine: ToneEngine

    async def _speak(self, request: ReplyRequest, sink: Sink) -> None:
        asked = sum(call[0] == "start_reply" for call in self.calls)
        self.engine._ticking = self.engine._ticking or asyncio.create_task(self.engine.tick())
        hz, frames = self.engine.replies[min(asked, len(self.engine.replies)) - 1]
        pcm, text = float_to_pcm(tone(hz, frames)), f"{hz:.0f} Hz"
        size = FRAME_SAMPLES * 2
        for i in range(frames):
            await asyncio.sleep(self.engine.frame_s)
            if i == 0:
                sink(TextDelta(text, 0.0))
            sink(AudioChunk(pcm[i * size : (i + 1) * size], i * 80.0))
        sink(TurnDone(EndReason.END_OF_SPEECH, text, frames * 80.0, 1, frames))


if __name__ == "__main__":
    chroma_plugin.Engine = lambda config: ToneEngine()  # type: ignore[attr-defined]
    runpy.run_path(str(EXAMPLE), run_name="__main__")
