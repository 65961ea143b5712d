"""Pipecat's own OpenAI Realtime service, unmodified, in a pipeline that talks to this server."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from tests.fakes import FakeEngine
from tests.server.serving import serving

pytest.importorskip("openai")
pytest.importorskip("pipecat")

from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    InputAudioRawFrame,
    LLMContextFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.realtime import events
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner

WAIT_S = 40.0


class Ear(FrameProcessor):
    """Keeps what passes; `heard` tells that there is more."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Any] = []
        self.heard = asyncio.Condition()

    async def process_frame(self, frame: Any, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        async with self.heard:
            self.frames.append(frame)
            self.heard.notify_all()
        await self.push_frame(frame, direction)

    async def until(self, kind: type, count: int) -> None:
        async with asyncio.timeout(WAIT_S), self.heard:
            await self.heard.wait_for(
                lambda: sum(isinstance(f, kind) for f in self.frames) >= count
            )


async def test_a_greeting_and_a_turn_that_the_server_finds() -> None:
    engine = FakeEngine(frames=8)
    async with serving(engine) as place:
        service = OpenAIRealtimeLLMService(
            api_key="any",
            base_url=f"ws://{place}/v1/realtime",
            settings=OpenAIRealtimeLLMService.Settings(
                model="chroma",
                system_instruction="Be brief.",
                session_properties=events.SessionProperties(
                    audio=events.AudioConfiguration(
                        input=events.AudioInput(transcription=events.InputAudioTranscription())
                    )
                ),
            ),
        )
        before, after = Ear(), Ear()
        worker = PipelineWorker(
            Pipeline([before, service, after]), params=PipelineParams(), idle_timeout_secs=None
        )

        async def drive() -> None:
            greet = LLMContext([{"role": "user", "content": "Greet the user."}])
            await worker.queue_frame(LLMContextFrame(greet))
            await after.until(TTSAudioRawFrame, 8)
            tone = np.repeat(np.array([8000, -8000], "<i2"), 4)
            loud = np.tile(tone, 40).tobytes()  # 20 ms at 16 kHz
            for sound in [loud] * 40 + [bytes(640)] * 50:
                frame = InputAudioRawFrame(audio=sound, sample_rate=16000, num_channels=1)
                await worker.queue_frame(frame)
            await after.until(TTSAudioRawFrame, 16)
            await worker.queue_frame(EndFrame())

        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        async with asyncio.timeout(2 * WAIT_S):
            await asyncio.gather(runner.run(), drive())
    assert not [f for f in before.frames + after.frames if isinstance(f, ErrorFrame)]
    words = "".join(f.text for f in after.frames if isinstance(f, TTSTextFrame))
    assert words.count("one two three four") == 2
    ((first, *_), *_) = [c[1:] for c in engine.conversations[0].calls if c[0] == "add_text"]
    assert first == "user"
