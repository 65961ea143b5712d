"""A whole pipeline for tests: a microphone, Silero VAD, real aggregators, a real output transport.

Nothing sleeps: `Call.until` waits for what a test wants to see, and fails when it does not come.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from loguru import logger
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import (
    DataFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    MetricsFrame,
    OutputAudioRawFrame,
    StartFrame,
    TTSStartedFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.observers.base_observer import BaseObserver
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.turns.user_mute.base_user_mute_strategy import BaseUserMuteStrategy
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.workers.runner import WorkerRunner

from chroma_plugin.audio import Samples, float_to_pcm
from chroma_plugin.conversation import ReplyRequest
from chroma_plugin.pipecat import ChromaRealtimeLLMService
from chroma_plugin.pipecat.wav import WavTransport
from chroma_plugin.session import Session, SpeechEngine
from tests.fakes import FakeConversation, FakeEngine

PATIENCE_S = 20.0


@dataclass
class Mark(DataFrame):
    """Tells, where it comes through, that all before it has come through."""


class Speaker(BaseOutputTransport):
    """Plays without waiting, but no further than `limit_s`: a playback that a test steers."""

    def __init__(self, moved: Callable[[], None]) -> None:
        params = TransportParams(audio_out_enabled=True, audio_out_end_silence_secs=0)
        super().__init__(params)
        self.played_s = 0.0
        self.after_interruptions_s: list[float] = []  # played of a reply after it was interrupted
        self._interrupted = False
        self._moved = moved
        self._limit_s = float("inf")
        self._raised = asyncio.Event()

    def play_to(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._raised.set()

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        if isinstance(frame, InterruptionFrame) and direction is FrameDirection.DOWNSTREAM:
            self.after_interruptions_s.append(0.0)
            self._interrupted = True
        elif isinstance(frame, TTSStartedFrame):  # what comes now is another reply
            self._interrupted = False
        await super().process_frame(frame, direction)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        while self.played_s >= self._limit_s - 1e-6:
            self._raised.clear()
            await self._raised.wait()
        seconds = len(frame.audio) / 2 / frame.sample_rate
        self.played_s += seconds
        if self._interrupted:
            self.after_interruptions_s[-1] += seconds
        self._moved()
        return True


class Tap(FrameProcessor):
    """Writes down what the service sends downstream, in order; microphone and metrics apart."""

    def __init__(self, moved: Callable[[], None]) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self.metrics: list[Any] = []
        self._moved = moved

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, MetricsFrame):
            self.metrics += frame.data
        elif direction is FrameDirection.DOWNSTREAM and not isinstance(frame, InputAudioRawFrame):
            self.frames.append(frame)
        self._moved()
        await self.push_frame(frame, direction)


class Call:
    """What a test does and sees during one conversation."""

    def __init__(self, engine: SpeechEngine, context: LLMContext) -> None:
        self._moved = asyncio.Event()
        self.engine = engine
        self.context = context
        self.tap = Tap(self._moved.set)
        self.speaker = Speaker(self._moved.set)
        self.microphone = WavTransport(fast=True)
        self.turns: list[str] = []  # assistant turns, as the assistant aggregator tells them
        self.user_messages: list[str] = []  # as the user aggregator tells them
        self.errors: list[ErrorFrame] = []
        self.chroma: ChromaRealtimeLLMService
        self.worker: PipelineWorker

    async def until(self, seen: Callable[[], Any], what: str) -> None:
        """Waits until it is seen. Everything that can change it wakes this up."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not seen():
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            raise AssertionError(f"never seen: {what}; frames: {self.names()}") from None

    async def replies(self, count: int) -> None:
        await self.until(lambda: len(self.turns) >= count, f"{count} assistant turns")

    async def send(self, *frames: Frame) -> None:
        await self.worker.queue_frames(frames)

    async def reached(self) -> None:
        """Waits until the service has dealt with everything that was sent before."""
        mark = Mark()
        await self.send(mark)
        await self.until(lambda: mark in self.tap.frames, "the mark")

    async def say(self, samples: Samples) -> None:
        """Speaks a recording into the microphone; VAD does the rest."""
        self.microphone.ask(samples)

    async def say_by_hand(
        self, samples: Samples, rate_hz: int, channels: int = 1, before: Samples | None = None
    ) -> None:
        """Speaks at any rate; Silero knows two, so the test says when there is a voice."""
        if before is not None:
            await self.send(*microphone_frames(before, rate_hz, channels))
        await self.send(VADUserStartedSpeakingFrame(start_secs=0.2))
        await self.send(*microphone_frames(samples, rate_hz, channels))
        await self.send(VADUserStoppedSpeakingFrame(stop_secs=0.2))

    def names(self, *kinds: type[Frame]) -> list[str]:
        """Names of what left the service, runs of the same kind as one."""
        names = [type(f).__name__ for f in self.tap.frames if not kinds or isinstance(f, kinds)]
        return [name for i, name in enumerate(names) if i == 0 or name != names[i - 1]]

    @property
    def session(self) -> Session | None:
        return self.chroma._line.session

    @property
    def conversation(self) -> FakeConversation:
        assert isinstance(self.engine, FakeEngine)
        return self.engine.conversations[-1]

    def told(self) -> list[tuple[str, Any]]:
        """The context, as roles and texts."""
        return [(message["role"], message["content"]) for message in self.context.messages]

    def requests(self) -> list[ReplyRequest]:
        """The replies that the engine was asked for."""
        return [request for _, request in self.calls("start_reply")]

    def calls(self, *names: str) -> list[tuple[Any, ...]]:
        """What the engine was asked to do, in order."""
        return [call for call in self.conversation.calls if not names or call[0] in names]

    def heard(self) -> Samples:
        """All user audio that reached the engine."""
        return np.concatenate([np.zeros(0, np.float32), *(c[1] for c in self.calls("push_audio"))])


