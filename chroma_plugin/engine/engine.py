"""Engine: the asyncio front of one worker thread that owns the model.

The event loop never waits for the model: calls are posted to the thread, events come back by
`call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chroma_plugin.config import DEFAULT_INSTRUCTIONS, EngineConfig, SamplingParams
from chroma_plugin.conversation import Message, ReplyRequest, Role
from chroma_plugin.engine.call import Call
from chroma_plugin.engine.clock import StepTotals
from chroma_plugin.engine.frames import Frames
from chroma_plugin.engine.parts import Parts, load_parts
from chroma_plugin.engine.runner import Runner
from chroma_plugin.engine.transcripts import Transcripts
from chroma_plugin.engine.voices import VoiceShelf
from chroma_plugin.engine.worker import Worker
from chroma_plugin.errors import ChromaError, EngineClosed
from chroma_plugin.reply import Sink
from chroma_plugin.session import Session
from chroma_plugin.transcript import TextSink
from chroma_plugin.voice import Voice

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine is doing, and what its caches hold. Counts go on from its start.

    Attributes:
        sessions: conversations that are open.
        speaking: replies on a row.
        waiting: replies in line.
        voices: voice prompts kept ready.
        evictions: thinker caches that had to give way so far.
        rows_free: rows that no reply is on.
        finished: replies that came to their end, whatever ended them.
        cancelled: replies that were cancelled, in line or on a row.
        expired: replies that found no free row in time.
        underruns: how often the playback of a reply ran dry.
        thinker_rows: rows of the thinker's cache, but for the one that transcripts are made in.
        thinker_rows_taken: those lent to conversations.
        thinker_cache_bytes: the whole cache; it is taken at the start, lent or not.
        backbone_cache_bytes: the cache of all rows that speak; taken at the start.
        codec_state_bytes: the codec's state of all rows; taken at the start.
        voice_bytes: what the voices kept ready take.
        transcripts: user turns that were written down so far.
        transcripts_waiting: those that are in line for it, or in work.
        steps: how long the steps took.
    """

    sessions: int
    speaking: int
    waiting: int
    voices: int
    evictions: int
    rows_free: int = 0
    finished: int = 0
    cancelled: int = 0
    expired: int = 0
    underruns: int = 0
    thinker_rows: int = 0
    thinker_rows_taken: int = 0
    thinker_cache_bytes: int = 0
    backbone_cache_bytes: int = 0
    codec_state_bytes: int = 0
    voice_bytes: int = 0
    transcripts: int = 0
    transcripts_waiting: int = 0
    steps: StepTotals = field(default_factory=StepTotals)


