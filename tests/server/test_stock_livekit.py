"""LiveKit's own OpenAI `RealtimeModel`, unmodified, in an `AgentSession` that talks to this server.

There is no room: a microphone and a loudspeaker of the test's stand on the session.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chroma_plugin.server.app import create_app
from tests.fakes import FakeEngine
from tests.server.client import calls
from tests.server.serving import listening, serving
from tests.server.stock import (
    WORDS,
    complaints,
    heard_ms,
    model,
    names,
    pieces,
    silence,
    speech,
    told,
    tone,
    wire,
)

pytest.importorskip("livekit.plugins.openai")

import aiohttp
from livekit import rtc
from livekit.agents import Agent, AgentSession, llm
from livekit.agents.voice import io
from livekit.plugins import openai

WAIT_S = 40.0
RATE_HZ = 24000


class Microphone(io.AudioInput):
    """Hands out what it was given, 50 ms at a time, as a room does."""

    def __init__(self) -> None:
        super().__init__(label="a test's microphone")
        self._frames: asyncio.Queue[rtc.AudioFrame] = asyncio.Queue()

    def say(self, sound: bytes) -> None:
        for piece in pieces(sound, RATE_HZ // 10):
            self._frames.put_nowait(rtc.AudioFrame(piece, RATE_HZ, 1, len(piece) // 2))

    async def said(self) -> None:
        """Waits until all of it was taken."""
        while not self._frames.empty():
            await asyncio.sleep(0)

    async def __anext__(self) -> rtc.AudioFrame:
        return await self._frames.get()


class Loudspeaker(io.AudioOutput):
    """Plays at once, or, while it `holds`, not beyond the first 0.3 s of a reply."""

    def __init__(self) -> None:
        able = io.AudioOutputCapabilities(pause=False)
        super().__init__(label="a test's loudspeaker", capabilities=able, sample_rate=RATE_HZ)
        self.holds = False
        self.sound = bytearray()
        self.news = asyncio.Event()
        self._segment_s: float | None = None

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if self._segment_s is None:
            self._segment_s = 0.0
            self.on_playback_started(created_at=0.0)
        self._segment_s += frame.duration
        self.sound += frame.data.tobytes()
        self.news.set()

    def flush(self) -> None:
        super().flush()
        if not self.holds:
            self._finish(self._segment_s, interrupted=False)

    def clear_buffer(self) -> None:
        self._finish(0.3, interrupted=True)

    def _finish(self, played_s: float | None, *, interrupted: bool) -> None:
        if self._segment_s is not None and played_s is not None:
            played_s = min(played_s, self._segment_s)
            self._segment_s = None
            self.on_playback_finished(playback_position=played_s, interrupted=interrupted)
        self.news.set()

    async def until(self, seconds: float) -> None:
        """Waits until so much was made."""
        async with asyncio.timeout(WAIT_S):
            while len(self.sound) < 2 * RATE_HZ * seconds:
                self.news.clear()
                await self.news.wait()


class Talk:
    """A session, and what happened in it."""

    def __init__(self, session: AgentSession[Any]) -> None:
        self.session = session
        self.microphone, self.loudspeaker = Microphone(), Loudspeaker()
        session.input.audio, session.output.audio = self.microphone, self.loudspeaker
        self.said: list[llm.ChatMessage] = []
        self.errors: list[Any] = []
        self._news = asyncio.Event()
        session.on("conversation_item_added", self._added)
        session.on("error", self.errors.append)

    def _added(self, event: Any) -> None:
        if event.item.type == "message":
            self.said.append(event.item)
            self._news.set()

    async def until(self, role: str, count: int = 1) -> llm.ChatMessage:
        """Waits for the so manyth message of somebody's."""
        async with asyncio.timeout(WAIT_S):
            while True:
                found = [item for item in self.said if item.role == role]
                if len(found) >= count:
                    return found[count - 1]
                self._news.clear()
                await self._news.wait()

    @property
    def model(self) -> Any:
        """The plugin's own session."""
        activity = self.session._activity
        assert activity is not None
        return activity.realtime_llm_session

    def turn(self, seconds: float = 0.4) -> None:
        """The user speaks, and is silent long enough for the server to know."""
        self.microphone.say(tone(seconds, RATE_HZ) + silence(1.0, RATE_HZ))


@asynccontextmanager
async def talking(
    place: str, *, chat_ctx: llm.ChatContext | None = None, manual: bool = False, lost: int = 0
) -> AsyncIterator[Talk]:
    """A session with an agent; nobody complains meanwhile, but of `lost` connections."""
    by_hand: dict[str, Any] = {"turn_detection": None} if manual else {}
    async with aiohttp.ClientSession() as http:
        realtime = openai.realtime.RealtimeModel(
            base_url=f"http://{place}/v1", api_key="any", http_session=http, **by_hand
        )
        session: AgentSession[Any] = AgentSession(
            llm=realtime,
            vad=None,
            turn_handling={
                "turn_detection": "manual" if manual else "realtime_llm",
                "interruption": {"resume_false_interruption": False},  # needs one that pauses
            },
            aec_warmup_duration=None,
            user_away_timeout=None,
        )
        talk = Talk(session)
        with complaints("livekit", "chroma_plugin", "websockets", "uvicorn") as heard:
            await session.start(Agent(instructions="Be brief.", chat_ctx=chat_ctx), record=False)
            try:
                yield talk
            finally:
                talk.loudspeaker.holds = False
                talk.loudspeaker.clear_buffer()
                await session.aclose()
                await realtime.aclose()
    assert len(talk.errors) == lost, talk.errors
    heard = [line for line in heard if "due to session closed" not in line]  # by the test
    assert len(heard) == 2 * lost, heard  # it tells of each twice


