"""`POST /v1/audio/speech`: a voice says a text, streamed as it is made."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import struct
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import soundfile
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from chroma_plugin.audio import OUTPUT_RATE_HZ, pcm_to_float
from chroma_plugin.errors import ChromaError, ConfigError, EngineBusy
from chroma_plugin.reply import AudioChunk, EndReason, ReplyEvent, TurnDone
from chroma_plugin.server import bodies
from chroma_plugin.server.access import Refusal, needs
from chroma_plugin.server.pool import Pool
from chroma_plugin.server.protocol import ProtocolError
from chroma_plugin.server.settings import ServerConfig
from chroma_plugin.server.voicing import Voicing
from chroma_plugin.server.watch import Watch, WatchedSpeech
from chroma_plugin.session import Session, SpeechEngine

log = logging.getLogger(__name__)

MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
EVENTS = "text/event-stream"
CHARS_PER_TOKEN = 4
"""Of text, about."""
_FORMATS = {"mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS"), "flac": ("FLAC", "PCM_16")}


def routes(
    config: ServerConfig,
    pool: Pool,
    voicing: Voicing,
    engine: SpeechEngine,
    watch: Watch,
    refused: dict[int | str, dict[str, Any]],
) -> APIRouter:
    """The route, on an engine."""
    router = APIRouter(tags=["speech"], dependencies=needs(config, "talk"))
    sounds: dict[str, dict[str, Any]] = {media: {} for media in (*MEDIA_TYPES.values(), EVENTS)}
    answers: dict[int | str, dict[str, Any]] = refused | {
        200: {"description": "The speech, as it is made.", "content": sounds},
        404: {"model": bodies.Error, "description": "There is no such voice."},
        500: {"model": bodies.Error, "description": "The engine failed; says how."},
        503: {"model": bodies.Error, "description": "No room, or no model yet; try again later."},
    }

    @router.post("/v1/audio/speech", response_class=Response, responses=answers)
    async def speak(request: bodies.SpeechRequest, asked: Request) -> Response:
        """Says a text in a voice."""
        try:
            voice = await voicing.find(request.voice_name, "voice")
        except ProtocolError as error:
            status = 404 if error.code == "voice_not_found" else 400
            raise Refusal(status, error.code, error.message, error.param) from error
        if not pool.take():
            status = 500 if pool.status == "failed" else 503
            raise Refusal(status, pool.refusal_code, pool.refusal)
        session: Session | None = None
        watched = watch.speech(asked.headers)
        try:
            session = await engine.open_session(voice=voice)
            stream = watched.follow(session.say(request.input))
            first = await _first_audio(stream)
        except BaseException as error:
            pool.give_back()
            watched.end(error)
            if session is not None:
                await session.aclose()
            if isinstance(error, ChromaError):
                raise _refusal(error) from error
            raise
        body = _spoken(stream, first, Tape(request.response_format))
        if request.stream_format == "sse":
            body = _as_events(body, -(-len(request.input) // CHARS_PER_TOKEN), watched)
            return _Speech(body, session, pool, watched, EVENTS, config.idle_s)
        media_type = MEDIA_TYPES[request.response_format]
        return _Speech(body, session, pool, watched, media_type, config.idle_s)

    return router


async def _first_audio(stream: AsyncIterator[ReplyEvent]) -> AudioChunk | None:
    """Waits for the first sound, so that what fails before it is told by a status."""
    async for event in stream:
        if isinstance(event, AudioChunk):
            return event
    return None


async def _spoken(
    stream: AsyncIterator[ReplyEvent],
    first: AudioChunk | None,
    tape: Tape,
) -> AsyncIterator[bytes]:
    yield tape.push(first.pcm if first is not None else b"")
    async for event in stream:
        if isinstance(event, AudioChunk):
            yield tape.push(event.pcm)
    yield tape.close()


async def _as_events(
    body: AsyncIterator[bytes], input_tokens: int, watched: WatchedSpeech
) -> AsyncIterator[bytes]:
    """The same sound as server-sent events, in the protocol's words; `chroma` has the rest."""
    async for piece in body:
        if piece:
            yield _event("speech.audio.delta", audio=base64.b64encode(piece).decode())
    done = watched.done or TurnDone(EndReason.CANCELLED)
    made = done.tokens + done.frames
    used = {"input_tokens": input_tokens, "output_tokens": made}
    used["total_tokens"] = input_tokens + made
    yield _event("speech.audio.done", usage=used, chroma={"done": asdict(done)})


