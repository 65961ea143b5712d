"""A call to a server in the OpenAI Realtime protocol, as a telephone would make it.

A microphone that is always on sends a piece of sound every 80 ms, speech or silence; the server
finds the turns in it, or is told them. What comes back is noted with its time. Nothing here needs
an engine, and all but the `chroma` fields works with any server of the protocol.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from chroma_plugin.audio import OUTPUT_RATE_HZ, Samples, float_to_pcm, pcm_to_float
from chroma_plugin.bench.hearing import Playback

PIECE_S = 0.08
PIECE_BYTES = round(PIECE_S * OUTPUT_RATE_HZ) * 2
Turns = Literal["server", "client"]
HARMLESS = frozenset({"response_cancel_not_active", "input_audio_buffer_commit_empty"})


class CallFailed(Exception):
    """A call, or a turn of it, that came to nothing; the message says what failed."""


class KeyRefused(CallFailed):
    """The server does not let this caller in; no further call would be."""


@dataclass(slots=True)
class Answer:
    """One reply as the caller had it.

    Attributes:
        id: of the response.
        asked_s: the clock's zero: the last of the user's words.
        committed_s: when the server had understood that the turn was over.
        playback: what arrived and when.
        item: of its message; "" before it came.
        text: what is said in it.
        pcm: its sound, piece by piece.
        status: how it ended; "" before it did.
        why: more about that.
        ended_s: when it did.
        unasked: it is a greeting, which no question came before.
    """

    id: str
    asked_s: float
    committed_s: float
    playback: Playback = field(default_factory=Playback)
    item: str = ""
    text: str = ""
    pcm: list[bytes] = field(default_factory=list)
    status: str = ""
    why: str = ""
    ended_s: float = 0.0
    unasked: bool = False

    @property
    def samples(self) -> Samples:
        """Its sound, float32 at 24 kHz."""
        return pcm_to_float(b"".join(self.pcm))


class Caller:
    """One call; to be entered as a context.

    Args:
        url: of the WebSocket.
        key: of the server, or None.
        turns: who finds the user's turns.
        instructions: the system prompt; None: the server's own.
        claim: is told every id that comes, and says whether it may come here.
        clock: seconds, from anywhere.

    Raises:
        KeyRefused: on entering: the server wants a key, or another one.
        CallFailed: on entering: the server cannot be reached, or has no room.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        turns: Turns = "server",
        instructions: str | None = None,
        claim: Callable[[str], bool] = lambda given_id: True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._url, self._turns, self._instructions = url, turns, instructions
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._claim, self._clock = claim, clock
        self._to_say = bytearray()
        self._spoken_s = 0.0
        self._committed_s = 0.0
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._socket: ClientConnection | None = None
        self.answers: list[Answer] = []
        self.strangers: list[str] = []
        self.turns_heard = 0
        self.broken = ""

    # -- the call ----------------------------------------------------------------------------

    async def __aenter__(self) -> Caller:
        try:
            async with asyncio.timeout(20):
                self._socket = await connect(
                    self._url,
                    additional_headers=self._headers,
                    max_size=1 << 24,
                    compression=None,
                    close_timeout=1.0,
                )
                first = json.loads(await self._socket.recv())
        except InvalidStatus as error:
            raise self._refused(error.response.status_code) from error
        except (OSError, TimeoutError, WebSocketException, ValueError) as error:
            raise CallFailed(f"not connected: {type(error).__name__}") from error
        if first["type"] != "session.created":
            code = first.get("error", {}).get("code")
            await self._socket.close()
            raise CallFailed(f"turned away: {code}")
        vad = {"type": "server_vad"} if self._turns == "server" else None
        session: dict[str, Any] = {
            "type": "realtime",
            "audio": {"input": {"turn_detection": vad}},
        }
        if self._instructions is not None:
            session["instructions"] = self._instructions
        await self._send("session.update", session=session)
        self._tasks = [asyncio.create_task(self._listen())]
        if self._turns == "server":
            self._tasks.append(asyncio.create_task(self._keep_microphone_on()))
        return self

    def _refused(self, status: int) -> CallFailed:
        if status != 401:
            return CallFailed(f"not connected: the server answers {status}")
        if self._headers:
            return KeyRefused("the server turned the key away (401)")
        return KeyRefused("the server wants a key, and none was given (401)")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None:
            await self._socket.close()

    async def until(self, seen: Callable[[], Any], patience_s: float, what: str) -> None:
        """Waits for something that an event brings.

        Raises:
            CallFailed: it did not come in time, or the call broke.
        """
        try:
            async with asyncio.timeout(patience_s):
                while not seen():
                    if self.broken:
                        raise CallFailed(self.broken)
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise CallFailed(f"never came: {what}") from None

    # -- what the user does ------------------------------------------------------------------

    async def say(self, speech: Samples) -> None:
        """Speaks, at the pace of speech; returns when the last word is out."""
        self._to_say += float_to_pcm(speech)
        if self._turns == "client":
            await self._say_by_hand()
            return
        while self._to_say and not self.broken:
            await asyncio.sleep(PIECE_S / 4)

    async def ask(self, **chroma: Any) -> None:
        """Asks for a reply, with what the protocol has no words for."""
        self._spoken_s = self._committed_s = self._clock()
        await self._send("response.create", response={"chroma": chroma})

    async def truncate(self, answer: Answer) -> None:
        """Says how much of a reply was heard by now."""
        heard_ms = round(answer.playback.heard_s(self._clock()) * 1000)
        where = {"item_id": answer.item, "content_index": 0, "audio_end_ms": heard_ms}
        if answer.item:
            await self._send("conversation.item.truncate", **where)

    async def _say_by_hand(self) -> None:
        begin_s, sent = self._clock(), 0
        while self._to_say:
            piece = self._take_piece()
            sent += len(piece)
            await asyncio.sleep(begin_s + sent / (2 * OUTPUT_RATE_HZ) - self._clock())
            await self._append(piece)
        self._spoken_s = self._clock()
        await self._send("input_audio_buffer.commit")
        await self._send("response.create")

    async def _keep_microphone_on(self) -> None:
        next_s = self._clock()
        while True:
            speaks = bool(self._to_say)
            piece = self._take_piece()
            await self._append(piece + bytes(PIECE_BYTES - len(piece)))
            if speaks:
                self._spoken_s = self._clock() - (PIECE_BYTES - len(piece)) / (2 * OUTPUT_RATE_HZ)
            next_s += PIECE_S
            await asyncio.sleep(max(next_s - self._clock(), 0.0))

    def _take_piece(self) -> bytes:
        piece = bytes(self._to_say[:PIECE_BYTES])
        del self._to_say[:PIECE_BYTES]
        return piece

    async def _append(self, piece: bytes) -> None:
        await self._send("input_audio_buffer.append", audio=base64.b64encode(piece).decode())

    async def _send(self, kind: str, **fields: Any) -> None:
        assert self._socket is not None
        try:
            await self._socket.send(json.dumps({"type": kind, **fields}))
        except (OSError, WebSocketException) as error:
            self._break(f"connection lost: {type(error).__name__}")

    # -- what comes --------------------------------------------------------------------------

    async def _listen(self) -> None:
        assert self._socket is not None
        try:
            async for message in self._socket:
                self._take(json.loads(message), self._clock())
                self._news.set()
        except (OSError, WebSocketException) as error:
            self._break(f"connection lost: {type(error).__name__}")
            return
        self._break("hung up by the server")

    def _break(self, why: str) -> None:
        self.broken = self.broken or why
        self._news.set()

    def _take(self, event: dict[str, Any], now_s: float) -> None:
        kind = event["type"]
        if kind == "error":
            code = event["error"].get("code")
            if code not in HARMLESS:
                self._break(f"error: {code}")
        elif kind == "input_audio_buffer.speech_started":
            self.turns_heard += 1
        elif kind == "input_audio_buffer.committed":
            self._committed_s = now_s
        elif kind == "response.created":
            given_id = event["response"]["id"]
            if not self._claim(given_id):
                self.strangers.append(given_id)
            self.answers.append(Answer(given_id, self._spoken_s, self._committed_s))
        elif kind.startswith("response."):
            self._take_of_response(kind, event, now_s)

    def _take_of_response(self, kind: str, event: dict[str, Any], now_s: float) -> None:
        given_id = event.get("response_id") or event["response"]["id"]
        answer = next((a for a in reversed(self.answers) if a.id == given_id), None)
        if answer is None:  # it belongs to somebody else
            self.strangers.append(given_id)
            return
        if kind == "response.output_item.added":
            answer.item = event["item"]["id"]
            if not self._claim(answer.item):
                self.strangers.append(answer.item)
        elif kind == "response.output_audio.delta":
            pcm = base64.b64decode(event["delta"])
            answer.pcm.append(pcm)
            answer.playback.feed(pcm_to_float(pcm), now_s)
        elif kind == "response.output_audio_transcript.delta":
            answer.text += event["delta"]
        elif kind == "response.done":
            answer.status, answer.ended_s = event["response"]["status"], now_s
            details = event["response"].get("status_details") or {}
            answer.why = (details.get("error") or {}).get("code") or details.get("reason") or ""


def alike(one: Samples, other: Samples) -> float:
    """How alike two recordings are, sample by sample: 1 for the same ones, near 0 for others; 0 if
    one is more than a tenth longer."""
    length = min(len(one), len(other))
    if not length or max(len(one), len(other)) > 1.1 * length:
        return 0.0
    a, b = one[:length].astype(np.float64), other[:length].astype(np.float64)
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else 0.0
