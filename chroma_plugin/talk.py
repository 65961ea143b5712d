"""Spoken questions through a whole Pipecat pipeline, from files to a reply.

`talk` is what the command line and the demo run: Silero VAD, both aggregators and
`ChromaRealtimeLLMService` between a microphone and a loudspeaker that are made of files. With
``fast`` nothing waits for the clock: VAD counts frames, and so does the end of a question.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import EndFrame, ErrorFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    AssistantTurnStoppedMessage,
    LLMAssistantAggregator,
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.workers.runner import WorkerRunner

from chroma_plugin.audio import INPUT_RATE_HZ, OUTPUT_RATE_HZ, Samples, read_audio
from chroma_plugin.config import SamplingParams
from chroma_plugin.errors import AudioError, ChromaError, EngineError
from chroma_plugin.pipecat import ChromaRealtimeLLMService
from chroma_plugin.pipecat.wav import WavTransport
from chroma_plugin.reply import EndReason, Timings, TurnDone
from chroma_plugin.session import SpeechEngine
from chroma_plugin.voice import Voice

OnEvent = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class TalkTurn:
    """One question and its reply.

    Attributes:
        question: the name of its file, or its number.
        text: what was replied.
        pcm: the reply as it left the pipeline: PCM16, mono, 24 kHz.
        reply_seconds: its length.
        ttfa_ms: from the end of the user's turn to the first audio out of the pipeline; None
            for a reply without audio.
        rtf: seconds of making per second of reply; None for a reply without audio.
        reason: why the reply ended.
        timings: where the time went, by the engine's clock.
        said: what the engine understood of the question; "" if nobody asked it to write that down.
    """

    question: str
    text: str
    pcm: bytes
    reply_seconds: float
    ttfa_ms: float | None
    rtf: float | None
    reason: EndReason
    timings: Timings
    said: str = ""


@dataclass(frozen=True, slots=True)
class TalkReport:
    """A conversation, told afterwards.

    Attributes:
        model: what spoke.
        turns: the questions and replies in order.
        events: what happened, and when on the monotonic clock: ``question``, ``user_started``,
            ``user_stopped``, ``first_audio``, ``reply_made``, ``reply_played``, for every turn.
        sample_rate: of the replies.
    """

    model: str
    turns: tuple[TalkTurn, ...]
    events: tuple[tuple[float, str], ...]
    sample_rate: int = OUTPUT_RATE_HZ

    @property
    def pcm(self) -> bytes:
        """All replies, one after the other."""
        return b"".join(turn.pcm for turn in self.turns)


async def talk(
    engine: SpeechEngine,
    questions: Sequence[str | Path | Samples],
    *,
    voice: Voice | None = None,
    instructions: str | None = None,
    sampling: SamplingParams | None = None,
    max_reply_s: float | None = None,
    transcribe: bool = False,
    fast: bool = False,
    on_event: OnEvent | None = None,
    stall_s: float = 60.0,
) -> TalkReport:
    """Asks the questions in one conversation; each waits until the reply before it was played.

    Args:
        engine: a started engine.
        questions: audio files, or float32 mono samples at 16 kHz. A file is one question,
            whatever pauses it has.
        voice: whose voice replies are spoken in; the packaged one if None.
        instructions: the system prompt; the model's own if None.
        sampling: how codes are drawn; the released defaults if None.
        max_reply_s: a cap on the length of a reply.
        transcribe: have the engine write down each question, beside its reply.
        fast: as fast as it goes, instead of at the pace of speech.
        on_event: called with the name and the time of each event of `TalkReport.events`.
        stall_s: when nothing at all happens for this long, give up.

    Raises:
        AudioError: a question cannot be read, or no speech was found in it.
        EngineError: the engine failed, was busy, or nothing happened any more.
    """
    named = [_read(question, i) for i, question in enumerate(questions, 1)]
    transport, context = WavTransport(fast=fast), LLMContext()
    user, assistant = LLMContextAggregatorPair(
        context,
        user_params=LLMUserAggregatorParams(
            vad_analyzer=SileroVADAnalyzer(),
            user_turn_strategies=transport.turn_strategies,
            user_turn_stop_timeout=3600.0,  # a pause within a question does not end it
        ),
    )
    drawn = sampling or SamplingParams()
    chroma = ChromaRealtimeLLMService(
        engine=engine,
        voice=voice,
        context=context,
        transcribe=transcribe,
        settings=ChromaRealtimeLLMService.Settings(
            system_instruction=instructions,
            max_reply_s=max_reply_s,
            **asdict(drawn),
        ),
    )
    worker = PipelineWorker(
        Pipeline([transport.input(), user, chroma, transport.output(), assistant]),
        enable_rtvi=False,
        idle_timeout_secs=None,
    )
    log = _Log(on_event, stall_s)
    log.watch(transport, worker, chroma, assistant)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    running.add_done_callback(log.ended)
    turns: list[TalkTurn] = []
    try:
        for name, samples in named:
            turns.append(await log.exchange(transport, name, samples))
        await worker.queue_frame(EndFrame())
        await asyncio.wait([running], timeout=stall_s)
    finally:
        if not running.done():
            await runner.cancel()
            await asyncio.wait([running], timeout=stall_s)
    model = getattr(getattr(engine, "config", None), "model", type(engine).__name__)
    return TalkReport(str(model), tuple(turns), tuple(log.events))


def _read(question: str | Path | Samples, number: int) -> tuple[str, Samples]:
    if isinstance(question, str | Path):
        return Path(question).name, read_audio(question, INPUT_RATE_HZ)
    return f"question {number}", question


class _Log:
    """What happened so far; wakes up whoever waits for the next thing to happen."""

    def __init__(self, on_event: OnEvent | None, stall_s: float) -> None:
        self.events: list[tuple[float, str]] = []
        self._on_event = on_event
        self._stall_s = stall_s
        self._moved = asyncio.Event()
        self._error: Exception | None = None
        self._begin()

    def _begin(self) -> None:
        self._at: dict[str, float] = {}  # the events of this turn
        self._pcm = bytearray()
        self._done: TurnDone | None = None
        self._said = ""

    def mark(self, name: str) -> None:
        now = time.monotonic()
        self._at[name] = now
        self.events.append((now, name))
        self._moved.set()
        if self._on_event is not None:
            self._on_event(name, now)

    def fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._moved.set()

    def ended(self, _: asyncio.Task[None]) -> None:
        self.fail(EngineError("The pipeline ended before the conversation did."))

    def watch(
        self,
        transport: WavTransport,
        worker: PipelineWorker,
        chroma: ChromaRealtimeLLMService,
        assistant: LLMAssistantAggregator,
    ) -> None:
        """Listens to everything that has something to tell."""
        transport.on_turn = self.mark
        transport.on_step = self._moved.set
        transport.on_audio = self._play

        worker.add_event_handler("on_pipeline_error", self._failed)
        chroma.add_event_handler("on_reply_done", self._made)
        chroma.add_event_handler("on_user_transcript", self._written)
        assistant.add_event_handler("on_assistant_turn_stopped", self._played)

    async def _failed(self, _: PipelineWorker, frame: ErrorFrame) -> None:
        known = isinstance(frame.exception, ChromaError)
        self.fail(frame.exception if known and frame.exception else EngineError(frame.error))

    async def _made(self, _: ChromaRealtimeLLMService, done: TurnDone) -> None:
        self._done = done
        self.mark("reply_made")

    async def _written(self, _: ChromaRealtimeLLMService, text: str) -> None:
        self._said = text

    async def _played(self, _: LLMAssistantAggregator, __: AssistantTurnStoppedMessage) -> None:
        self.mark("reply_played")

    def _play(self, pcm: bytes) -> None:
        if not self._pcm:
            self.mark("first_audio")
        self._pcm += pcm
        self._moved.set()

    async def exchange(self, transport: WavTransport, name: str, samples: Samples) -> TalkTurn:
        self._begin()
        self.mark("question")
        transport.ask(samples)
        while not (self._done and "reply_played" in self._at):
            self._moved.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), self._stall_s)
            if self._error is not None:
                raise self._error
            if not self._moved.is_set():
                raise EngineError(f"{name}: nothing happened for {self._stall_s:g} s.")
            if "nothing_heard" in self._at:
                raise AudioError(
                    f"{name}: no speech was found in it. Ask with a recording of somebody who "
                    "speaks, not too quietly; noise and silence are no question."
                )
        done, seconds = self._done, len(self._pcm) / 2 / OUTPUT_RATE_HZ
        asked_at, first_at = self._at["user_stopped"], self._at.get("first_audio")
        made_s = done.timings.total_ms / 1000 or self._at["reply_made"] - asked_at
        return TalkTurn(
            question=name,
            text=done.text,
            pcm=bytes(self._pcm),
            reply_seconds=seconds,
            ttfa_ms=(first_at - asked_at) * 1000 if first_at else None,
            rtf=made_s / seconds if seconds else None,
            reason=done.reason,
            timings=done.timings,
            said=self._said,
        )
