"""Items and session in step, where the protocol's tests do not look."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chroma_plugin.conversation import Message
from chroma_plugin.errors import EngineFailed
from chroma_plugin.server.dialogue import Dialogue
from chroma_plugin.server.items import MAX_ITEMS, Item, Items
from chroma_plugin.server.protocol import ProtocolError
from tests.contract import read
from tests.fakes import FakeEngine
from tests.server.client import calls

SOUND = np.full(3200, 0.1, np.float32)


async def dialogue(engine: FakeEngine) -> Dialogue:
    await engine.start()

    async def open_session(history: list[Message]) -> Any:
        return await engine.open_session(history=history)

    return Dialogue(open_session, await engine.open_session(), max_turn_s=1.0)


async def test_sound_that_was_told_is_taken_back_if_the_turn_has_to_wait() -> None:
    engine = FakeEngine(frames=10)
    one = await dialogue(engine)
    stream = one.respond(instructions="", added=None)
    one.hear(SOUND)
    assert len(calls(engine, "push_audio")) == 1
    item = Item("user")
    one.commit(item)
    assert calls(engine, "clear_audio") == [()]
    assert item.turn == 0 and item.samples is not None
    one.hear(SOUND)  # the next turn
    await read(stream)
    one.follow()
    assert item.turn > 0 and item.samples is None
    names = [c[0] for c in engine.conversations[0].calls if "audio" in c[0]]
    assert names == ["push_audio", "clear_audio", "push_audio", "commit_audio", "push_audio"]
    await one.aclose()


async def test_a_turn_is_heard_as_long_as_it_may_be() -> None:
    engine = FakeEngine()
    one = await dialogue(engine)
    for _ in range(20):
        one.hear(SOUND)
    assert one.heard_ms == 1000.0
    assert sum(len(s) for (s,) in calls(engine, "push_audio")) == 16000
    one.forget()
    assert one.heard_ms == 0.0
    await one.aclose()


async def test_speech_that_nobody_can_write_down_is_left_out() -> None:
    engine = FakeEngine(frames=2)
    engine.transcript = EngineFailed("no")
    one = await dialogue(engine)
    one.hear(SOUND)
    one.commit(Item("user"))
    one.add(Item("assistant", text="Hi"))
    await one.ready()
    assert len(engine.conversations) == 2
    assert calls(engine, "add_text") == [("assistant", "Hi")]
    await one.aclose()


async def test_a_reply_before_the_newest_is_cut_in_a_new_session() -> None:
    engine = FakeEngine(frames=24)
    one = await dialogue(engine)
    items = []
    for _ in range(2):
        await one.ready()
        stream = one.respond(instructions="", added=None)
        reply = await read(stream)
        item = Item("assistant", text=reply.text, spoken=True, turn=stream.turn)
        item.audio_ms = reply.audio_ms
        item.pieces = [e for e in reply.events if hasattr(e, "tokens") and hasattr(e, "start_ms")]
        one.items.add(item)
        items.append(item)
    one.truncate(items[0], 300.0)
    assert items[0].text == "one two"
    await one.ready()
    told = [("assistant", "one two"), ("assistant", "one two three four")]
    assert calls(engine, "add_text") == told
    await one.aclose()


def test_items_stand_where_they_are_put() -> None:
    items = Items()
    assert items.add(Item("user", id="b")) is None
    assert items.add(Item("user", id="c")) == "b"
    assert items.add(Item("user", id="a"), "root") is None
    assert items.add(Item("user", id="bb"), "b") == "b"
    assert [item.id for item in items] == ["a", "b", "bb", "c"]
    items.remove(items.get("b"))
    assert items.before(items.get("bb")) == "a"
    with pytest.raises(ProtocolError, match="no item"):
        items.get("b")


def test_there_are_so_many_items_and_no_more() -> None:
    items = Items()
    for _ in range(MAX_ITEMS):
        items.add(Item("user"))
    with pytest.raises(ProtocolError, match="delete some"):
        items.add(Item("user"))
