"""What is said and typed beside the speech: order, restored and replaced conversations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("pipecat")

from pipecat.frames.frames import (
    InputTextRawFrame,
    InterruptionFrame,
    LLMMessagesAppendFrame,
    LLMMessagesTransformFrame,
    LLMMessagesUpdateFrame,
    LLMRunFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext

from chroma_plugin.audio import INPUT_RATE_HZ
from chroma_plugin.conversation import Message
from chroma_plugin.pipecat.context import PLACES, ContextReader, News
from tests.fakes import FakeEngine
from tests.pipecat.pipeline import Call, conversation
from tests.pipecat.recordings import capital, tone


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    await engine.start()
    yield engine


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def history(call: Call) -> list[tuple[str, str | None]]:
    assert call.session is not None
    return [(m.role, m.text) for m in call.session.history]


# -- in a pipeline ----------------------------------------------------------------------------


async def test_typed_and_spoken_turns_keep_their_order(engine: FakeEngine) -> None:
    async with conversation(engine, vad=False) as call:
        await call.send(LLMMessagesAppendFrame(messages=[user("Hi.")], run_llm=True))
        await call.replies(1)
        await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
        await call.replies(2)
        await call.send(InputTextRawFrame("And then?"))
        await call.replies(3)
        said = "one two three four"
        assert history(call) == [
            ("user", "Hi."),
            ("assistant", said),
            ("user", None),
            ("assistant", said),
            ("user", "And then?"),
            ("assistant", said),
        ]


async def test_typed_text_interrupts_and_is_answered(engine: FakeEngine) -> None:
    """As a client's text message comes: an interruption, then the text."""
    async with conversation(engine, vad=False) as call:
        call.speaker.play_to(0.4)
        await call.send(LLMRunFrame())
        await call.until(lambda: call.speaker.played_s >= 0.4 - 1e-6, "0.4 s played")
        await call.send(InterruptionFrame())
        await call.until(lambda: call.turns, "an interrupted turn")
        await call.send(LLMMessagesAppendFrame(messages=[user("Wait!")], run_llm=True))
        await call.until(lambda: len(call.requests()) == 2, "the second request")
        call.speaker.play_to(float("inf"))
        await call.replies(2)
        assert call.turns == ["one two", "one two three four"]
        assert history(call)[:2] == [("assistant", "one two"), ("user", "Wait!")]
        await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)  # and the bot still listens
        await call.replies(3)


async def test_text_typed_while_the_user_speaks_is_part_of_the_turn(engine: FakeEngine) -> None:
    async with conversation(engine) as call:
        await call.say(capital())
        await call.until(lambda: call.calls("push_audio"), "audio at the engine")
        await call.send(LLMMessagesAppendFrame(messages=[user("Look.")], run_llm=True))
        await call.replies(1)
        await call.reached()
        assert len(call.requests()) == 1
        assert [c[0] for c in call.calls("add_text", "commit_audio")] == [
            "add_text",
            "commit_audio",
        ]


async def test_a_restored_conversation_is_gone_on_with(engine: FakeEngine) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        user("Hi."),
        assistant("Hello!"),
        {"role": "developer", "content": "Welcome the user back."},
    ]
    async with conversation(engine, vad=False, messages=messages) as call:
        await call.send(LLMRunFrame())
        await call.replies(1)
        [request] = call.requests()
        assert request.instructions == "Welcome the user back."
        assert history(call) == [
            ("user", "Hi."),
            ("assistant", "Hello!"),
            ("assistant", "one two three four"),
        ]
        assert call.session is not None and call.session.instructions == "Be brief."


