"""The chat context: kept, changed by others, restored, followed by a session that only grows."""

from __future__ import annotations

import asyncio

import pytest
from livekit.agents import llm

from chroma_plugin.livekit.record import Item, Record
from tests.fakes import FakeEngine
from tests.livekit.stage import calls, listen, reply, say_into, talking, told, until


def written(*messages: tuple[str, str]) -> llm.ChatContext:
    context = llm.ChatContext.empty()
    for role, text in messages:
        context.add_message(role=role, content=text)  # type: ignore[arg-type]
    return context


def texts(context: llm.ChatContext) -> list[tuple[str, str | None]]:
    return [(i.role, i.text_content) for i in context.items if i.type == "message"]


# -- the record alone -------------------------------------------------------------------------


def test_a_record_takes_a_context_over() -> None:
    record = Record()
    context = written(("user", "one"), ("assistant", "two"))
    assert record.update(context) == ([], [])
    assert texts(record.context) == [("user", "one"), ("assistant", "two")]
    first = record.items[0]
    assert first.message is not None and first.message.text == "one"


def test_what_goes_and_what_changes_is_told() -> None:
    record = Record()
    context = written(("user", "one"), ("assistant", "two"), ("user", "three"))
    record.update(context)
    one, two, three = record.items
    context.items[0].content = ["another"]  # type: ignore[union-attr]
    del context.items[1]
    assert record.update(context) == ([two], [one])
    assert record.items == [one, three] and one.text == "another"


def test_a_moved_message_goes_and_comes() -> None:
    record = Record()
    context = written(("user", "one"), ("assistant", "two"))
    record.update(context)
    context.items.reverse()
    gone, _ = record.update(context)
    assert len(gone) == 1 and [i.text for i in record] == ["two", "one"]


def test_white_space_is_no_change() -> None:
    record = Record()
    context = written(("assistant", "one two"))
    record.update(context)
    context.items[0].content = [" one  two "]  # type: ignore[union-attr]
    assert record.update(context) == ([], [])


def test_placeholders_stay_and_empty_messages_are_none() -> None:
    record = Record()
    record.add(Item(llm.ChatMessage(id="a", role="user", content=[]), turn=1))
    record.add(Item(llm.ChatMessage(id="b", role="assistant", content=["said"]), turn=2))
    context = llm.ChatContext(
        [llm.ChatMessage(id=name, role="user", content=[]) for name in ("a", "b", "c")]
    )
    assert record.update(context) == ([], [])
    assert [i.chat.id for i in record] == ["a", "b"] and record.items[1].text == "said"


def test_an_interrupted_reply_that_nobody_heard_goes() -> None:
    record = Record()
    item = Item(llm.ChatMessage(id="b", role="assistant", content=["said"]), turn=2, cut=True)
    record.add(item)
    context = llm.ChatContext([llm.ChatMessage(id="b", role="assistant", content=[])])
    assert record.update(context) == ([item], []) and not record.items


def test_handoffs_and_the_agents_instructions_are_no_part_of_it() -> None:
    record = Record()
    context = written(("system", "Be kind."), ("user", "one"))
    context.items.append(llm.AgentHandoff(new_agent_id="b", old_agent_id="a"))
    context.items.insert(
        0,
        llm.ChatMessage(id="lk.agent_task.instructions", role="system", content=["Agent."]),
    )
    record.update(context)
    assert [i.role for i in record] == ["system", "user"] and record.instructions == "Be kind."


# -- and a session that follows ---------------------------------------------------------------


async def test_a_restored_conversation_is_its_beginning() -> None:
    async with talking() as (session, engine, _):
        await session.update_chat_ctx(written(("user", "one"), ("assistant", "two")))
        await reply(session)
        assert len(engine.conversations) == 1
        assert calls(engine, "add_text") == [("user", "one"), ("assistant", "two")]
        assert len(session.chat_ctx.items) == 3


async def test_typed_text_is_followed_and_answered() -> None:
    async with talking() as (session, engine, _):
        await reply(session)
        context = session.chat_ctx.copy()
        context.add_message(role="user", content="And now?")
        await session.update_chat_ctx(context)
        await reply(session)
        assert told(engine) == ["start_reply", "add_text", "start_reply"]
        assert len(engine.conversations) == 1 and len(session.chat_ctx.items) == 3


async def test_messages_of_the_system_become_instructions() -> None:
    async with talking() as (session, engine, _):
        await session.update_instructions("Agent.")
        await session.update_chat_ctx(written(("system", "It is late."), ("user", "one")))
        await reply(session)
        assert session._line.session.instructions == "Agent.\n\nIt is late."
        assert calls(engine, "add_text") == [("user", "one")]


