"""The engine's thread: it owns the model and does everything that touches it, one thing at a time.

One round of the loop: obey commands, then read a piece of somebody's prompt, make one frame for
everyone who speaks or, where that leaves time, go on with a transcript. It knows nothing of asyncio
beyond handing events to an event loop.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from chroma_plugin.config import EngineConfig
from chroma_plugin.conversation import ReplyRequest
from chroma_plugin.engine.call import Call
from chroma_plugin.engine.frames import Frames, call_of, reply_of
from chroma_plugin.engine.graphs import own_stream, set_threads
from chroma_plugin.engine.mail import Mail
from chroma_plugin.engine.parts import Parts
from chroma_plugin.engine.rows import MAX_SAID
from chroma_plugin.engine.runner import PIECE_POSITIONS, Runner
from chroma_plugin.engine.scheduler import Move, Scheduler, Ticket
from chroma_plugin.engine.seats import Seats
from chroma_plugin.engine.transcripts import Transcripts
from chroma_plugin.engine.utterance import Emit, Utterance
from chroma_plugin.engine.voices import VoiceShelf, codec_identity
from chroma_plugin.errors import (
    ChromaError,
    ConfigError,
    EngineBusy,
    EngineClosed,
    EngineError,
    EngineFailed,
)
from chroma_plugin.model.listener import Listener
from chroma_plugin.model.memory import cache_bytes
from chroma_plugin.model.quantize import count_weights
from chroma_plugin.voice import Voice

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Opening:
    """A session that waits for room."""

    call: Call
    voice: Voice
    done: Callable[[ChromaError | None], None]
    deadline_s: float


class Worker:
    """The loop.

    Args:
        config: limits.
        load: makes the parts, on the worker's thread.
    """

    def __init__(self, config: EngineConfig, load: Callable[[EngineConfig], Parts]) -> None:
        self.config, self._load = config, load
        self.mail = Mail()
        self.failure: EngineFailed | None = None
        self.closed = False
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._door = threading.Lock()
        self._over = False  # the thread takes nothing from the inbox any more
        self._thread = threading.Thread(target=self._run, name="chroma-engine", daemon=True)
        self._loaded: Callable[[BaseException | None], None] = lambda error: None
        self.scheduler = Scheduler(config.max_replies, config.run_ahead_s)
        self.seats = Seats(config.thinker_cache_rows)
        self.calls: list[Call] = []
        self._openings: deque[_Opening] = deque()
        self.parts: Parts
        self.runner: Runner
        self.frames: Frames
        self.transcripts: Transcripts
        self.voices: VoiceShelf

    @property
    def refusal(self) -> ChromaError | None:
        """Why nothing more can be asked of it."""
        if self.failure is None and self.closed:
            return EngineClosed("The engine is closed; make a new one.")
        return self.failure

    # -- from other threads ------------------------------------------------------------------

    def start(self, loaded: Callable[[BaseException | None], None]) -> None:
        """Starts the thread; `loaded` is called there when the model is ready, or failed to be."""
        self._loaded = loaded
        self._thread.start()

    def post(self, command: Callable[[], None]) -> None:
        """Has something done on the thread, after all that was posted before.

        What comes after the thread's end is done here and now: it is refused.
        """
        with self._door:
            if not self._over:
                self._inbox.put(command)
                return
            command()
            self.mail.send()

    def stop(self) -> None:
        """Ends the thread and waits for it."""
        self.post(self._close)
        if self._thread.is_alive():
            self._thread.join()

    # -- the loop ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._live()
        finally:
            with self._door:  # nobody is left without an answer
                self._over = True
                self._obey()
                self.mail.send()

    @torch.inference_mode()
    def _live(self) -> None:
        try:
            self.parts = self._load(self.config)
            model = self.parts.model
            set_threads(model.device, count_weights(model), self.config.num_threads)
        except BaseException as error:
            self.closed = True
            self._loaded(error)
            return
        with own_stream(self.parts.model.device):
            self._work()

    def _work(self) -> None:
        try:
            self.runner = self._new_runner()
            self.frames = Frames(self.runner, self.scheduler)
            self.transcripts = Transcripts(self.runner)
            codec = codec_identity(self.parts.model.codec)
            self.voices = VoiceShelf(self.runner, self.config, codec, self.post)
            self._warm_up()
        except BaseException as error:
            self.closed = True
            self._loaded(error)
            return
        self._loaded(None)
        try:
            while not self.closed:
                self._round()
                self.mail.send()
        except BaseException as error:
            log.exception("the engine failed")
            self.failure = EngineFailed(
                f"The engine failed ({type(error).__name__}: {error}); its sessions are lost. "
                "Make a new Engine; the log has the details."
            )
            self.failure.__cause__ = error
            self._end_everything(self.failure)

    def _new_runner(self) -> Runner:
        parts, config = self.parts, self.config
        try:
            return Runner(parts.model, parts.prompt, config)
        except torch.OutOfMemoryError as error:
            wanted = cache_bytes(parts.model.config, parts.model.dtype, config) / 1e9
            raise ConfigError(
                f"The caches of {config.max_replies} replies and {config.thinker_cache_rows} "
                f"conversations take {wanted:.1f} GB, more than is left beside the weights. Lower "
                "EngineConfig.max_replies or thinker_rows, or set quantize; `chroma-plugin doctor` "
                "says what fits."
            ) from error

    def _warm_up(self) -> None:
        """Runs every part once, so that the first reply does not pay for lazy initialisation."""
        self.voices.ready(Voice.default())
        self.runner.capture()
        for think in (True, False):
            self.runner.step(1, think=think, thinker_span=1, span=1).wait()

    def _round(self) -> None:
        """One thing at a time, and always the one that hurries most."""
        self._obey()
        if self.closed:
            return
        now = time.monotonic()
        self._expire(now)
        for slot in self.scheduler.admit(lambda ticket: reply_of(ticket).ready):
            self.frames.begin(slot)
        self.scheduler.begin_beat(now)
        call = self._next_prompt()
        awaited = call is not None and call.reply is not None and self.scheduler.has_room
        move = self.scheduler.next_move(
            now, unread=call is not None, awaited=awaited, unwritten=bool(self.transcripts)
        )
        if move is Move.STEP:
            self.frames.step(now)
        elif move is Move.WRITE:
            self.transcripts.step()
            self.scheduler.has_written()
            self.frames.settle()
        elif call is not None:
            self._read_prompt(call)
            self.frames.settle()
        elif not self.frames.settle():
            self._rest(now)

    def _obey(self) -> None:
        """Runs the posted commands."""
        try:
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            return

    def _rest(self, now: float) -> None:
        """Waits until something is asked, a deadline passes or a stream needs more audio."""
        self.mail.send()  # nobody waits for what lies here
        waits = [o.deadline_s - now for o in self._openings]
        waits += [t.deadline_s - now for t in self.scheduler.waiting]
        if (wake := self.scheduler.wakes_in_s(now)) is not None:
            waits.append(wake)
        try:
            self._inbox.get(timeout=max(min(waits), 0.001) if waits else None)()
        except queue.Empty:
            return

    def _expire(self, now: float) -> None:
        while self._openings and now > self._openings[0].deadline_s:
            self._openings.popleft().done(
                EngineBusy(
                    f"All {self.config.max_sessions} sessions of this engine are open and none was "
                    f"closed within {self.config.queue_timeout_s:g} s. Try again later, or raise "
                    "EngineConfig.max_sessions."
                )
            )
        for ticket in self.scheduler.expire(now):
            reply_of(ticket).emit(
                EngineBusy(
                    f"All {self.config.max_replies} rows of this engine are speaking and none "
                    f"became free within {self.config.queue_timeout_s:g} s. Try again later, or "
                    "raise EngineConfig.max_replies."
                )
            )
            call_of(ticket).end_reply()

    # -- reading prompts ---------------------------------------------------------------------

    def _next_prompt(self) -> Call | None:
        """Whose prompt is read next: first those that wait for their reply, then listeners."""
        room = self.config.thinker_positions  # what does not fit waits until a reply makes room
        unread = [c for c in self.calls if c.dialogue.cached < c.dialogue.positions <= room]
        waiting = [c for c in unread if c.reply is not None and c.reply.hidden is None]
        waiting.sort(key=lambda c: c.reply.asked_s if c.reply else 0.0)
        listening = [c for c in unread if c.reply is None]
        return next((c for c in waiting + listening if self.seats.take(c)), None)

    def _read_prompt(self, call: Call) -> None:
        dialogue, reply, clock = call.dialogue, call.reply, self.runner.new_clock()
        assert call.thinker_row is not None
        with clock.part("prefill"):
            embeds = dialogue.pending(PIECE_POSITIONS)
            hidden = self.runner.prefill(call.thinker_row, embeds, dialogue.cached)
        dialogue.cached += len(embeds)
        self.scheduler.has_read()
        if reply is not None:
            reply.reading.append(clock)
            if dialogue.cached == dialogue.positions:
                reply.hidden = hidden

    # -- commands ----------------------------------------------------------------------------

    def open(self, call: Call, voice: Voice, done: Callable[[ChromaError | None], None]) -> None:
        """Lets a conversation in, now or when another one has ended."""
        if self.refusal is not None:
            return done(self.refusal)
        for gone in [c for c in self.calls if not c.alive()]:
            self.end(gone)
        deadline = time.monotonic() + self.config.queue_timeout_s
        self._openings.append(_Opening(call, voice, done, deadline))
        self._open_next()

    def _open_next(self) -> None:
        while self._openings and len(self.calls) < self.config.max_sessions:
            opening = self._openings.popleft()
            try:
                self.voices.ready(opening.voice)
            except Exception as error:
                opening.done(_told(error, "The voice cannot be made ready"))
                continue
            self.calls.append(opening.call)
            opening.done(None)

    def end(self, call: Call) -> None:
        """Ends a conversation and frees what it holds."""
        self._openings = deque(o for o in self._openings if o.call is not call)
        if call not in self.calls:
            return
        self.cancel(call)
        self.transcripts.cancel(call)
        self.calls.remove(call)
        self.seats.release(call)
        self._open_next()

    def guard(
        self, call: Call, command: Callable[[], None], emit: Emit = lambda event: None
    ) -> None:
        """Runs a conversation's command; what goes wrong in it is that conversation's alone.

        Args:
            call: the conversation.
            command: what it asks for.
            emit: tells the reader of the reply that is asked for, if one is.
        """
        refusal = call.broken or self.refusal
        if refusal is not None:
            return emit(refusal)
        try:
            command()
        except Exception as error:
            log.exception("a conversation failed")
            call.broken = EngineError(
                f"This conversation failed ({type(error).__name__}: {error}) and cannot go on; "
                "close it and open another session. The log has the details."
            )
            emit(call.broken)
            if call.reply is not None:
                call.reply.emit(call.broken)
                self.cancel(call)

    def reply(self, call: Call, request: ReplyRequest, emit: Emit, asked_s: float) -> None:
        """Queues a reply."""
        if call not in self.calls:
            return emit(EngineClosed("The conversation was ended before its reply began."))
        self.cancel(call)
        try:
            say = None if request.say is None else self._spell(request.say)
            entries = call.open_reply(request.turn, request.instructions)
            prompt, config = self.parts.prompt, self.config
            sizes = self.parts.model.config
            reply = Utterance.new(request, emit, entries, say, asked_s, prompt, sizes, config)
            call.reply = reply
            begin = time.perf_counter()
            reply.voice = self.voices.ready(request.voice)
            reply.spend("voice", (time.perf_counter() - begin) * 1000)
            room = config.thinker_positions - reply.most_tokens()
            if not call.dialogue.forget_beyond(room):
                raise ConfigError(
                    f"The instructions and the last turn take more than the {max(room, 0)} "
                    "positions that are left beside the reply. Shorten the instructions or raise "
                    "EngineConfig.thinker_positions."
                )
        except ChromaError as error:
            call.end_reply()
            return emit(error)
        deadline = asked_s + self.config.queue_timeout_s
        self.scheduler.submit(Ticket(call, asked_s, deadline))

    def _spell(self, text: str) -> list[int]:
        """The tokens of a text to be spoken word for word."""
        ids = self.parts.prompt.encode(text)
        if len(ids) >= min(MAX_SAID, self.config.thinker_positions // 2):
            raise ConfigError(
                f"say() was given {len(ids)} tokens of text, which is too long for one reply; "
                "say it in several pieces."
            )
        return ids

    def cancel(self, call: Call, turn: int | None = None) -> None:
        """Stops a conversation's reply, if it still is this one."""
        if call.reply is None or turn not in (None, call.reply.request.turn):
            return
        slot = self.scheduler.withdraw(call)
        if slot is not None:
            self.runner.stop(slot.row)
        call.end_reply()

    # -- the rest ----------------------------------------------------------------------------

    def new_call(self, alive: Callable[[], bool]) -> Call:
        """A conversation without a row yet; it ends by itself once nobody is left to hear it."""
        parts, tower = self.parts, self.runner.tower
        new_listener = lambda: Listener(parts.mel, tower)  # noqa: E731
        return Call(parts.prompt, parts.model.embed_tokens, new_listener, alive)

    def _close(self) -> None:
        self.closed = True
        self._end_everything(EngineClosed("The engine was closed while this was going on."))

    def _end_everything(self, error: ChromaError) -> None:
        """Tells everyone who waits that there is nothing to wait for, and lets go of the model."""
        for opening in self._openings:
            opening.done(error)
        for call in self.calls:
            if call.reply is not None:
                call.reply.emit(error)
                call.reply = None
        if hasattr(self, "transcripts"):
            self.transcripts.end(error)
        self._openings.clear()
        self.calls.clear()
        self.scheduler = Scheduler(self.config.max_replies)
        self.mail.send()
        if hasattr(self, "runner"):
            del self.runner, self.frames, self.transcripts, self.parts, self.voices


def _told(error: Exception, what: str) -> ChromaError:
    if isinstance(error, ChromaError):
        return error
    log.error("%s", what, exc_info=error)
    return EngineError(f"{what} ({type(error).__name__}: {error}). The log has the details.")
