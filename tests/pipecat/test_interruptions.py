"""Whenever the user breaks in: silence, a context that holds what was heard, and one answer."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("pipecat")

from pipecat.frames.frames import (
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMMessagesAppendFrame,
    LLMRunFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)

from chroma_plugin.audio import INPUT_RATE_HZ
from chroma_plugin.errors import EngineBusy
from chroma_plugin.pipecat import ChromaRealtimeLLMService
from chroma_plugin.reply import Sink
from tests.fakes import FakeEngine
from tests.pipecat.pipeline import Call, conversation, microphone_frames
from tests.pipecat.recordings import capital, tone

REPLY = "one two three four"
SILENT_AFTER_S = 0.2
"""So much of a reply may be played after it was interrupted, at most."""


async def fake(**settings: Any) -> FakeEngine:
    engine = FakeEngine(**settings)
    await engine.start()
    return engine


async def play(call: Call, seconds: float) -> None:
    call.speaker.play_to(seconds)
    await call.until(lambda: call.speaker.played_s >= seconds - 1e-6, f"{seconds} s played")


def check(call: Call, turns: list[str], requests: int) -> None:
    """Silence after every interruption, the context as heard, every turn answered once."""
    assert max(call.speaker.after_interruptions_s) <= SILENT_AFTER_S
    assert [turn for turn in call.turns if turn] == turns
    assert [text for role, text in call.told() if role == "assistant"] == turns
    assert call.session is not None
    heard = [m.text for m in call.session.history if m.role == "assistant"]
    assert heard == turns
    assert len(call.requests()) == requests and not call.errors
    for opened, closed in (
        (LLMFullResponseStartFrame, LLMFullResponseEndFrame),
        (TTSStartedFrame, TTSStoppedFrame),
    ):
        kinds = [type(f) for f in call.tap.frames if isinstance(f, opened | closed)]
        assert kinds == [opened, closed] * (len(kinds) // 2)


@pytest.mark.parametrize(
    ("played_s", "heard"),
    [(0.04, "one"), (0.4, "one two"), (24 * 0.08 - 0.04, REPLY)],
    ids=["the first word", "the middle", "the last 80 ms"],
)
@pytest.mark.parametrize("frame_s", [0.0, 0.002], ids=["all made", "being made"])
async def test_in_the_middle_of_a_reply(played_s: float, heard: str, frame_s: float) -> None:
    engine = await fake(frame_s=frame_s)
    async with conversation(engine) as call:
        call.speaker.play_to(played_s)
        await call.say(capital())
        await play(call, played_s)
        await call.say(capital())
        await call.until(lambda: call.turns, "an interrupted turn")
        call.speaker.play_to(float("inf"))
        await call.replies(2)
        check(call, [heard, REPLY], 2)


async def test_before_the_first_audio() -> None:
    engine = await fake(frame_s=3600)
    async with conversation(engine) as call:
        await call.say(capital())
        await call.until(lambda: call.requests(), "a request")
        engine.frame_s = 0.0
        await call.say(capital())
        await call.until(lambda: REPLY in call.turns, "the reply")
        check(call, [REPLY], 2)


async def test_twice_in_a_row() -> None:
    engine = await fake()
    async with conversation(engine) as call:
        call.speaker.play_to(0.4)
        await call.say(capital())
        await play(call, 0.4)
        engine.frame_s = 3600  # the second reply does not come in time
        await call.say(capital())
        await call.until(lambda: len(call.requests()) == 2, "the second request")
        engine.frame_s = 0.0
        await call.say(capital())
        await call.until(lambda: len(call.requests()) == 3, "the third request")
        call.speaker.play_to(float("inf"))
        await call.until(lambda: REPLY in call.turns, "the third reply")
        check(call, ["one two", REPLY], 3)


async def test_three_replies_each_cut() -> None:
    engine = await fake()
    turn = microphone_frames(tone(0.5), INPUT_RATE_HZ)
    async with conversation(engine, vad=False) as call:
        call.speaker.play_to(0.4)
        await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
        for count in (1, 2, 3):
            await play(call, 0.4 * count)
            await call.send(VADUserStartedSpeakingFrame(start_secs=0.2))
            await call.until(lambda count=count: len(call.turns) == count, "an interrupted turn")
            await call.send(*turn, VADUserStoppedSpeakingFrame(stop_secs=0.2))
            await call.until(lambda count=count: len(call.requests()) == count + 1, "a request")
        call.speaker.play_to(float("inf"))
        await call.replies(4)
        check(call, ["one two"] * 3 + [REPLY], 4)


async def test_while_the_greeting_plays() -> None:
    engine = await fake()
    greeting = ChromaRealtimeLLMService.Settings(greeting="one two three four five six")
    async with conversation(engine, settings=greeting) as call:
        await play(call, 0.4)
        await call.say(capital())
        await call.until(lambda: call.turns, "an interrupted greeting")
        call.speaker.play_to(float("inf"))
        await call.replies(2)
        assert max(call.speaker.after_interruptions_s) <= SILENT_AFTER_S
        assert call.turns == ["one two", REPLY]
        assert len(call.requests()) == 2


async def test_while_a_run_is_spoken() -> None:
    engine = await fake()
    async with conversation(engine) as call:
        call.speaker.play_to(0.4)
        await call.send(LLMRunFrame())
        await play(call, 0.4)
        await call.say(capital())
        await call.until(lambda: call.turns, "an interrupted turn")
        call.speaker.play_to(float("inf"))
        await call.replies(2)
        check(call, ["one two", REPLY], 2)


async def test_while_the_reply_waits_in_line() -> None:
    """The engine is full: the reply waits for a row, the user speaks again, the refusal is late."""
    engine = await fake()
    sinks: list[Sink] = []
    async with conversation(engine) as call:
        call.conversation.start_reply = lambda request, sink: (  # type: ignore[method-assign]
            call.conversation.calls.append(("start_reply", request)),
            sinks.append(sink),
        )
        await call.say(capital())
        await call.until(lambda: sinks, "a reply in line")
        del call.conversation.start_reply
        await call.say(capital())
        await call.until(lambda: len(call.requests()) == 2, "the second request")
        sinks[0](EngineBusy("No row became free."))  # nobody asks for it any more
        await call.until(lambda: REPLY in call.turns, "the reply")
        check(call, [REPLY], 2)
        assert ("cancel_reply", 1) in call.calls("cancel_reply")


async def test_a_refused_reply_leaves_the_next_one_alone() -> None:
    engine = await fake()
    async with conversation(engine) as call:
        call.conversation.start_reply = lambda request, sink: sink(EngineBusy("Full."))  # type: ignore[method-assign]
        await call.say(capital())
        await call.until(lambda: call.errors, "a refusal")
        del call.conversation.start_reply
        await call.say(capital())
        await call.until(lambda: REPLY in call.turns, "the reply")
        assert len(call.errors) == 1 and call.chroma.is_usable
        assert call.told() == [("assistant", REPLY)]


async def test_text_typed_into_a_reply_waits_and_is_dropped_by_nobody() -> None:
    """Typed while the bot speaks, and then the user speaks too: one reply answers both."""
    engine = await fake()
    typed = {"role": "user", "content": "And then?"}
    async with conversation(engine) as call:
        call.speaker.play_to(0.4)
        await call.say(capital())
        await play(call, 0.4)
        await call.send(LLMMessagesAppendFrame(messages=[typed], run_llm=True))
        await call.reached()
        await call.say(capital())
        await call.until(lambda: call.turns, "an interrupted turn")
        call.speaker.play_to(float("inf"))
        await call.replies(2)
        check(call, ["one two", REPLY], 2)
        assert call.calls("add_text") == [("add_text", "user", "And then?")]