def _event(kind: str, **fields: Any) -> bytes:
    return f"data: {json.dumps({'type': kind} | fields)}\n\n".encode()


class _Speech(StreamingResponse):
    """An answer that gives its place back, however it ends: a body that was never begun has no
    `finally` that runs."""

    def __init__(
        self,
        body: AsyncIterator[bytes],
        session: Session,
        pool: Pool,
        watched: WatchedSpeech,
        media_type: str,
        limit_s: float,
    ) -> None:
        super().__init__(body, media_type=media_type)
        self._limit_s = limit_s
        self._session, self._pool, self._watched = session, pool, watched

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._limit_s):  # whoever reads nothing keeps no place
                await super().__call__(scope, receive, send)
        except TimeoutError:
            log.warning("speech was not read to its end within %g s", self._limit_s)
            raise
        finally:
            self._pool.give_back()
            self._watched.end()
            await self._session.aclose()


def _refusal(error: ChromaError) -> Refusal:
    if isinstance(error, EngineBusy):
        return Refusal(503, "server_overloaded", str(error))
    if isinstance(error, ConfigError):
        return Refusal(400, "invalid_value", str(error), "input")
    return Refusal(500, "server_error", str(error))


class Tape:
    """An audio file that is written from its beginning to its end and never gone back in.

    Encoders go back to their headers when they close, to say how long it was; what is on its way
    cannot be changed any more, and every player does without.

    Args:
        form: mp3, opus, flac, wav or pcm.
    """

    def __init__(self, form: str) -> None:
        self._form = form
        self._fresh = True
        self._sink = _Sink()
        self._file: soundfile.SoundFile | None = None
        if form in _FORMATS:
            container, subtype = _FORMATS[form]
            self._file = soundfile.SoundFile(
                self._sink, "w", OUTPUT_RATE_HZ, 1, subtype=subtype, format=container
            )

    def push(self, pcm: bytes) -> bytes:
        """The next samples, PCM16 at 24 kHz, as far as they are encoded."""
        if self._file is not None:
            self._file.write(pcm_to_float(pcm))
            return self._sink.take()
        head = _wav_header() if self._fresh and self._form == "wav" else b""
        self._fresh = False
        return head + pcm

    def close(self) -> bytes:
        """What the encoder still holds."""
        if self._file is None:
            return b""
        self._file.close()
        return self._sink.take()


class _Sink(io.RawIOBase):
    """What libsndfile writes to: keeps what is new, forgets what is written over."""

    def __init__(self) -> None:
        super().__init__()
        self._new = bytearray()
        self._place = self._end = 0

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._place, self._end)[whence]
        self._place = max(base + offset, 0)
        return self._place

    def readinto(self, buffer: Any) -> int:
        return 0

    def write(self, data: Any) -> int:
        piece = bytes(data)
        kept = self._end - len(self._new)  # what was taken already
        start = self._place - kept
        self._place += len(piece)
        if start >= 0:
            self._new[start : start + len(piece)] = piece
        elif start + len(piece) > 0:
            self._new[: start + len(piece)] = piece[-start:]
        self._end = max(self._end, self._place)
        return len(piece)

    def take(self) -> bytes:
        """What was written since the last time."""
        new = bytes(self._new)
        self._new.clear()
        return new


def _wav_header() -> bytes:
    """Of a WAV file whose length nobody knows yet: both sizes are the largest number, as in
    OpenAI's streams and FFmpeg's, which readers take for that."""
    unknown = 0xFFFFFFFF
    head = struct.pack("<4sI4s", b"RIFF", unknown, b"WAVE")
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, OUTPUT_RATE_HZ, 2 * OUTPUT_RATE_HZ, 2, 16)
    return head + form + struct.pack("<4sI", b"data", unknown)
