"""RemoteEngine when something goes wrong: the server refuses, fails, falls silent or is none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from chroma_plugin import errors
from chroma_plugin.client import RemoteEngine
from chroma_plugin.config import SamplingParams
from chroma_plugin.conversation import Message, ReplyRequest
from chroma_plugin.errors import ChromaError, ConfigError, EngineError, EngineFailed, VoiceError
from chroma_plugin.reply import AudioChunk, Sink, TextDelta
from chroma_plugin.server.settings import ServerConfig
from chroma_plugin.voice import Voice
from tests.client.test_remote_engine import lose
from tests.contract import ask, assert_well_made, open_session, read
from tests.fakes import FakeConversation, FakeEngine
from tests.server.client import calls
from tests.server.proxy import proxied
from tests.server.serving import serving

WAIT_S = 20.0


async def until(seen: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not seen():
            await asyncio.sleep(0.005)


def another_voice() -> Voice:
    clip = Voice.default()
    return Voice.from_samples(clip.samples[: 24_000 * 5], 24_000, clip.transcript, "another")


# -- what the server refuses -----------------------------------------------------------------


async def test_a_voice_that_the_server_does_not_have_opens_no_session() -> None:
    behind = FakeEngine()
    async with serving(behind) as place, RemoteEngine(f"ws://{place}", voice="nobody") as engine:
        with pytest.raises(VoiceError, match="nobody"):
            await engine.open_session()
        assert not engine._conversations
        await until(lambda: ("cancel_reply", -1) in behind.conversations[0].calls)


async def test_a_voice_that_is_refused_fails_its_reply_only() -> None:
    config = ServerConfig(inline_voices=False)
    behind = FakeEngine(frames=4)
    async with (
        serving(behind, config) as place,
        RemoteEngine(f"ws://{place}", voice_consent="a test") as engine,
    ):
        with pytest.raises(VoiceError, match="enrol"):
            await engine.open_session(voice=another_voice())
        session = await open_session(engine)
        session.update(voice=another_voice())
        for _ in range(2):  # and it is tried again, as the session is still set to it
            with pytest.raises(VoiceError, match="enrol"):
                await read(session.respond())
        session.update(voice=Voice.default())
        assert_well_made(await read(ask(session)), session)
        assert calls(behind, "start_reply")[-1][0].voice.name == "default"
        await session.aclose()


async def test_what_the_server_cannot_be_told_is_no_secret() -> None:
    async with serving(FakeEngine(frames=4)) as place, RemoteEngine(f"ws://{place}") as engine:
        session = await open_session(engine, history=[Message("user", "a" * 70_000)])
        with pytest.raises(ConfigError, match="content"):
            await read(session.respond())
        session.add_user_text("b" * 70_000)
        with pytest.raises(ConfigError, match="content"):
            await read(session.respond())
        assert_well_made(await read(ask(session)), session)
        await session.aclose()


async def test_settings_change_between_a_servers_voice_and_others() -> None:
    behind = FakeEngine(frames=2)
    async with (
        serving(behind) as place,
        RemoteEngine(f"ws://{place}", voice="alloy", voice_consent="a test") as engine,
    ):
        session = await open_session(engine)
        own = session.voice
        assert own.name == "alloy"
        spoken = []
        for voice in (own, another_voice(), Voice.default(), own):
            sampling = SamplingParams(seed=len(spoken))
            session.update(voice=voice, sampling=sampling, instructions=f"No. {len(spoken)}")
            await read(session.respond())
            ((request,), *_) = calls(behind, "start_reply")[-1:]
            assert request.sampling == sampling
            assert calls(behind, "set_instructions")[-1] == (f"No. {len(spoken)}",)
            spoken.append(request.voice.name)
        assert spoken == ["default", "another", "default", "default"]
        await session.aclose()


@pytest.mark.parametrize(
    "name", ["EngineBusy", "EngineError", "EngineFailed", "AudioError", "VoiceError", "ConfigError"]
)
async def test_errors_are_the_same_exceptions(name: str) -> None:
    error: ChromaError = getattr(errors, name)("what happened, and what to do")

    class Failing(FakeConversation):
        def start_reply(self, request: ReplyRequest, sink: Sink) -> None:
            loop = asyncio.get_running_loop()
            loop.call_soon(sink, TextDelta("so", 0.0))
            loop.call_soon(sink, AudioChunk(bytes(3840), 0.0))
            loop.call_soon(sink, error)

    behind = FakeEngine()
    behind.transcript = error
    async with serving(behind) as place, RemoteEngine(f"ws://{place}") as engine:
        session = await open_session(engine)
        behind.conversations[0].__class__ = Failing
        stream = ask(session)
        with pytest.raises(type(error), match="what happened, and what to do") as caught:
            await read(stream)
        assert type(caught.value) is type(error)
        with pytest.raises(type(error), match="what happened"):
            await session.transcribe(stream.turn)
        assert [m.text for m in session.history if m.role == "assistant"] == ["so"]
        await session.aclose()


# -- what happens to the wire ----------------------------------------------------------------


async def test_a_half_open_connection_is_noticed() -> None:
    behind = FakeEngine(frames=2000, frame_s=0.005)
    async with (
        serving(behind) as place,
        proxied(place) as proxy,
        RemoteEngine(f"ws://{proxy.place}", heartbeat_s=0.05) as engine,
    ):
        session = await open_session(engine, max_reply_s=None)
        stream = ask(session)
        await read(stream, chunks=2)
        proxy.swallowing = True
        with pytest.raises(EngineError, match="lost in mid-reply"):
            await read(stream)
        proxy.swallowing = False
        behind.frames = 4
        await until(lambda: len(behind.conversations) > 1)
        assert_well_made(await read(ask(session)), session)
        assert len(calls(behind, "start_reply")) == 1
        await session.aclose()


async def test_a_transcript_survives_the_connection() -> None:
    behind = FakeEngine(frames=4)
    behind.transcript = None
    async with serving(behind) as place, RemoteEngine(f"ws://{place}") as engine:
        session = await open_session(engine)
        stream = ask(session)
        await read(stream)
        waiting = asyncio.create_task(session.transcribe(stream.turn))
        await until(lambda: calls(behind, "transcribe"))
        behind.transcript = "what was said"
        lose(engine)
        assert await asyncio.wait_for(waiting, WAIT_S) == "what was said"
        assert len(behind.conversations) == 2
        await session.aclose()


async def test_what_is_cut_of_a_reply_after_a_reconnection_is_cut_there_too() -> None:
    behind = FakeEngine(frames=8)
    async with serving(behind) as place, RemoteEngine(f"ws://{place}") as engine:
        session = await open_session(engine)
        await read(ask(session))
        lose(engine)
        (conversation,) = engine._conversations
        await until(lambda: conversation._retold and conversation.line.up)
        session.truncate(160.0)
        await until(lambda: len(behind.conversations) == 3)
        await read(ask(session))
        assert ("assistant", "one") in calls(behind, "add_text")
        opened = len(behind.conversations)
        session.truncate(1e6)  # nothing to cut: nothing happens
        await read(session.respond())
        assert len(behind.conversations) == opened
        await session.aclose()


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("not JSON", "JSONDecodeError"),
        ("[1, 2]", "AttributeError"),
        ('{"type": "response.output_audio.delta", "delta": "AAAA", "chroma": {"turn": 1}}', "Key"),
    ],
)
async def test_a_server_that_is_none_ends_the_session(message: str, why: str) -> None:
    async def answer(socket: ServerConnection) -> None:
        await socket.send(json.dumps({"type": "session.created"}))
        async for text in socket:
            kind = json.loads(text)["type"]
            if kind == "session.update":
                await socket.send(json.dumps({"type": "session.updated"}))
            if kind == "response.create":
                await socket.send(message)

    async with serve(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with RemoteEngine(f"ws://127.0.0.1:{port}") as engine:
            session = await open_session(engine)
            with pytest.raises(EngineFailed, match=why):
                await read(session.respond())
            with pytest.raises(EngineFailed, match="cannot be understood"):
                await read(session.respond())
            await session.aclose()


@pytest.mark.parametrize("greeting", ["not JSON", "[]"])
async def test_a_greeting_that_is_none_is_no_server(greeting: str) -> None:
    async def answer(socket: ServerConnection) -> None:
        await socket.send(greeting)
        await socket.wait_closed()

    async with serve(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with RemoteEngine(f"ws://127.0.0.1:{port}") as engine:
            with pytest.raises(EngineFailed, match="cannot be reached"):
                await engine.open_session()


async def test_opening_can_be_given_up() -> None:
    async with serving() as place, proxied(place) as proxy:
        proxy.swallowing = True
        async with RemoteEngine(f"ws://{proxy.place}") as engine:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await engine.open_session()
            assert not engine._conversations


def test_a_heartbeat_is_a_time() -> None:
    with pytest.raises(ConfigError, match="heartbeat_s"):
        RemoteEngine("ws://127.0.0.1:8000", heartbeat_s=0)
