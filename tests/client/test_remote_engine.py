"""RemoteEngine: the contract of every engine, and what only a connection can do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from chroma_plugin.client import RemoteEngine
from chroma_plugin.client.engine import realtime_url
from chroma_plugin.client.memory import KEPT_SOUND_BYTES, Memory
from chroma_plugin.errors import ConfigError, EngineError, EngineFailed, VoiceError
from chroma_plugin.reply import TextDelta
from chroma_plugin.server.settings import ApiKey, ServerConfig
from chroma_plugin.session import SpeechEngine
from chroma_plugin.voice import Voice
from tests.contract import EngineContract, ask, assert_well_made, open_session, read
from tests.fakes import FakeEngine
from tests.server.client import calls
from tests.server.serving import serving


class TestRemoteEngine(EngineContract):
    @pytest.fixture
    async def engine(self) -> AsyncIterator[SpeechEngine]:
        async with (
            serving(FakeEngine(frame_s=0.002)) as place,
            RemoteEngine(f"ws://{place}", voice_consent="a test") as engine,
        ):
            yield engine

    @pytest.fixture
    async def small_engine(self) -> AsyncIterator[SpeechEngine]:
        config = ServerConfig(max_sessions=1)
        async with (
            serving(FakeEngine(frame_s=0.002), config) as place,
            RemoteEngine(f"ws://{place}", queue_timeout_s=0.3) as engine,
        ):
            yield engine


def lose(engine: RemoteEngine) -> None:
    """Cuts the wire of every session."""
    for conversation in engine._conversations:
        assert conversation.line._socket is not None
        conversation.line._socket.transport.abort()


async def test_a_lost_connection_comes_back_with_its_history() -> None:
    behind = FakeEngine(frames=8)
    async with serving(behind) as place, RemoteEngine(f"http://{place}") as engine:
        session = await open_session(engine, instructions="Be brief.")
        session.add_user_text("Hello")
        await read(session.respond())
        await read(ask(session, seconds=0.5))
        before = session.history
        lose(engine)
        async with asyncio.timeout(10):
            while len(behind.conversations) < 2:
                await asyncio.sleep(0.01)
        assert_well_made(await read(ask(session, seconds=0.5)), session)
        assert session.history[: len(before)] == before
        told = [("user", "Hello"), ("assistant", "one two three four")]
        assert calls(behind, "add_text")[:2] == told
        await session.aclose()


async def test_a_reply_that_was_lost_is_reported_and_not_doubled() -> None:
    behind = FakeEngine(frames=500, frame_s=0.005)
    async with serving(behind) as place, RemoteEngine(f"ws://{place}") as engine:
        session = await open_session(engine, max_reply_s=None)
        stream = ask(session, seconds=0.5)
        given = await read(stream, chunks=2)
        lose(engine)
        with pytest.raises(EngineError, match="lost in mid-reply"):
            await read(stream)
        async with asyncio.timeout(10):
            while len(behind.conversations) < 2 or not engine._conversations:
                await asyncio.sleep(0.01)
        assert not calls(behind, "start_reply")
        spoken = [m.text for m in session.history if m.role == "assistant"]
        assert spoken and str(spoken[0]).startswith(given.text)
        await session.aclose()


async def test_what_is_asked_while_the_connection_is_away_is_asked_when_it_is_back() -> None:
    behind = FakeEngine(frames=8)
    async with serving(behind) as place, RemoteEngine(f"ws://{place}") as engine:
        session = await open_session(engine)
        lose(engine)
        (conversation,) = engine._conversations
        async with asyncio.timeout(10):
            while conversation.line.up:
                await asyncio.sleep(0)
        assert_well_made(await read(ask(session, seconds=0.5)), session)
        assert [name for name, *_ in behind.conversations[-1].calls].count("commit_audio") == 1
        await session.aclose()


async def test_a_server_that_stays_away_ends_the_session() -> None:
    async with RemoteEngine("ws://127.0.0.1:9", reconnect_s=0.2) as engine:
        with pytest.raises(EngineFailed, match="Is it up"):
            await engine.open_session()
    async with serving() as place:
        engine = RemoteEngine(f"ws://{place}", reconnect_s=0.2)
        await engine.start()
        session = await open_session(engine)
    async with asyncio.timeout(10):
        while not next(iter(engine._conversations))._dead:
            await asyncio.sleep(0.01)
    with pytest.raises(EngineFailed):
        await read(session.respond())
    await engine.close()


async def test_a_key_is_needed_where_there_are_keys() -> None:
    key = "k" * 32
    async with serving(config=ServerConfig(api_keys=(ApiKey(key),))) as place:
        async with RemoteEngine(f"ws://{place}") as engine:
            with pytest.raises(EngineFailed, match="API key"):
                await engine.open_session()
        async with RemoteEngine(f"ws://{place}", api_key=key) as engine:
            await (await engine.open_session()).aclose()


async def test_a_voice_is_sent_with_its_consent_only() -> None:
    clip = Voice.default()
    voice = Voice.from_samples(clip.samples[: 24_000 * 5], 24_000, clip.transcript, "mine")
    behind = FakeEngine(frames=2)
    async with serving(behind) as place:
        async with RemoteEngine(f"ws://{place}") as engine:
            with pytest.raises(VoiceError, match="voice_consent"):
                await engine.open_session(voice=voice)
        async with RemoteEngine(f"ws://{place}", voice_consent="mine, by me") as engine:
            session = await open_session(engine, voice=voice)
            await read(session.respond())
            session.update(voice=clip)
            await read(session.respond())
            voices = [request.voice.name for (request, *_) in calls(behind, "start_reply")]
            assert voices == ["mine", "default"]
            await session.aclose()


def test_addresses_are_filled_in() -> None:
    for url in ("ws://h:1", "http://h:1/", "http://h:1/v1", "ws://h:1/v1/realtime"):
        assert realtime_url(url) == "ws://h:1/v1/realtime"
    assert realtime_url("https://h/x/v1/realtime?a=b") == "wss://h/x/v1/realtime?a=b"
    for wrong in ("", "h:1", "ftp://h", "ws://"):
        with pytest.raises(ConfigError, match="no address"):
            realtime_url(wrong)


def test_memory_keeps_what_was_heard_and_the_newest_sounds() -> None:
    memory = Memory()
    memory.add_sound(1, bytes(KEPT_SOUND_BYTES - 10))
    memory.write_down(1, "first")
    for i, word in enumerate(("one", " two", " three")):
        memory.add_piece(1, TextDelta(word, i * 160.0))
    memory.keep(1, 2)
    memory.add_sound(2, bytes(100))
    memory.add_piece(2, TextDelta("gone", 0.0))
    memory.keep(2, 0)
    told: list[Any] = [(e.role, e.words, e.sound is not None) for e in memory]
    assert told == [("user", "first", False), ("assistant", "one two", False), ("user", "", True)]
