"""A session's `Conversation` with a server: every call becomes an event, every event a result."""

from __future__ import annotations

import asyncio
import base64
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chroma_plugin import errors
from chroma_plugin.audio import float_to_pcm
from chroma_plugin.client.line import Event, Line
from chroma_plugin.client.memory import Entry, Memory
from chroma_plugin.conversation import ReplyRequest, Role
from chroma_plugin.errors import ChromaError, EngineError, VoiceError
from chroma_plugin.reply import AudioChunk, EndReason, Sink, TextDelta, Timings, TurnDone
from chroma_plugin.transcript import TextSink
from chroma_plugin.voice import Voice

log = logging.getLogger(__name__)

PIECE_BYTES = 320_000
"""Of one append: ten seconds."""
HARMLESS = frozenset({"response_cancel_not_active", "input_audio_buffer_commit_empty"})
"""Errors that say what this side knows already: it was quicker than they."""


class RemoteConversation:
    """One conversation on a server.

    Args:
        line: to it; not opened yet.
        voice: whose voice replies are spoken in.
        voice_name: what the server calls it; None: the server does not know it by name.
        consent: for voices that are sent along.
        instructions: the system prompt.
        on_close: is told when the session closes it.

    Raises:
        VoiceError: the voice needs a consent.
    """

    def __init__(
        self,
        line: Line,
        *,
        voice: Voice,
        voice_name: str | None,
        consent: str,
        instructions: str,
        on_close: Callable[[RemoteConversation], None],
    ) -> None:
        self.line = line
        self._consent, self._instructions, self._on_close = consent, instructions, on_close
        self._named = (voice, voice_name)
        self._voice: Voice | None = voice  # that the server knows of; None: it refused one
        self._check(voice)
        self._numbers = itertools.count(1)
        self._settled: asyncio.Future[None] | None = None
        self._refused: ChromaError | None = None  # nobody has been told of it yet
        self._retold = set[int]()  # replies that the server knows as text, since a reconnection
        self._memory = Memory()
        self._heard = bytearray()  # of the turn that is not committed
        self._told_bytes = 0
        self._flushing = False
        self._replies: dict[int, Sink] = {}
        self._later: dict[int, Event] = {}  # replies to ask for when the connection is back
        self._transcripts: dict[int, TextSink] = {}
        self._dead: ChromaError | None = None
        self._closed = False
        line.on_event, line.on_lost, line.on_dead = self._take, self._lost, self.fail
        line.greeting = self._greeting

    # -- what the session asks for -----------------------------------------------------------

    def push_audio(self, samples: NDArray[np.float32]) -> None:
        self._heard += float_to_pcm(samples)
        if not self._flushing:  # what comes in one step of the loop goes in one event
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def clear_audio(self) -> None:
        self._heard.clear()
        self._told_bytes = 0
        self._send("input_audio_buffer.clear")

    def commit_audio(self, turn: int) -> None:
        self._flush()
        self._memory.add_sound(turn, bytes(self._heard))
        self._heard.clear()
        self._told_bytes = 0
        self._send("input_audio_buffer.commit", chroma={"turn": turn})

    def add_text(self, role: Role, text: str) -> None:
        self._memory.add_text(role, text)
        item = _text_item(role, text)
        self._send(item.pop("type"), **item)

    def set_instructions(self, instructions: str) -> None:
        self._instructions = instructions
        self._send("session.update", session={"type": "realtime", "instructions": instructions})

    def start_reply(self, request: ReplyRequest, sink: Sink) -> None:
        loop = asyncio.get_running_loop()
        refused, self._refused = self._dead or self._refused, None
        if refused is not None:
            loop.call_soon(sink, refused)
            return
        if not self._is_told(request.voice):
            try:
                self._check(request.voice)
            except VoiceError as error:
                loop.call_soon(sink, error)
                return
            self._voice = request.voice
            session = {"type": "realtime"} | self._voice_fields()
            self._send("session.update", f"voice-{request.turn}", session=session)
        self._replies[request.turn] = sink
        chroma = {
            "turn": request.turn,
            "say": request.say,
            "add_instructions": request.instructions,
            "sampling": asdict(request.sampling),
        }
        self._flush()
        asked = {
            "type": "response.create",
            "event_id": f"reply-{request.turn}",
            "response": {"chroma": chroma},
        }
        if self.line.up:
            self.line.send(asked)
        else:
            self._later[request.turn] = asked

    def cancel_reply(self, turn: int) -> None:
        self._later.pop(turn, None)
        if self._replies.pop(turn, None) is not None:
            self._send("response.cancel")

    def keep_reply(self, turn: int, tokens: int) -> None:
        cut = self._memory.keep(turn, tokens)
        if turn in self._retold:  # the server knows no tokens of it
            if cut:
                self.line.renew()
            return
        self._send(
            "conversation.item.truncate",
            item_id="",
            content_index=0,
            audio_end_ms=0,
            chroma={"turn": turn, "tokens": tokens},
        )

    def transcribe(self, turn: int, sink: TextSink) -> None:
        if self._dead is not None:
            asyncio.get_running_loop().call_soon(sink, self._dead)
            return
        self._transcripts[turn] = sink
        self._ask_transcript(turn)

    def cancel_transcript(self, turn: int) -> None:
        if self._transcripts.pop(turn, None) is not None:
            chroma = {"turn": turn, "transcribe": False}
            self._send("conversation.item.retrieve", item_id="", chroma=chroma)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._on_close(self)

    async def settled(self) -> None:
        """Waits until the server has taken the settings.

        Raises:
            ChromaError: it refuses one, or the connection is lost.
        """
        if self._settled is not None:
            await self._settled

    # -- what comes of it --------------------------------------------------------------------

    def fail(self, error: ChromaError) -> None:
        """Tells everyone who waits, and who will ask, that it is over."""
        self._dead = error
        if self._settled is not None and not self._settled.done():
            self._settled.set_exception(error)
        replies, transcripts = list(self._replies.values()), list(self._transcripts.values())
        self._replies.clear()
        self._transcripts.clear()
        for sink in replies:
            sink(error)
        for text_sink in transcripts:
            text_sink(error)

    def _lost(self) -> None:
        """Replies that were on their way are lost, and said to be; none is asked for twice."""
        for turn in [turn for turn in self._replies if turn not in self._later]:
            self._replies.pop(turn)(
                EngineError(
                    "The connection to the server was lost in mid-reply. The conversation goes on "
                    "when it is back; ask again."
                )
            )

    def _take(self, event: Event) -> None:
        chroma = event.get("chroma") or {}
        turn = chroma.get("turn")
        match event.get("type"):
            case "response.output_audio_transcript.delta" if turn in self._replies:
                piece = TextDelta(event["delta"], chroma["start_ms"], chroma["tokens"])
                self._memory.add_piece(turn, piece)
                self._replies[turn](piece)
            case "response.output_audio.delta" if turn in self._replies:
                pcm = base64.b64decode(event["delta"])
                self._replies[turn](AudioChunk(pcm, chroma["start_ms"]))
            case "response.done" if turn in self._replies:
                self._replies.pop(turn)(_end(event["response"], chroma))
            case "conversation.item.input_audio_transcription.completed" if (
                turn in self._transcripts
            ):
                self._memory.write_down(turn, event["transcript"])
                self._transcripts.pop(turn)(event["transcript"])
            case "conversation.item.input_audio_transcription.failed" if turn in self._transcripts:
                self._transcripts.pop(turn)(_error(chroma.get("error"), event["error"]["message"]))
            case "session.updated":
                if self._settled is not None and not self._settled.done():
                    self._settled.set_result(None)
            case "error" if event["error"].get("code") not in HARMLESS:
                self._complaint(event["error"], chroma)

    def _complaint(self, about: dict[str, Any], chroma: dict[str, Any]) -> None:
        """Nothing that was refused is passed over: the reply that is built on it fails."""
        error = _error(chroma.get("error") or _kind(about), about["message"])
        what, _, number = str(about.get("event_id")).partition("-")
        log.warning("the server refused an event: %s", about.get("code"))
        if what == "settings":
            self.fail(error)
        elif what == "reply":
            if sink := self._replies.pop(int(number), None):
                sink(error)
        elif what == "voice":
            self._voice = None
            self._fail_reply(error, int(number))
        elif what == "state":
            self._fail_reply(error)

    def _fail_reply(self, error: ChromaError, turn: int | None = None) -> None:
        """Ends the newest reply, or the one of a turn; if there is none the next one fails."""
        if turn is None:
            turn = max(self._replies, default=None)
        if turn is None:
            self._refused = error
        elif sink := self._replies.pop(turn, None):
            self._send("response.cancel", "cancel")
            sink(error)

    # -- what is told ------------------------------------------------------------------------

    def _send(self, kind: str, event_id: str | None = None, **fields: Any) -> None:
        """Sends an event. By the name that it is given, a complaint about it is understood."""
        self._flush()
        self.line.send({"type": kind, "event_id": event_id or self._state_id(), **fields})

    def _state_id(self) -> str:
        return f"state-{next(self._numbers)}"

    def _flush(self) -> None:
        self._flushing = False
        while self._told_bytes < len(self._heard):
            piece = bytes(self._heard[self._told_bytes : self._told_bytes + PIECE_BYTES])
            self._told_bytes += len(piece)
            self.line.send(_append(piece) | {"event_id": self._state_id()})

    def _ask_transcript(self, turn: int) -> None:
        self._send("conversation.item.retrieve", item_id="", chroma={"turn": turn})

    def _greeting(self) -> Iterator[Event]:
        """All that the server has to know: the settings, and what was said so far."""
        if self._settled is None:
            self._settled = asyncio.get_running_loop().create_future()
        yield self._settings()
        for entry in self._memory:
            for event in _entry_events(entry):
                yield event | {"event_id": self._state_id()}
            if entry.role == "assistant" and entry.turn:
                self._retold.add(entry.turn)
        self._told_bytes = 0
        if self._heard:
            asyncio.get_running_loop().call_soon(self._flush)
        for turn in self._transcripts:
            chroma = {"turn": turn, "transcribe": True}
            yield {"type": "conversation.item.retrieve", "item_id": "", "chroma": chroma}
        yield from self._later.values()
        self._later.clear()

    def _settings(self) -> Event:
        voice = self._voice_fields()
        session = {
            "type": "realtime",
            "instructions": self._instructions,
            "audio": {"input": {"turn_detection": None}} | voice.get("audio", {}),
            "chroma": {"input_rate_hz": 16000} | voice.get("chroma", {}),
        }
        return {"type": "session.update", "event_id": "settings", "session": session}

    def _is_told(self, voice: Voice) -> bool:
        """The server speaks in that voice."""
        if voice is self._voice or self._voice is None:
            return voice is self._voice
        own, name = self._named
        named = name is not None and (voice is own or self._voice is own)
        return not named and voice.key == self._voice.key

    def _voice_fields(self) -> dict[str, Any]:
        own, name = self._named
        voice = self._voice or own
        if voice is own and name is not None:
            return {"audio": {"output": {"voice": name}}}
        if voice.key == Voice.default().key:
            return {"audio": {"output": {"voice": "default"}}}
        inline = {
            "name": voice.name[:128],
            "transcript": voice.transcript,
            "pcm": base64.b64encode(float_to_pcm(voice.samples)).decode(),
            "consent": self._consent,
        }
        return {"chroma": {"voice": inline}}

    def _check(self, voice: Voice) -> None:
        if not self._consent.strip() and voice.key != Voice.default().key:
            raise VoiceError(
                "A voice is sent to the server with the consent of its owner only: "
                "RemoteEngine(..., voice_consent='who agreed, and how'). Or enrol it there and "
                "name it: RemoteEngine(..., voice=NAME)."
            )