async def test_livekit_greeting() -> None:
    engine = FakeEngine(frames=8)
    async with serving(engine) as place, talking(place) as talk:
        await talk.session.generate_reply(instructions="Greet the user.")
        assert (await talk.until("assistant")).text_content == WORDS
        assert bytes(talk.loudspeaker.sound) == b"\x10\x20" * 1920 * 8
    assert calls(engine, "set_instructions")[-1] == ("Be brief.\nGreet the user.",)


async def test_livekit_server_vad_turn() -> None:
    engine = FakeEngine(frames=8)
    async with serving(engine) as place, talking(place) as talk:
        talk.microphone.say(silence(1.0, RATE_HZ))
        talk.turn(0.6)
        assert (await talk.until("user")).text_content == "what was said"
        assert (await talk.until("assistant")).text_content == WORDS
    assert 1000 < heard_ms(engine) < 2000
    assert names(engine).count("commit_audio") == 1


async def test_livekit_manual_turn() -> None:
    engine = FakeEngine(frames=8)
    async with serving(engine) as place, talking(place, manual=True) as talk:
        talk.microphone.say(tone(0.5, RATE_HZ))
        await talk.microphone.said()
        await talk.session.commit_user_turn()
        assert (await talk.until("assistant")).text_content == WORDS
    assert heard_ms(engine) == pytest.approx(500, abs=60)


async def test_livekit_three_turns() -> None:
    engine = FakeEngine(frames=8)
    async with serving(engine) as place, talking(place) as talk:
        for count in (1, 2, 3):
            talk.turn()
            assert (await talk.until("assistant", count)).text_content == WORDS
            await talk.until("user", count)
    assert names(engine).count("commit_audio") == 3
    assert len(engine.conversations) == 1


async def test_livekit_barge_in_with_truncation() -> None:
    engine = FakeEngine(" ".join(f"word{i}" for i in range(200)), frames=600, frame_s=0.005)
    async with serving(engine) as place, talking(place) as talk:
        talk.loudspeaker.holds = True
        speaking = talk.session.generate_reply()
        await talk.loudspeaker.until(1.0)
        talk.microphone.say(tone(0.4, RATE_HZ))
        async with asyncio.timeout(WAIT_S):
            await speaking
        first = await talk.until("assistant")
        assert first.interrupted
        made_s = len(talk.loudspeaker.sound) / 2 / RATE_HZ
        talk.microphone.say(silence(1.0, RATE_HZ))
        await talk.loudspeaker.until(made_s + 0.5)  # of the next reply
    kept = [call for call in calls(engine, "keep_reply") if call[0] == 1]
    assert kept[-1] == (1, 1)  # of 0.3 s that were heard: a word
    assert names(engine).count("start_reply") == 2
    assert len(engine.conversations) == 1


async def test_livekit_text_input() -> None:
    engine = FakeEngine(frames=8)
    async with serving(engine) as place, talking(place) as talk:
        await talk.session.generate_reply(user_input="What time is it?")
        assert (await talk.until("assistant")).text_content == WORDS
    assert told(engine) == [("user", "What time is it?")]


async def test_livekit_context_restore() -> None:
    engine = FakeEngine(frames=8)
    said = [("user", "Hello"), ("assistant", "Hi!"), ("user", "How are you?")]
    context = llm.ChatContext.empty()
    for role, words in said:
        context.add_message(role=role, content=words)  # type: ignore[arg-type]
    async with serving(engine) as place, talking(place, chat_ctx=context) as talk:
        await talk.session.generate_reply()
        assert (await talk.until("assistant")).text_content == WORDS
    assert told(engine) == said


async def test_livekit_reconnect() -> None:
    engine = FakeEngine(frames=8)
    async with serving(engine) as place, wire(place) as line:
        async with talking(line.place, lost=1) as talk:
            await talk.session.generate_reply(user_input="Hello")
            await talk.until("assistant")
            again = asyncio.Event()
            talk.model.on("session_reconnected", lambda event: again.set())
            line.cut()
            async with asyncio.timeout(WAIT_S):
                await again.wait()
            talk.turn()
            assert (await talk.until("assistant", 2)).text_content == WORDS
        assert line.connections == 2
    assert told(engine) == [("user", "Hello"), ("assistant", WORDS)]


async def test_livekit_with_a_model() -> None:
    async with (
        model() as engine,
        listening(create_app(engine)) as place,  # with the networks that find turns, too
        talking(place) as talk,
    ):
        await talk.session.generate_reply(instructions="Greet the user.")
        greeted_s = len(talk.loudspeaker.sound) / 2 / RATE_HZ
        assert greeted_s > 0
        talk.microphone.say(speech(RATE_HZ) + silence(5.0, RATE_HZ))
        await talk.loudspeaker.until(greeted_s + 0.08)