async def test_a_context_that_is_replaced_replaces_the_history() -> None:
    async with talking() as (session, engine, _):
        await session.update_chat_ctx(written(("user", "It is red.")))
        await reply(session)
        await session.update_chat_ctx(written(("user", "It is blue.")))
        await reply(session)
        assert len(engine.conversations) == 2
        assert calls(engine, "add_text") == [("user", "It is blue.")]
        assert engine.conversations[0].calls[-1] == ("cancel_reply", -1)  # it was closed


async def test_a_message_dropped_under_a_reply_does_not_cut_it_off() -> None:
    async with talking(FakeEngine(frames=60)) as (session, engine, _):
        await session.update_chat_ctx(written(("user", "It is red."), ("user", "Is it?")))
        created = await session.generate_reply()
        shorter = session.chat_ctx
        del shorter.items[0]
        await session.update_chat_ctx(shorter)
        heard = await listen(created)
        assert heard.seconds == pytest.approx(60 * 0.08)
        await until(lambda: len(engine.conversations) == 2)
        await until(lambda: calls(engine, "add_text"))
        assert calls(engine, "add_text")[0] == ("user", "Is it?")


async def test_an_unchanged_context_changes_nothing() -> None:
    async with talking() as (session, engine, _):
        say_into(session)
        session.commit_audio()
        await reply(session)
        for _ in range(3):
            await session.update_chat_ctx(session.chat_ctx)
        await reply(session)
        assert len(engine.conversations) == 1
        assert told(engine) == ["commit_audio", "start_reply", "start_reply"]


async def test_speech_is_written_down_before_its_sound_is_lost() -> None:
    async with talking() as (session, engine, _):
        say_into(session)
        session.commit_audio()
        await reply(session)
        context = session.chat_ctx.copy()
        context.items.insert(
            0, llm.ChatMessage(role="user", content=["Before all."], created_at=0.0)
        )
        await session.update_chat_ctx(context)
        await reply(session)
        assert len(engine.conversations) == 2
        assert calls(engine, "add_text") == [
            ("user", "Before all."),
            ("user", "what was said"),
            ("assistant", "one two three four"),
        ]


async def test_speech_that_nobody_can_write_down_is_forgotten() -> None:
    engine = FakeEngine()
    engine.transcript = ""
    async with talking(engine) as (session, _, _events):
        say_into(session)
        session.commit_audio()
        await reply(session)
        context = session.chat_ctx.copy()
        context.items.insert(0, llm.ChatMessage(role="user", content=["Before."], created_at=0.0))
        await session.update_chat_ctx(context)
        await reply(session)
        assert calls(engine, "add_text")[1:] == [("assistant", "one two three four")]


async def test_a_turn_that_is_spoken_while_the_context_changes_is_heard() -> None:
    async with talking() as (session, engine, _):
        await session.update_chat_ctx(written(("user", "one")))
        await reply(session)
        say_into(session)
        await session.update_chat_ctx(written(("user", "two")))
        session.commit_audio()
        await reply(session)
        assert len(engine.conversations) == 2
        assert told(engine) == ["add_text", "commit_audio", "start_reply"]


async def test_a_change_in_mid_reply_waits_for_its_end() -> None:
    async with talking(FakeEngine(frames=12, frame_s=0.001)) as (session, engine, _):
        created = await session.generate_reply()
        context = session.chat_ctx.copy()
        context.add_message(role="user", content="By the way.")
        await session.update_chat_ctx(context)
        message = await anext(aiter(created.message_stream))
        assert len([f async for f in message.audio_stream]) == 12
        await until(lambda: calls(engine, "add_text"))
        assert not calls(engine, "cancel_reply")


async def test_the_newest_reply_is_taken_out() -> None:
    async with talking() as (session, engine, _):
        await session.update_chat_ctx(written(("user", "one")))
        await reply(session)
        context = session.chat_ctx.copy()
        del context.items[-1]
        await session.update_chat_ctx(context)
        await reply(session)
        assert len(engine.conversations) == 1 and calls(engine, "keep_reply") == [(1, 0)]


async def test_an_interrupted_reply_that_was_never_played_is_forgotten() -> None:
    async with talking(FakeEngine(frames=100, frame_s=0.001)) as (session, engine, _):
        created = await session.generate_reply()
        message = await anext(aiter(created.message_stream))
        await anext(aiter(message.audio_stream))
        local = session.chat_ctx
        session.interrupt()
        await asyncio.sleep(0)
        await session.update_chat_ctx(local)  # without its text: nobody heard it
        assert calls(engine, "keep_reply")[-1] == (1, 0) and not session.chat_ctx.items


async def test_contexts_come_and_go_in_any_order() -> None:
    async with talking() as (session, engine, _):
        for text in ("a", "b", "c"):
            await session.update_chat_ctx(written(("user", text)))
        await asyncio.gather(*(session.update_chat_ctx(written(("user", t))) for t in "def"))
        await reply(session)
        assert calls(engine, "add_text") == [("user", "f")]
        assert texts(session.chat_ctx)[0] == ("user", "f")