def _entry_events(entry: Entry) -> Iterator[Event]:
    """A message of the memory, as the server is told it."""
    if entry.sound is None:
        yield _text_item(entry.role, entry.words, entry.turn or None)
        return
    for start in range(0, len(entry.sound), PIECE_BYTES):
        yield _append(entry.sound[start : start + PIECE_BYTES])
    yield {"type": "input_audio_buffer.commit", "chroma": {"turn": entry.turn}}


def _append(sound: bytes) -> Event:
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(sound).decode()}


def _text_item(role: Role, text: str, turn: int | None = None) -> Event:
    kind = "output_text" if role == "assistant" else "input_text"
    item: Event = {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}
    if turn is not None:
        item["chroma"] = {"turn": turn}
    return {"type": "conversation.item.create", "item": item}


def _end(response: dict[str, Any], chroma: dict[str, Any]) -> TurnDone | ChromaError:
    if (done := chroma.get("done")) is None:
        about = (response.get("status_details") or {}).get("error") or {}
        return _error(chroma.get("error"), about.get("message", "The reply failed."))
    fields = done | {"reason": EndReason(done["reason"]), "timings": Timings(**done["timings"])}
    return TurnDone(**fields)


def _kind(about: dict[str, Any]) -> str:
    """The name of the exception that a refusal by the protocol alone stands for."""
    if "voice" in str(about.get("param")):
        return "VoiceError"
    if about.get("type") == "invalid_request_error" and about.get("code") != "rate_limit_exceeded":
        return "ConfigError"
    return "EngineError"


def _error(name: str | None, message: str) -> ChromaError:
    """The server's error as the exception that it was there."""
    kind = getattr(errors, name or "", EngineError)
    known = isinstance(kind, type) and issubclass(kind, ChromaError)
    made: ChromaError = (kind if known else EngineError)(message)
    return made
