"""One reply as its reader sees it: its events, and the stream that puts them in order.

Knows nothing of sessions, engines or hosts.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from chroma_plugin.audio import FRAME_MS, OUTPUT_RATE_HZ
from chroma_plugin.errors import ChromaError


class EndReason(StrEnum):
    """Why a reply ended."""

    END_OF_SPEECH = "end_of_speech"  # the model said so
    MAX_SECONDS = "max_seconds"  # the cap on the length of a reply
    POSITIONS = "positions"  # the backbone's positions are used up
    REPEATED = "repeated"  # the same frame again and again
    UNFINISHED = "unfinished"  # the model stopped before the end of the text that it was to say
    CANCELLED = "cancelled"  # cancel(), a newer reply, or aclose()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the reply's text.

    Attributes:
        text: the piece, spaces included; the pieces of a reply add up to its text.
        start_ms: where in the reply's audio it is spoken. An estimate: the model aligns text and
            audio only loosely, see `TextClock`.
        tokens: thinker tokens that the piece stands for.
    """

    text: str
    start_ms: float
    tokens: int = 1


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """A stretch of the reply's audio: PCM16, little endian, mono, 24 kHz, whole 80 ms frames.

    Attributes:
        pcm: the samples.
        start_ms: its place in the reply.
    """

    pcm: bytes
    start_ms: float

    @property
    def duration_ms(self) -> float:
        return len(self.pcm) / 2 / OUTPUT_RATE_HZ * 1000

    @property
    def end_ms(self) -> float:
        return self.start_ms + self.duration_ms


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of a reply went, in ms on the engine's clock, from the call that asked for it.

    `prefill_ms` is what was left to understand after the end of the turn; the parts are sums over
    the steps that this reply took part in, so with other rows in the batch they overlap. Backbone
    and depth decoder together are `frame_ms` where one CUDA graph holds both of them.
    """

    queued_ms: float = 0.0
    voice_ms: float = 0.0
    prefill_ms: float = 0.0
    first_audio_ms: float = 0.0
    thinker_ms: float = 0.0
    backbone_ms: float = 0.0
    depth_ms: float = 0.0
    frame_ms: float = 0.0
    codec_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class TurnDone:
    """The last event of every reply that did not fail.

    Attributes:
        reason: why it ended.
        text: all of its text; what was handed out of it, if it was cancelled.
        audio_ms: the length of its audio; what was handed out of it, if it was cancelled.
        tokens: thinker tokens made.
        frames: audio frames made.
        user_audio_ms: what the user said in this turn.
        unheard_user_ms: what was dropped of it because the turn was too long.
        timings: where the time went.
    """

    reason: EndReason
    text: str = ""
    audio_ms: float = 0.0
    tokens: int = 0
    frames: int = 0
    user_audio_ms: float = 0.0
    unheard_user_ms: float = 0.0
    timings: Timings = field(default_factory=Timings)

    @property
    def whole(self) -> bool:
        """The model said all that it wanted to; otherwise text may be left that nobody heard."""
        return self.reason is EndReason.END_OF_SPEECH and self.audio_ms > 0


def add_up(texts: Iterable[TextDelta]) -> tuple[str, int]:
    """The text of some pieces, and the tokens that it stands for."""
    pieces = list(texts)
    return "".join(t.text for t in pieces), sum(t.tokens for t in pieces)


def covered(texts: list[TextDelta], heard: str) -> list[TextDelta]:
    """The pieces at the beginning that `heard` covers; white space does not count."""
    wanted, length, kept = len("".join(heard.split())), 0, []
    for piece in texts:
        if length >= wanted:
            break
        kept.append(piece)
        length += len("".join(piece.text.split()))
    return kept


ReplyEvent = TextDelta | AudioChunk | TurnDone
Sink = Callable[[ReplyEvent | ChromaError], None]


@dataclass(slots=True)
class Turn:
    """One exchange, with the number that makes late results stale."""

    number: int
    user_audio_ms: float = 0.0
    unheard_user_ms: float = 0.0


class TextClock:
    """Estimates where in a reply's audio its text is spoken.

    The model makes one text token per two frames (160 ms), faster than anyone speaks, so the
    step in which a token was made is only the earliest possible place. The reference clip tells
    how fast this voice speaks; text is placed at that rate, never before its step.

    Args:
        chars_per_second: the voice's speaking rate.
    """

    def __init__(self, chars_per_second: float) -> None:
        self._ms_per_char = 1000.0 / chars_per_second
        self._now_ms = 0.0

    def place(self, text: str, made_ms: float) -> float:
        """The place in ms of the next piece of text, which was made at `made_ms` of the audio."""
        start_ms = max(self._now_ms, made_ms)
        self._now_ms = start_ms + len(text) * self._ms_per_char
        return start_ms


class ReplyStream:
    """The events of one reply, in the order in which they are heard.

    An async iterator of `TextDelta`, `AudioChunk` and, last, one `TurnDone`; the text comes just
    before the audio in which it is spoken. Iterating raises `EngineBusy`, `EngineFailed` or
    another `ChromaError` if the reply could not be made. One reader.
    """

    def __init__(self, turn: Turn, on_settled: Callable[[ReplyStream, TurnDone], None]) -> None:
        self.turn = turn.number
        self.user_turn = turn
        """What it answers, as `Session.transcribe` takes it."""
        self._on_settled = on_settled
        self._ready: deque[ReplyEvent] = deque()
        self._waiting_text: deque[TextDelta] = deque()
        self._wake = asyncio.Event()
        self._made: TurnDone | None = None  # the engine has sent everything
        self._error: ChromaError | None = None
        self._ended = False  # the reader has had the last event, or will get no other
        self._given: list[TextDelta] = []  # handed out: the measure of what was heard
        self._made_ms = 0.0
        self.delivered_ms = 0.0
        """How much audio has been handed to the reader, less what was cut off it again."""

    @property
    def ended(self) -> bool:
        """True once the reader has had the last event, an error or a cancellation."""
        return self._ended

    def __aiter__(self) -> AsyncIterator[ReplyEvent]:
        return self

    async def __anext__(self) -> ReplyEvent:
        while not self._ready:
            if self._error is not None and not self._ended:
                self._ended = True
                self._on_settled(self, self._cut())
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        event = self._ready.popleft()
        if isinstance(event, AudioChunk):
            self.delivered_ms = event.end_ms
        elif isinstance(event, TextDelta):
            self._given.append(event)
        else:
            self._ended = True
        return event

    # -- the engine's side, by way of the session --------------------------------------------

    def put(self, event: ReplyEvent | ChromaError) -> None:
        """Takes an event of the engine; late ones are dropped."""
        if self._ended or self._made is not None or self._error is not None:
            return
        if isinstance(event, TextDelta):
            self._waiting_text.append(event)
            return
        if isinstance(event, AudioChunk):
            self._release_text(event.end_ms)
            self._ready.append(event)
            self._made_ms = event.end_ms
        elif isinstance(event, TurnDone):
            if event.whole:
                self._release_text(float("inf"))
            elif self._waiting_text:  # cut off before it was spoken
                self._waiting_text.clear()
                text, tokens = add_up(self._released())
                event = replace(event, text=text, tokens=tokens)
            done = replace(
                event,
                user_audio_ms=self.user_turn.user_audio_ms,
                unheard_user_ms=self.user_turn.unheard_user_ms,
            )
            self._made = done
            self._ready.append(done)
            self._on_settled(self, done)
        else:
            self._error = event  # settled when the reader gets it, or by a cancel before that
        self._wake.set()

    def _release_text(self, before_ms: float) -> None:
        while self._waiting_text and self._waiting_text[0].start_ms < before_ms:
            text = self._waiting_text.popleft()
            if before_ms == float("inf"):  # spoken faster than estimated: it was within the audio
                within_ms = math.nextafter(self._made_ms, 0.0)
                text = replace(text, start_ms=min(text.start_ms, within_ms))
            self._ready.append(text)

    def cancel(self) -> bool:
        """Ends the stream at what was handed out; False if it had ended before."""
        if self._ended or (self._made and self._made.reason == EndReason.CANCELLED):
            return False
        self._error = None  # nobody waits for it any more
        self._ready.clear()
        self._waiting_text.clear()
        done = self._cut()
        self._made = done
        self._ready.append(done)
        self._wake.set()
        return True

    def _released(self) -> list[TextDelta]:
        """The text that has or will be handed out."""
        return [*self._given, *(e for e in self._ready if isinstance(e, TextDelta))]

    def _cut(self) -> TurnDone:
        """The end of a reply that stops at what was handed out."""
        text, tokens = add_up(self._given)
        return TurnDone(
            reason=EndReason.CANCELLED,
            text=text,
            audio_ms=self.delivered_ms,
            tokens=tokens,
            frames=round(self.delivered_ms / FRAME_MS),
            user_audio_ms=self.user_turn.user_audio_ms,
            unheard_user_ms=self.user_turn.unheard_user_ms,
        )

    def texts_before(self, heard_ms: float) -> list[TextDelta]:
        """The text handed out whose estimated place lies before `heard_ms`."""
        return [t for t in self._given if t.start_ms < heard_ms]

    def keep(self, texts: list[TextDelta], heard_ms: float) -> None:
        """Forgets what was handed out but not heard, so that a later cut cannot bring it back."""
        self._given = texts
        self.delivered_ms = min(self.delivered_ms, heard_ms)
