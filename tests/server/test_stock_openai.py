"""The `openai` package's own realtime client, unmodified, beside this server."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fakes import FakeEngine
from tests.server.client import calls, check
from tests.server.serving import serving
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

pytest.importorskip("openai")
pytest.importorskip("websockets")

from openai import AsyncOpenAI

WAIT_S = 40.0
RATE_HZ = 24000
TURN_OFF: dict[str, Any] = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}


class Talk:
    """A connection of the package, and what came over it."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.events: list[Any] = []
        self._news = asyncio.Event()

    async def read(self) -> None:
        async for event in self.connection:
            check(event.to_dict(use_api_names=True, mode="json"))
            self.events.append(event)
            self._news.set()

    async def until(self, kind: str, count: int = 1) -> Any:
        async with asyncio.timeout(WAIT_S):
            while True:
                found = self.of(kind)
                if len(found) >= count:
                    return found[count - 1]
                self._news.clear()
                await self._news.wait()

    def of(self, kind: str) -> list[Any]:
        return [event for event in self.events if event.type == kind]

    async def append(self, sound: bytes) -> None:
        for piece in pieces(sound, RATE_HZ // 10):  # 50 ms
            await self.connection.input_audio_buffer.append(audio=base64.b64encode(piece).decode())

    async def manual(self) -> None:
        await self.connection.session.update(session=TURN_OFF)
        await self.until("session.updated")

    async def answer(self, count: int = 1) -> str:
        """What was said in the so manyth reply, when it is done."""
        done = await self.until("response.done", count)
        assert done.response.status == "completed", done.response
        return str(done.response.output[0].content[0].transcript)

    def sound(self) -> bytes:
        return b"".join(base64.b64decode(e.delta) for e in self.of("response.output_audio.delta"))


def text(words: str, role: str = "user") -> Any:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": words}]}


@asynccontextmanager
async def talking(
    place: str, restore: Callable[[Talk], Any] | None = None, **connect: Any
) -> AsyncIterator[Talk]:
    """A connection that has been greeted; nobody complains while it stands."""
    client = AsyncOpenAI(
        api_key="any", base_url=f"http://{place}/v1", websocket_base_url=f"ws://{place}/v1"
    )
    with complaints("openai", "chroma_plugin", "websockets", "uvicorn") as heard:
        async with client, client.realtime.connect(model="chroma", **connect) as connection:
            talk = Talk(connection)
            reading = asyncio.create_task(talk.read())
            try:
                await talk.until("session.created")
                yield talk
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
    assert not heard
    assert not talk.of("error")


async def test_openai_greeting() -> None:
    engine = FakeEngine(frames=8)
    async with serving(engine) as place, talking(place) as talk:
        await talk.connection.response.create(response={"instructions": "Greet the user."})
        assert await talk.answer() == WORDS
        assert talk.sound() == b"\x10\x20" * 1920 * 8
    assert calls(engine, "set_instructions") == [("Greet the user.",)]


async def test_openai_server_vad_turn() -> None:
    engine = FakeEngine(frames=8)
    async with serving(engine) as place, talking(place) as talk:
        await talk.append(silence(1.0, RATE_HZ) + tone(0.6, RATE_HZ) + silence(0.8, RATE_HZ))
        assert await talk.answer() == WORDS
        started = talk.of("input_audio_buffer.speech_started")[0]
        stopped = talk.of("input_audio_buffer.speech_stopped")[0]
    assert started.audio_start_ms == pytest.approx(700, abs=70)
    assert heard_ms(engine) == pytest.approx(stopped.audio_end_ms - started.audio_start_ms, abs=2)


async def test_openai_manual_turn() -> None:
    engine = FakeEngine(frames=8)
    async with serving(engine) as place, talking(place) as talk:
        await talk.manual()
        await talk.append(tone(0.5, RATE_HZ))
        await talk.connection.input_audio_buffer.commit()
        await talk.connection.response.create()
        assert await talk.answer() == WORDS
    assert heard_ms(engine) == pytest.approx(500, abs=2)


async def test_openai_three_turns() -> None:
    engine = FakeEngine(frames=8)
    async with serving(engine) as place, talking(place) as talk:
        for count in (1, 2, 3):
            await talk.append(tone(0.4, RATE_HZ) + silence(0.6, RATE_HZ))
            assert await talk.answer(count) == WORDS
        items = [event.item.id for event in talk.of("conversation.item.added")]
        before = [event.previous_item_id for event in talk.of("conversation.item.added")]
    assert before == [None, *items[:-1]]
    assert names(engine).count("commit_audio") == 3
    assert len(engine.conversations) == 1


async def test_openai_barge_in_with_truncation() -> None:
    engine = FakeEngine(frames=400, frame_s=0.005)
    async with serving(engine) as place, talking(place) as talk:
        await talk.connection.response.create()
        first = await talk.until("response.output_audio.delta", 10)
        await talk.append(tone(0.3, RATE_HZ))
        done = await talk.until("response.done")
        assert done.response.status == "cancelled"
        assert done.response.status_details.reason == "turn_detected"
        await talk.connection.conversation.item.truncate(
            item_id=first.item_id, content_index=0, audio_end_ms=300
        )
        await talk.until("conversation.item.truncated")
        await talk.append(silence(0.6, RATE_HZ))
        await talk.until("response.created", 2)
        await talk.connection.conversation.item.retrieve(item_id=first.item_id)
        item = (await talk.until("conversation.item.retrieved")).item
    assert item.content[0].transcript == "one two"
    kept = [call for call in calls(engine, "keep_reply") if call[0] == 1]  # of the first reply
    assert kept[-1] == (1, 2)
    assert len(engine.conversations) == 1


async def test_openai_text_input() -> None:
    engine = FakeEngine(frames=8)
    async with serving(engine) as place, talking(place) as talk:
        await talk.connection.conversation.item.create(item=text("What time is it?"))
        await talk.connection.response.create()
        assert await talk.answer() == WORDS
    assert told(engine) == [("user", "What time is it?")]


async def test_openai_context_restore() -> None:
    engine = FakeEngine(frames=8)
    context = [("user", "Hello"), ("assistant", "Hi!"), ("user", "How are you?")]
    async with serving(engine) as place, talking(place) as talk:
        for role, words in context:
            await talk.connection.conversation.item.create(item=text(words, role))
        await talk.connection.response.create()
        assert await talk.answer() == WORDS
    assert told(engine) == context


async def test_openai_reconnect() -> None:
    engine = FakeEngine(frames=8)
    async with serving(engine) as place, wire(place) as line:
        again = {"on_reconnecting": lambda event: None, "initial_delay": 0.01}
        async with talking(line.place, **again) as talk:
            await talk.connection.conversation.item.create(item=text("Hello"))
            await talk.connection.response.create()
            said = await talk.answer()
            line.cut()
            await talk.until("session.created", 2)
            for role, words in (("user", "Hello"), ("assistant", said), ("user", "And now?")):
                await talk.connection.conversation.item.create(item=text(words, role))
            await talk.connection.response.create()
            assert await talk.answer(2) == WORDS
            assert line.connections == 2
    assert told(engine) == [("user", "Hello"), ("assistant", WORDS), ("user", "And now?")]


async def test_openai_with_a_model() -> None:
    async with model() as engine, serving(engine) as place, talking(place) as talk:
        await talk.manual()
        await talk.append(speech(RATE_HZ))
        await talk.connection.input_audio_buffer.commit()
        await talk.connection.response.create()
        done = await talk.until("response.done")
        assert done.response.status in ("completed", "incomplete")  # noise may go on to the cap
        assert len(talk.sound()) == 3840 * done.response.usage.output_token_details.audio_tokens > 0
        await talk.connection.conversation.item.create(item=text("And then?"))
        await talk.connection.response.create()
        await talk.until("response.done", 2)
