"""Spoken questions through a whole Pipecat pipeline, from files to a reply.

`talk` is what the command line and the demo run: Silero VAD, both aggregators and
`ChromaRealtimeLLMService` between a microphone and a loudspeaker that are made of files. With
``fast`` nothing waits for the clock: VAD counts frames, and so does the end of a question.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    OutputAudioRawFrame,
    StartFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    AssistantTurnStoppedMessage,
    LLMAssistantAggregator,
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import BaseTransport, TransportParams
from pipecat.turns.types import ProcessFrameResult
from pipecat.turns.user_start import VADUserTurnStartStrategy
from pipecat.turns.user_stop import BaseUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.workers.runner import WorkerRunner

from chroma_plugin.audio import INPUT_RATE_HZ, OUTPUT_RATE_HZ, Samples, float_to_pcm, read_audio
from chroma_plugin.config import SamplingParams
from chroma_plugin.errors import AudioError, ChromaError, EngineError
from chroma_plugin.pipecat import ChromaRealtimeLLMService
from chroma_plugin.reply import EndReason, Timings, TurnDone
from chroma_plugin.session import SpeechEngine
from chroma_plugin.voice import Voice

FRAME_S = 0.02
FRAME_BYTES = round(FRAME_S * INPUT_RATE_HZ) * 2
NO_SPEECH_AFTER_S = 1.0
"""Silence after a question in which VAD must have found its speech."""

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
    """

    question: str
    text: str
    pcm: bytes
    reply_seconds: float
    ttfa_ms: float | None
    rtf: float | None
    reason: EndReason
    timings: Timings


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
        assistant.add_event_handler("on_assistant_turn_stopped", self._played)

    async def _failed(self, _: PipelineWorker, frame: ErrorFrame) -> None:
        known = isinstance(frame.exception, ChromaError)
        self.fail(frame.exception if known and frame.exception else EngineError(frame.error))

    async def _made(self, _: ChromaRealtimeLLMService, done: TurnDone) -> None:
        self._done = done
        self.mark("reply_made")

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
        )


class WavTransport(BaseTransport):
    """A microphone and a loudspeaker made of samples.

    Args:
        questions: what the microphone says, 16 kHz mono; silence follows.
        fast: say it as fast as the aggregators take it and play without waiting. Needs the
            `turn_strategies`; without ``fast`` any will do.

    Attributes:
        on_turn: called with ``user_started``, ``user_stopped``, or ``nothing_heard`` when a
            question was over and no turn had begun; only with the `turn_strategies`.
        on_step: called for each frame that was heard; only with the `turn_strategies`.
        on_audio: called with what the loudspeaker plays.
    """

    def __init__(self, *questions: Samples, fast: bool = False) -> None:
        super().__init__()
        self.on_turn: Callable[[str], None] = lambda name: None
        self.on_step: Callable[[], None] = lambda: None
        self.on_audio: Callable[[bytes], None] = lambda pcm: None
        self.pcm = bytearray()
        """Everything played so far: PCM16, mono, 24 kHz."""
        self._microphone = _Microphone(self, fast)
        self._loudspeaker = _Loudspeaker(self, fast)
        for samples in questions:
            self.ask(samples)

    def input(self) -> BaseInputTransport:
        """The microphone."""
        return self._microphone

    def output(self) -> BaseOutputTransport:
        """The loudspeaker."""
        return self._loudspeaker

    def ask(self, samples: Samples) -> None:
        """Says one more question."""
        self._microphone.say(float_to_pcm(samples))

    @property
    def turn_strategies(self) -> UserTurnStrategies:
        """Strategies for the user aggregator by which a question is one turn, at any speed."""
        return UserTurnStrategies(
            start=[VADUserTurnStartStrategy()], stop=[_QuestionEnd(self, self._microphone)]
        )


@dataclass
class _Silence(InputAudioRawFrame):
    """What a microphone hears when nobody speaks into it: after a question."""


