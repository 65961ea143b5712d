"""Ten thousand events that no client should send, and another call beside them."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
from collections import Counter
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from chroma_plugin.client import RemoteEngine, line
from chroma_plugin.conversation import ReplyRequest
from chroma_plugin.reply import AudioChunk, EndReason, Sink, TextDelta, TurnDone
from chroma_plugin.server.settings import ServerConfig
from chroma_plugin.session import Session
from tests.contract import Reply, ask, open_session, read
from tests.fakes import FakeConversation, FakeEngine
from tests.server.client import WAIT_S, check
from tests.server.fuzzing import Input, inputs
from tests.server.serving import serving

COUNT = 10_000
PATIENCE_S = 120.0
OF_A_CONNECTION = 250
CONFIG = ServerConfig(max_events_per_s=1e6, max_audio_rate=1e6)


class Singing(FakeConversation):
    """Its sound is a function of all that it was told."""

    async def _speak(self, request: ReplyRequest, sink: Sink) -> None:
        told = repr([call for call in self.calls if call[0] in ("add_text", "commit_audio")])
        await asyncio.sleep(0)
        sink(TextDelta("la", 0.0))
        for i in range(3):
            await asyncio.sleep(0)
            note = hashlib.sha256(f"{told}{i}".encode()).digest()
            sink(AudioChunk(note * 120, i * 80.0))
        sink(TurnDone(EndReason.END_OF_SPEECH, "la", 240.0, 1, 3))


class SingingEngine(FakeEngine):
    async def open_session(self, **settings: Any) -> Session:
        session = await super().open_session(**settings)
        self.conversations[-1].__class__ = Singing
        del self.conversations[:-1]  # what was told to those before is not looked at
        return session


class Fuzzed:
    """A connection that is sent nonsense."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.refused = Counter[str | None]()

    async def send(self, batch: list[Input]) -> None:
        """Sends them, then something whose answer says that all were dealt with."""
        for one in batch:
            await self._socket.send(one.data)
        await self._socket.send('{"type": "the end", "event_id": "the end"}')
        async with asyncio.timeout(PATIENCE_S):
            while True:
                event = json.loads(await self._socket.recv())
                if event["type"] != "error":
                    continue
                check(event)
                if event["error"]["event_id"] == "the end":
                    return
                assert event["error"]["type"] == "invalid_request_error", event
                self.refused[event["error"]["event_id"]] += 1


async def fuzz(place: str, batch: list[Input]) -> None:
    """One connection's life; every wrong input is refused once, by its id."""
    url = f"ws://{place}/v1/realtime"
    async with connect(url, max_size=1 << 24, open_timeout=PATIENCE_S) as socket:
        fuzzed = Fuzzed(socket)
        for start in range(0, len(batch), 50):
            await fuzzed.send(batch[start : start + 50])
    named = {one.event_id for one in batch if one.event_id is not None}
    for one in batch:
        if one.wrong and one.event_id is not None:
            assert fuzzed.refused[one.event_id] == 1, one.data[:500]
    nameless = sum(one.wrong and one.event_id is None for one in batch)
    assert fuzzed.refused[None] >= nameless
    strangers = {i for i in fuzzed.refused if i not in named and str(i).startswith("fuzz-")}
    assert not strangers
    assert max((n for i, n in fuzzed.refused.items() if i in named), default=0) <= 1


async def sing(engine: RemoteEngine) -> list[Reply]:
    session = await open_session(engine)
    replies = []
    for text in ("one", "two"):
        session.add_user_text(text)
        replies += [await read(session.respond()), await read(ask(session, seconds=0.2))]
    await session.aclose()
    return replies


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_ten_thousand_wrong_events_harm_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "OPEN_S", PATIENCE_S)  # on a busy machine
    from chroma_plugin.bench.report import resident_mb

    everything = list(inputs(COUNT, seed=6))
    wrong = sum(one.wrong for one in everything)
    assert wrong > COUNT / 5
    assert sum(isinstance(one.data, bytes) for one in everything) > COUNT / 20
    held: list[float] = []
    async with (
        serving(SingingEngine(), CONFIG) as place,
        RemoteEngine(f"ws://{place}", heartbeat_s=PATIENCE_S) as engine,
    ):
        alone = [(reply.pcm, reply.text) for reply in await sing(engine)]
        for start in range(0, COUNT, OF_A_CONNECTION):
            beside = asyncio.create_task(sing(engine))
            await fuzz(place, everything[start : start + OF_A_CONNECTION])
            assert [(reply.pcm, reply.text) for reply in await beside] == alone
            gc.collect()
            held.append(resident_mb())
    assert max(held[len(held) // 2 :]) - max(held[: len(held) // 2]) < 8


@pytest.mark.parametrize(
    ("data", "as_text", "close_code"),
    [(b"\xff\xfe\xfd", True, 1007), (b"x" * 10_000_000, False, 1009)],
)
async def test_what_is_no_message_at_all_ends_one_connection(
    data: bytes, as_text: bool, close_code: int
) -> None:
    async with serving(SingingEngine(), CONFIG) as place, RemoteEngine(f"ws://{place}") as engine:
        alone = [reply.pcm for reply in await sing(engine)]
        async with connect(f"ws://{place}/v1/realtime") as socket:
            with pytest.raises(ConnectionClosed) as closed:
                await socket.send(data, text=as_text)
                async with asyncio.timeout(WAIT_S):
                    while True:
                        await socket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == close_code
        assert [reply.pcm for reply in await sing(engine)] == alone


async def test_a_mistake_of_ours_ends_one_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from chroma_plugin.server.realtime import Realtime

    async def mistaken(self: Realtime, text: str) -> None:
        if "secret" in text:
            raise KeyError("secret")
        await handle(self, text)

    handle = Realtime.handle
    monkeypatch.setattr(Realtime, "handle", mistaken)
    async with serving(SingingEngine(), CONFIG) as place, RemoteEngine(f"ws://{place}") as engine:
        alone = [reply.pcm for reply in await sing(engine)]
        async with connect(f"ws://{place}/v1/realtime") as socket:
            await socket.recv()
            await socket.send("secret")
            async with asyncio.timeout(WAIT_S):
                event = json.loads(await socket.recv())
                assert event["error"]["type"] == "server_error"
                with pytest.raises(ConnectionClosed) as closed:
                    await socket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1011
        assert [reply.pcm for reply in await sing(engine)] == alone
    (told,) = [r.getMessage() for r in caplog.records if "broke a connection" in r.getMessage()]
    assert "KeyError" in told and "in mistaken" in told
