"""One reply on its way to a client: a `ReplyStream` read, and told in the protocol's events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from chroma_plugin.errors import ChromaError, EngineBusy
from chroma_plugin.reply import AudioChunk, EndReason, ReplyStream, TextDelta, TurnDone
from chroma_plugin.server import events
from chroma_plugin.server.events import Event, new_id
from chroma_plugin.server.formats import Encoder, WireFormat
from chroma_plugin.server.items import Item
from chroma_plugin.server.protocol import Modality, ProtocolError
from chroma_plugin.server.timeline import Timeline

log = logging.getLogger(__name__)

CancelReason = Literal["turn_detected", "client_cancelled", "max_output_tokens"]

AUDIO_TOKENS_PER_SECOND = 25
"""Positions that a second of the user's speech takes in the thinker."""
CHARS_PER_TOKEN = 4
"""Of text, about: usage is told before anybody has counted."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a reply is to be.

    Attributes:
        modality: sound with its transcript, or text alone.
        wire: how its sound is written.
        voice: the name of its voice.
        max_tokens: it ends after so many, frames and pieces of text together; None: no limit.
        metadata: comes back with `response.created` and `response.done`.
        label: the client's own number of the turn, or None.
        out_of_band: it becomes no part of the conversation.
        input_tokens: what it was read from: of sound, and of text.
    """

    modality: Modality
    wire: WireFormat
    voice: str
    max_tokens: int | None = None
    metadata: dict[str, str] | None = None
    label: int | None = None
    out_of_band: bool = False
    input_tokens: tuple[int, int] = (0, 0)


def ending(reason: EndReason, cancelled_by: CancelReason | None = None) -> dict[str, str]:
    """How a reply ended in the protocol's words, as its `status_details`.

    Args:
        reason: the engine's.
        cancelled_by: what stopped it, or None.
    """
    if reason in (EndReason.END_OF_SPEECH, EndReason.REPEATED):
        return {"type": "completed"}
    if reason is EndReason.UNFINISHED:
        return {"type": "incomplete"}  # the protocol has no word for why; `chroma.done` has
    if reason is EndReason.CANCELLED and cancelled_by != "max_output_tokens":
        return {"type": "cancelled", "reason": cancelled_by or "client_cancelled"}
    return {"type": "incomplete", "reason": "max_output_tokens"}


@dataclass(slots=True)
class Outcome:
    """How a reply went, for whoever measures.

    Attributes:
        id: of the reply.
        timeline: when what happened.
        status: the protocol's word for its end; `abandoned` if its client was gone before that.
        done: the engine's account of it; None if it failed or was abandoned.
        error: why it failed, or None.
        cancelled_by: what stopped it, or None.
    """

    id: str
    timeline: Timeline
    status: str = "in_progress"
    done: TurnDone | None = None
    error: ChromaError | None = None
    cancelled_by: CancelReason | None = None