async def test_a_replaced_context_replaces_the_conversation(engine: FakeEngine) -> None:
    async with conversation(engine, vad=False, messages=[user("Hi.")]) as call:
        await call.send(LLMRunFrame())
        await call.replies(1)
        first = call.session
        fresh = [
            {"role": "system", "content": "You are a cook."},
            user("What is for dinner?"),
        ]
        await call.send(LLMMessagesUpdateFrame(messages=fresh, run_llm=True))
        await call.replies(2)
        assert first is not None and first.closed and call.session is not first
        assert history(call) == [
            ("user", "What is for dinner?"),
            ("assistant", "one two three four"),
        ]
        assert call.session is not None and call.session.instructions == "You are a cook."
        assert len(engine.conversations) == 2 and len(call.requests()) == 1


async def test_a_context_replaced_in_silence_counts_in_the_next_turn(engine: FakeEngine) -> None:
    async with conversation(engine, vad=False) as call:
        await call.send(LLMMessagesAppendFrame(messages=[user("Hi.")], run_llm=True))
        await call.replies(1)
        await call.send(LLMMessagesUpdateFrame(messages=[user("Forget it.")]))
        await call.reached()
        assert len(engine.conversations) == 1
        await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
        await call.replies(2)
        assert history(call) == [
            ("user", "Forget it."),
            ("user", None),
            ("assistant", "one two three four"),
        ]
        assert len(call.heard()) >= 0.5 * INPUT_RATE_HZ  # all of it reached the new session


async def test_a_summarised_context_is_a_replaced_one(engine: FakeEngine) -> None:
    def summarise(messages: list[Any]) -> list[Any]:
        return [assistant("The user said hello."), *messages[-1:]]

    async with conversation(engine, vad=False, messages=[user("Hi.")]) as call:
        await call.send(LLMRunFrame())
        await call.replies(1)
        await call.send(LLMMessagesTransformFrame(transform=summarise, run_llm=True))
        await call.replies(2)
        assert history(call)[0] == ("assistant", "The user said hello.")
        assert len(engine.conversations) == 2


async def test_a_context_copied_is_the_same(engine: FakeEngine) -> None:
    def copy(messages: list[Any]) -> list[Any]:
        return [dict(message) for message in messages]

    async with conversation(engine, vad=False, messages=[user("Hi.")]) as call:
        await call.send(LLMRunFrame())
        await call.replies(1)
        await call.send(LLMMessagesTransformFrame(transform=copy, run_llm=True))
        await call.replies(2)
        assert len(engine.conversations) == 1 and call.calls("add_text")[1:] == []


async def test_several_texts_and_one_reply(engine: FakeEngine) -> None:
    async with conversation(engine, vad=False) as call:
        call.speaker.play_to(0.0)
        await call.send(LLMRunFrame())
        await call.until(lambda: call.requests(), "a request")
        await call.send(InputTextRawFrame("One."), InputTextRawFrame("Two."))
        await call.reached()
        call.speaker.play_to(float("inf"))
        await call.replies(2)
        await call.reached()
        assert len(call.requests()) == 2
        assert [c[2] for c in call.calls("add_text")] == ["One.", "Two."]


# -- the reader alone -------------------------------------------------------------------------


def test_without_a_context_there_is_nothing_to_read() -> None:
    reader = ContextReader(None)
    assert reader.begin() == [] and reader.instructions is None
    assert reader.news() == News([], []) and not reader.replaced
    reader.type("Hi.")
    reader.assistant_wrote("Hello.")
    assert reader.news() == News(["Hi."], []) and not reader.replaced
    reader.turn_spoken(1, "")
    assert not reader.insert(1, "hello")


def test_news_are_told_once() -> None:
    context = LLMContext([{"role": "system", "content": "Be kind."}, user("Hi.")])
    reader = ContextReader(context)
    assert reader.begin() == [Message("user", "Hi.")]
    assert reader.instructions == "Be kind."
    context.add_message(user("Hi."))  # the same words again are news
    context.add_message({"role": "developer", "content": "Hurry."})
    context.add_message(assistant("Hello."))
    assert reader.news() == News(["Hi."], ["Hurry."])
    assert reader.news() == News([], []) and not reader.replaced