class Engine:
    """Loads a model and opens sessions on it.

    Example:
        ::

            async with Engine(EngineConfig(model="FlashLabs/Chroma-4B")) as engine:
                session = await engine.open_session(voice=voice)

    Args:
        config: what to load and how much to take on.
        load: makes the parts of the model; for tests and other checkpoint layouts.
    """

    def __init__(
        self,
        config: EngineConfig | None = None,
        *,
        load: Callable[[EngineConfig], Parts] = load_parts,
    ) -> None:
        self.config = config or EngineConfig()
        self._load = load
        self._worker: Worker | None = None
        self._ready: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Loads the model on the worker thread; calling it again is harmless.

        Raises:
            CheckpointError: the checkpoint cannot be found or loaded.
            ConfigError: the device is not there.
            EngineClosed: the engine was closed before.
        """
        if self._ready is None:
            loop = asyncio.get_running_loop()
            self._ready = loop.create_future()
            self._worker = Worker(self.config, self._load)
            ready = self._ready

            def resolve(error: BaseException | None) -> None:
                if ready.done():
                    return
                if error is None:
                    ready.set_result(None)
                else:
                    ready.set_exception(error)

            self._worker.start(lambda error: _hand_over(loop, resolve, error))
        await asyncio.shield(self._ready)
        self._live_worker()

    async def open_session(
        self,
        *,
        voice: Voice | None = None,
        instructions: str = DEFAULT_INSTRUCTIONS,
        sampling: SamplingParams | None = None,
        history: Iterable[Message] = (),
        max_reply_s: float | None = None,
    ) -> Session:
        """Opens a conversation; see `SpeechEngine.open_session`.

        Raises:
            ConfigError: a setting is of the wrong kind or out of range.
            EngineBusy: no session was closed before the deadline.
            EngineClosed: the engine was not started, or is closed.
            EngineFailed: the engine is dead.
            VoiceError: the voice does not fit the model.
        """
        worker, loop = self._live_worker(), asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()

        def resolve(error: ChromaError | None) -> None:
            if opened.done():
                return
            if error is None:
                opened.set_result(None)
            else:
                opened.set_exception(error)

        voice = voice or Voice.default()
        call = worker.new_call(alive=lambda: not loop.is_closed())
        conversation = EngineConversation(worker, call, loop)
        conversation.set_instructions(instructions)
        session = Session(  # refuses what it cannot use before anything is taken up
            conversation,
            voice=voice,
            instructions=instructions,
            sampling=sampling or SamplingParams(),
            history=history,
            max_reply_s=max_reply_s,
            max_turn_s=self.config.max_turn_s,
        )
        worker.post(lambda: worker.open(call, voice, lambda e: worker.mail.put(loop, resolve, e)))
        try:
            await opened
        except asyncio.CancelledError:
            conversation.close()
            raise
        return session

    async def close(self) -> None:
        """Ends every session and frees the model; calling it again is harmless."""
        if self._worker is not None:
            await asyncio.to_thread(self._worker.stop)

    async def __aenter__(self) -> Engine:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def stats(self) -> EngineStats:
        """What the engine is doing right now; to be read from any thread, it waits for nothing.

        The figures are read one by one while the engine goes on, so they may be a step apart.
        """
        worker = self._live_worker()
        scheduler = worker.scheduler
        runner: Runner | None = getattr(worker, "runner", None)
        voices: VoiceShelf | None = getattr(worker, "voices", None)
        transcripts: Transcripts | None = getattr(worker, "transcripts", None)
        frames: Frames | None = getattr(worker, "frames", None)
        if not (runner and frames) or voices is None or transcripts is None:  # it ended just now
            raise worker.refusal or EngineClosed("The engine is closed; make a new one.")
        speaking = len(scheduler.speaking)
        return EngineStats(
            sessions=len(worker.calls),
            speaking=speaking,
            waiting=len(scheduler.waiting),
            voices=len(voices),
            evictions=worker.seats.evictions,
            rows_free=scheduler.rows - speaking,
            finished=scheduler.finished,
            cancelled=scheduler.cancelled,
            expired=scheduler.expired,
            underruns=scheduler.underruns,
            thinker_rows=self.config.thinker_cache_rows,
            thinker_rows_taken=len(worker.seats),
            thinker_cache_bytes=runner.thinker_cache.nbytes,
            backbone_cache_bytes=runner.backbone_cache.nbytes,
            codec_state_bytes=runner.decode_state.nbytes,
            voice_bytes=voices.nbytes,
            transcripts=transcripts.made,
            transcripts_waiting=len(transcripts),
            steps=frames.tally.totals(),
        )

    def _live_worker(self) -> Worker:
        if self._worker is None:
            raise EngineClosed("The engine was not started; call `await engine.start()` first.")
        if (refusal := self._worker.refusal) is not None:
            raise refusal
        if self._ready is None or not self._ready.done():
            raise EngineClosed("The engine is still loading; wait for `await engine.start()`.")
        return self._worker


def _hand_over(
    loop: asyncio.AbstractEventLoop, receiver: Callable[[Any], None], it: object
) -> None:
    try:
        loop.call_soon_threadsafe(receiver, it)
    except RuntimeError:
        log.debug("the event loop that started the engine is closed")


class EngineConversation:
    """A session's `Conversation` with the worker: every call is posted and returns at once."""

    def __init__(self, worker: Worker, call: Call, loop: asyncio.AbstractEventLoop) -> None:
        self._worker, self._call, self._loop = worker, call, loop

    def push_audio(self, samples: NDArray[np.float32]) -> None:
        def hear() -> None:
            self._call.hear(samples)
            self._call.listen()

        self._post(hear)

    def clear_audio(self) -> None:
        self._post(self._call.unhear)

    def commit_audio(self, turn: int) -> None:
        self._post(lambda: self._call.commit(turn))

    def add_text(self, role: Role, text: str) -> None:
        self._post(lambda: self._call.add_text(role, text))

    def set_instructions(self, instructions: str) -> None:
        self._post(lambda: self._call.set_system(instructions))

    def start_reply(self, request: ReplyRequest, sink: Sink) -> None:
        worker, asked_s = self._worker, time.monotonic()

        def emit(event: Any) -> None:
            worker.mail.put(self._loop, sink, event)

        def ask() -> None:
            worker.reply(self._call, request, emit, asked_s)

        worker.post(lambda: worker.guard(self._call, ask, emit))

    def cancel_reply(self, turn: int) -> None:
        self._post(lambda: self._worker.cancel(self._call, turn))

    def keep_reply(self, turn: int, tokens: int) -> None:
        self._post(lambda: self._call.keep_reply(turn, tokens))

    def transcribe(self, turn: int, sink: TextSink) -> None:
        worker = self._worker

        def emit(it: Any) -> None:
            worker.mail.put(self._loop, sink, it)

        def ask() -> None:
            worker.transcripts.ask(self._call, turn, emit)

        worker.post(lambda: worker.guard(self._call, ask, emit))

    def cancel_transcript(self, turn: int) -> None:
        self._post(lambda: self._worker.transcripts.cancel(self._call, turn))

    def close(self) -> None:
        self._worker.post(lambda: self._worker.end(self._call))

    def _post(self, command: Callable[[], None]) -> None:
        self._worker.post(lambda: self._worker.guard(self._call, command))