@dataclass(eq=False)
class Response:
    """One reply, from `response.created` to `response.done`.

    Args:
        plan: what it is to be.
        send: takes each event.
        add_item: makes its message a part of the conversation and tells what stood before it.
        cancel_session: stops the engine's work on it.
        timeline: of the turn that it answers; the request for it is marked now, if it was not.
    """

    plan: Plan
    send: Callable[[Event], None]
    add_item: Callable[[Item], str | None]
    cancel_session: Callable[[], None]
    id: str = field(default_factory=lambda: new_id("resp"))
    item: Item = field(default_factory=lambda: Item("assistant", status="in_progress", spoken=True))
    timeline: Timeline = field(default_factory=Timeline)

    def __post_init__(self) -> None:
        self.timeline.mark("asked")
        self.outcome = Outcome(self.id, self.timeline)
        self.item.spoken = self.plan.modality == "audio"
        self.item.label = self.plan.label
        self._chroma: dict[str, Any] = {} if self.plan.label is None else {"turn": self.plan.label}
        self._encoder = Encoder(self.plan.wire)
        self._previous: str | None = None
        self._begun = False
        self._tokens = self._frames = 0

    def announce(self) -> None:
        """Tells the client that there is a reply; its events follow when it is made."""
        self.send(events.response_created(self._as_event("in_progress"), self._chroma))

    def cancel(self, why: CancelReason) -> None:
        """Stops it; `run` then tells how it ended."""
        if self.outcome.cancelled_by is None:
            self.outcome.cancelled_by = why
            if why != "max_output_tokens":
                self.timeline.mark("interruption")
            self.cancel_session()

    async def run(self, stream: ReplyStream) -> Outcome:
        """Tells the reply, and how it ended, whatever happens."""
        self.item.turn = 0 if self.plan.out_of_band else stream.turn
        try:
            async for event in stream:
                if isinstance(event, TextDelta):
                    self._text(event)
                elif isinstance(event, AudioChunk):
                    self._audio(event)
                else:
                    self._end(event)
        except ChromaError as error:
            self._fail(error)
        except ProtocolError as error:
            self.cancel_session()
            async for _ in stream:  # to its end: until that is read it counts as speaking
                pass
            self._fail(ChromaError(error.message))
        except asyncio.CancelledError:
            self.outcome.status = "abandoned"
            self.timeline.mark("end")
            self.cancel_session()
            raise
        return self.outcome

    # -- while it speaks ---------------------------------------------------------------------

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        item = self.item.as_event()
        self._previous = self.add_item(self.item)
        self.send(events.output_item_added(self.id, item))
        if not self.plan.out_of_band:
            self.send(events.item_added(item, self._previous))
        self.send(events.content_part_added(self.id, self.item.id, self._part("")))

    def _text(self, piece: TextDelta) -> None:
        self._begin()
        self.item.pieces.append(piece)
        self.item.text = (self.item.text or "") + piece.text
        chroma = self._chroma | {"start_ms": piece.start_ms, "tokens": piece.tokens}
        tell = (
            events.output_transcript_delta
            if self.plan.modality == "audio"
            else events.output_text_delta
        )
        self.timeline.mark("first_text")
        self.send(tell(self.id, self.item.id, piece.text, chroma))
        self._tokens += piece.tokens
        self._check_limit()

    def _audio(self, chunk: AudioChunk) -> None:
        self.timeline.mark("engine_audio")
        self._begin()
        self.item.audio_ms = chunk.end_ms
        if self.plan.modality == "audio" and (data := self._encoder.push(chunk.pcm)):
            chroma = self._chroma | {"start_ms": chunk.start_ms}
            self.timeline.mark("first_audio")
            self.send(events.output_audio_delta(self.id, self.item.id, data, chroma))
        self._frames = round(chunk.end_ms / 80)
        self._check_limit()

    def _check_limit(self) -> None:
        limit = self.plan.max_tokens
        if limit is not None and self._tokens + self._frames >= limit:
            self.cancel("max_output_tokens")

    # -- how it ends -------------------------------------------------------------------------

    def _end(self, done: TurnDone) -> None:
        self.outcome.done = done
        sounds = self._begun and self.plan.modality == "audio"
        if sounds and (rest := self._encoder.push(b"", last=True)):
            chroma = self._chroma | {"start_ms": done.audio_ms}
            self.send(events.output_audio_delta(self.id, self.item.id, rest, chroma))
        details = ending(done.reason, self.outcome.cancelled_by)
        self._finish(details["type"], details, done)

    def _fail(self, error: ChromaError) -> None:
        log.warning("%s failed: %s", self.id, type(error).__name__)
        self.outcome.error = error
        code = "server_overloaded" if isinstance(error, EngineBusy) else "server_error"
        about = {"type": "server_error", "code": code, "message": str(error)}
        self._finish("failed", {"type": "failed", "error": about}, None)

    def _finish(self, status: str, details: dict[str, Any], done: TurnDone | None) -> None:
        item, text = self.item, self.item.text or ""
        item.status = "completed" if status == "completed" else "incomplete"
        if self._begun:
            if self.plan.modality == "audio":
                self.send(events.output_audio_done(self.id, item.id))
                self.send(events.output_transcript_done(self.id, item.id, text))
            else:
                self.send(events.output_text_done(self.id, item.id, text))
            self.send(events.content_part_done(self.id, item.id, self._part(text)))
            if not self.plan.out_of_band:
                self.send(events.item_done(item.as_event(), self._previous))
            self.send(events.output_item_done(self.id, item.as_event()))
        chroma = dict(self._chroma)
        if done is not None:
            chroma["done"] = asdict(done)
        elif self.outcome.error is not None:
            chroma["error"] = type(self.outcome.error).__name__
        response = self._as_event(status) | {
            "status_details": details,
            "output": [item.as_event()] if self._begun else [],
            "usage": self._usage(),
        }
        self.outcome.status = status
        self.timeline.mark("end")
        chroma["latency_ms"] = self.timeline.latency_ms(item.audio_ms)
        self.send(events.response_done(response, chroma))

    def _usage(self) -> dict[str, Any]:
        heard, read = self.plan.input_tokens
        spoken = self._frames if self.plan.modality == "audio" else 0
        return {
            "total_tokens": heard + read + spoken + self._tokens,
            "input_tokens": heard + read,
            "output_tokens": spoken + self._tokens,
            "input_token_details": {
                "audio_tokens": heard,
                "text_tokens": read,
                "cached_tokens": 0,
            },
            "output_token_details": {"audio_tokens": spoken, "text_tokens": self._tokens},
        }

    def _part(self, text: str) -> Event:
        if self.plan.modality == "audio":
            return {"type": "audio", "transcript": text}
        return {"type": "text", "text": text}

    def _as_event(self, status: str) -> Event:
        wire = self.plan.wire
        form: Event = {"type": wire.encoding}
        if wire.encoding == "audio/pcm":
            form["rate"] = wire.rate_hz
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": status,
            "status_details": None,
            "output": [],
            "output_modalities": [self.plan.modality],
            "audio": {"output": {"format": form, "voice": self.plan.voice}},
            "max_output_tokens": self.plan.max_tokens or "inf",
            "metadata": self.plan.metadata,
            "usage": None,
        }