def microphone_frames(samples: Samples, rate_hz: int, channels: int = 1) -> list[Frame]:
    step = rate_hz // 50
    return [
        InputAudioRawFrame(
            float_to_pcm(np.repeat(samples[i : i + step], channels)), rate_hz, channels
        )
        for i in range(0, len(samples), step)
    ]


@asynccontextmanager
async def conversation(
    engine: SpeechEngine,
    *,
    messages: Sequence[Any] = (),
    tools: Any = None,
    vad: bool = True,
    played: bool = True,
    observers: Sequence[BaseObserver] = (),
    metrics: bool = False,
    tracing: bool = False,
    strategies: Callable[[WavTransport], UserTurnStrategies] | None = None,
    mutes: Sequence[BaseUserMuteStrategy] = (),
    before: Sequence[FrameProcessor] = (),
    **service: Any,
) -> AsyncIterator[Call]:
    """A running pipeline. Without `vad` there is no microphone either: a test sends the frames.

    Args:
        engine: what answers.
        messages: of the context, at the beginning.
        tools: of the context.
        vad: a microphone, and Silero listens to it.
        played: a transport plays, and the assistant aggregator writes down what was heard.
        observers: of the worker.
        metrics: are measured.
        tracing: spans are made.
        strategies: when a turn begins and ends; without them a question is a turn, or with `vad`
            off what the test's frames say.
        mutes: when the user is not heard.
        before: stands before the user aggregator: speech-to-text, for example.
        **service: for the service.
    """
    context = LLMContext(list(messages), **({"tools": tools} if tools else {}))
    call = Call(engine, context)
    by_hand = UserTurnStrategies(stop=[SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=0)])
    turns = call.microphone.turn_strategies if vad else by_hand
    if strategies is not None:
        turns = strategies(call.microphone)
    user, assistant = LLMContextAggregatorPair(
        context,
        user_params=LLMUserAggregatorParams(
            vad_analyzer=SileroVADAnalyzer() if vad else None,
            user_turn_strategies=turns,
            user_mute_strategies=list(mutes),
        ),
    )
    call.chroma = ChromaRealtimeLLMService(engine=engine, context=context, **service)
    source = [call.microphone.input()] if vad else []
    sink = [call.speaker, assistant] if played else []
    parts = [*source, *before, user, call.chroma, call.tap, *sink]
    call.worker = PipelineWorker(
        Pipeline(parts),
        params=PipelineParams(enable_metrics=metrics, enable_usage_metrics=metrics),
        observers=list(observers),
        enable_rtvi=False,
        idle_timeout_secs=None,
        enable_tracing=tracing,
        enable_turn_tracking=tracing,
    )
    started = asyncio.Event()

    async def on_started(*_: Any) -> None:
        started.set()

    async def on_error(_: Any, frame: ErrorFrame) -> None:
        call.errors.append(frame)
        call._moved.set()

    async def on_assistant_turn(_: Any, message: Any) -> None:
        call.turns.append(message.content)
        call._moved.set()

    async def on_user_message(_: Any, message: Any) -> None:
        call.user_messages.append(message.content)
        call._moved.set()

    user.add_event_handler("on_user_turn_message_added", on_user_message)
    call.worker.add_event_handler("on_pipeline_started", on_started)
    call.worker.add_event_handler("on_pipeline_error", on_error)
    assistant.add_event_handler("on_assistant_turn_stopped", on_assistant_turn)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(call.worker)
    running = asyncio.create_task(runner.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await started.wait()
        yield call
    finally:
        call.speaker.play_to(float("inf"))
        await runner.cancel()
        done, _ = await asyncio.wait([running], timeout=PATIENCE_S)
        assert done, "the pipeline did not end"


@asynccontextmanager
async def log_lines(level: str = "WARNING") -> AsyncIterator[list[str]]:
    """What is logged at this level or above."""
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), level=level)
    try:
        yield lines
    finally:
        logger.remove(sink)