class _Microphone(BaseInputTransport):
    """Says what it was given, in frames of 20 ms, then silence."""

    def __init__(self, transport: WavTransport, fast: bool) -> None:
        rate = TransportParams(audio_in_enabled=True, audio_in_sample_rate=INPUT_RATE_HZ)
        super().__init__(rate)
        self._transport = transport
        self._fast = fast
        self._script: deque[bytes] = deque()
        self._resting = fast  # nothing to say and nobody waits for silence
        self._resume = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def say(self, pcm: bytes) -> None:
        self._script.extend(
            pcm[i : i + FRAME_BYTES].ljust(FRAME_BYTES, b"\0")
            for i in range(0, len(pcm), FRAME_BYTES)
        )
        self._resting = False
        self._resume.set()

    def heard(self) -> None:
        """The aggregator has dealt with a frame, and all that it set off is in its queue."""
        self._resume.set()

    def rest(self) -> None:
        self._resting = self._fast and not self._script

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)
        self._task = self._task or self.create_task(self._speak())

    async def stop(self, frame: EndFrame) -> None:
        await self._hush()
        await super().stop(frame)

    async def cancel(self, frame: CancelFrame) -> None:
        await self._hush()
        await super().cancel(frame)

    async def cleanup(self) -> None:
        await self._hush()
        await super().cleanup()  # type: ignore[no-untyped-call]

    async def _hush(self) -> None:
        if self._task is not None:
            task, self._task = self._task, None
            await self.cancel_task(task)

    async def _speak(self) -> None:
        due = time.monotonic()
        while True:
            self._resume.clear()
            if not self._resting:
                await self.push_audio_frame(self._next_frame())
            if self._fast:  # one at a time: what a frame sets off comes before the next frame
                await self._resume.wait()
            else:
                due += FRAME_S
                await asyncio.sleep(due - time.monotonic())

    def _next_frame(self) -> InputAudioRawFrame:
        if self._script:
            return InputAudioRawFrame(self._script.popleft(), INPUT_RATE_HZ, 1)
        return _Silence(bytes(FRAME_BYTES), INPUT_RATE_HZ, 1)


class _QuestionEnd(BaseUserTurnStopStrategy):
    """Ends the user's turn in the silence after a question, when VAD hears no voice any more.

    So a pause inside a question does not end it, however long, and no clock takes part.
    """

    def __init__(self, transport: WavTransport, microphone: _Microphone) -> None:
        super().__init__()
        self._transport = transport
        self._microphone = microphone
        self._voice = False
        self._in_turn = False
        self._answered = False  # the question that was said last has been a turn
        self._silent_s = 0.0

    async def process_frame(self, frame: Frame) -> ProcessFrameResult:
        if isinstance(frame, VADUserStartedSpeakingFrame):
            self._voice = True
        elif isinstance(frame, VADUserStoppedSpeakingFrame):
            self._voice = False
        elif isinstance(frame, _Silence):
            self._silent_s += FRAME_S
            if self._in_turn and not self._voice:
                await self.trigger_user_turn_stopped()
            elif not self._in_turn and self._silent_s >= NO_SPEECH_AFTER_S:
                self._microphone.rest()
                if not self._answered:
                    self._answered = True
                    self._transport.on_turn("nothing_heard")
            self._step()
        elif isinstance(frame, InputAudioRawFrame):
            if self._silent_s:  # a question begins
                self._silent_s, self._answered = 0.0, False
            self._step()
        return ProcessFrameResult.CONTINUE

    def _step(self) -> None:
        self._transport.on_step()
        self._microphone.heard()

    async def handle_user_turn_started(self) -> None:
        self._in_turn = self._answered = True
        self._transport.on_turn("user_started")

    async def handle_user_turn_stopped(self) -> None:
        self._in_turn = False
        self._microphone.rest()
        self._transport.on_turn("user_stopped")


class _Loudspeaker(BaseOutputTransport):
    """Plays at the pace of sound, or without waiting."""

    def __init__(self, transport: WavTransport, fast: bool) -> None:
        params = TransportParams(
            audio_out_enabled=True,
            audio_out_sample_rate=OUTPUT_RATE_HZ,
            audio_out_end_silence_secs=0,
        )
        super().__init__(params)
        self._transport = transport
        self._fast = fast
        self._plays_until = 0.0

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        self._transport.pcm += frame.audio
        self._transport.on_audio(frame.audio)
        if not self._fast:
            seconds = len(frame.audio) / 2 / frame.sample_rate
            self._plays_until = max(self._plays_until, time.monotonic()) + seconds
            await asyncio.sleep(self._plays_until - time.monotonic())
        return True