def test_a_message_gone_is_a_context_replaced() -> None:
    context = LLMContext([user("Hi.")])
    reader = ContextReader(context)
    reader.begin()
    context.add_message(assistant("Hello."))
    reader.assistant_wrote("Hello.")
    reader.assistant_wrote("Hello.")  # told twice, written once
    assert not reader.replaced
    context.set_messages([user("Hi.")])
    assert reader.replaced
    assert reader.begin() == [Message("user", "Hi.")] and not reader.replaced


def test_new_instructions_replace_no_conversation() -> None:
    context = LLMContext([{"role": "system", "content": "Be kind."}, user("Hi.")])
    reader = ContextReader(context)
    reader.begin()
    reader.news()
    context.set_messages([{"role": "system", "content": "Be rude."}, user("Hi.")])
    assert not reader.replaced and reader.instructions == "Be rude."
    assert reader.news() == News([], [])


def test_words_go_before_the_reply_to_them() -> None:
    context = LLMContext([assistant("Hello.")])
    reader = ContextReader(context)
    reader.begin()
    reader.turn_spoken(1, "Hello.")
    context.add_message(assistant("Fine."))
    reader.turn_spoken(2, "Fine.")
    context.add_message(assistant("Bye."))
    assert reader.insert(2, "two") and reader.insert(1, "one")
    assert [m["content"] for m in context.messages] == ["Hello.", "one", "Fine.", "two", "Bye."]
    assert reader.news() == News([], [])


def test_words_go_behind_a_reply_that_was_still_to_be_written() -> None:
    context = LLMContext()
    reader = ContextReader(context)
    reader.turn_spoken(1, "")
    reader.turn_spoken(2, "Fine, thank you.")
    context.add_message(assistant("Fine,"))  # as far as it was heard
    context.add_message(assistant("Bye."))
    assert reader.insert(2, "two") and reader.insert(1, "one")
    assert [m["content"] for m in context.messages] == ["one", "Fine,", "two", "Bye."]


def test_words_of_turns_that_are_long_gone_are_dropped() -> None:
    context = LLMContext()
    reader = ContextReader(context)
    for turn in range(1, PLACES + 2):
        reader.turn_spoken(turn, "")
    assert not reader.insert(1, "one") and reader.insert(2, "two")
    context.set_messages([])
    reader.begin()
    assert not reader.insert(3, "three") and context.messages == []


def test_what_the_aggregator_writes_for_us_is_ours() -> None:
    context = LLMContext()
    reader = ContextReader(context)
    reader.turn_spoken(1, "")
    reader.coming(1, "one")
    context.add_message(assistant("Fine."))
    context.add_message(user("one"))
    assert reader.news() == News([], [])  # said, not typed
    assert not reader.user_wrote("one")
    assert not reader.is_request(context) and reader.is_request(context)
    assert [m["content"] for m in context.messages] == ["one", "Fine."]
    assert reader.user_wrote("two")  # somebody else's


def test_two_turns_that_the_aggregator_writes_at_once_are_parted() -> None:
    """A barge-in came between the first transcript and its writing."""
    context = LLMContext([])
    reader = ContextReader(context)
    reader.turn_spoken(1, "")
    reader.coming(1, "hello")
    reader.turn_spoken(2, "one two three")
    reader.coming(2, "stop")
    context.add_message(assistant("one two"))
    reader.assistant_wrote("one two")
    context.add_message(user("hello stop"))
    assert not reader.user_wrote("hello stop")
    assert context.get_messages() == [user("hello"), assistant("one two"), user("stop")]
    assert not reader.replaced and reader.news() == News([], [])


def test_an_interruption_takes_the_bookkeeping_with_it() -> None:
    context = LLMContext()
    reader = ContextReader(context)
    reader.user_wrote("one")
    reader.interrupted()
    assert reader.is_request(context)
