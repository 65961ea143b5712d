"""Sessions and replies: the contract on a fake engine, then every order of events by hand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from chroma_plugin.config import SamplingParams
from chroma_plugin.conversation import Message, ReplyRequest
from chroma_plugin.errors import (
    AudioError,
    ConfigError,
    EngineBusy,
    EngineClosed,
    EngineFailed,
    SessionClosed,
)
from chroma_plugin.reply import (
    AudioChunk,
    EndReason,
    ReplyEvent,
    Sink,
    TextClock,
    TextDelta,
    TurnDone,
)
from chroma_plugin.session import Session
from chroma_plugin.voice import Voice
from tests.contract import EngineContract, ask, read, spoken
from tests.fakes import FakeConversation, FakeEngine


class OneSessionEngine(FakeEngine):
    """A fake engine with room for one session; its end reaches the readers."""

    async def open_session(self, **settings: Any) -> Session:
        if self.conversations and not self.closed:
            raise EngineBusy("All 1 sessions are open; close one, or raise max_sessions.")
        session = await super().open_session(**settings)
        conversation, self.sink = self.conversations[-1], None
        start, close = conversation.start_reply, conversation.close

        def start_reply(request: ReplyRequest, sink: Sink) -> None:
            self.sink = sink
            start(request, sink)

        def leave() -> None:
            close()
            self.conversations.clear()

        conversation.start_reply, conversation.close = start_reply, leave  # type: ignore[method-assign]
        return session

    async def close(self) -> None:
        self.closed, conversations = True, list(self.conversations)
        for conversation in conversations:
            conversation.close()
            if self.sink:
                self.sink(EngineClosed("The engine was closed."))


class TestFakeEngine(EngineContract):
    @pytest.fixture
    async def engine(self) -> AsyncIterator[FakeEngine]:
        engine = FakeEngine()
        await engine.start()
        yield engine
        await engine.close()

    @pytest.fixture
    async def small_engine(self) -> AsyncIterator[FakeEngine]:
        engine = OneSessionEngine()
        await engine.start()
        yield engine
        await engine.close()


# -- by hand ---------------------------------------------------------------------------------


class Script(FakeConversation):
    """An engine's side whose events are sent by the test: `script.put(chunk(0))`."""

    def __init__(self) -> None:
        super().__init__(FakeEngine())
        self.put: Sink = lambda event: None

    def start_reply(self, request: ReplyRequest, sink: Sink) -> None:
        self.calls.append(("start_reply", request))
        self.put = sink

    def sent(self, name: str) -> list[Any]:
        """The arguments of every call of that name."""
        return [call[1] if len(call) == 2 else call[1:] for call in self.calls if call[0] == name]


def chunk(frame: int, frames: int = 1) -> AudioChunk:
    return AudioChunk(bytes(3840 * frames), frame * 80.0)


def done(text: str, frames: int, reason: EndReason = EndReason.END_OF_SPEECH) -> TurnDone:
    return TurnDone(reason, text, frames * 80.0, frames=frames)


def open_by_hand(**settings: Any) -> tuple[Session, Script]:
    script = Script()
    defaults = {"voice": Voice.default(), "instructions": "", "sampling": SamplingParams()}
    return Session(script, **defaults | settings), script


SPEECH = np.full(16_000, 0.25, np.float32)


def committed(**settings: Any) -> tuple[Session, Script]:
    session, script = open_by_hand(**settings)
    session.push_audio(SPEECH)
    session.commit_turn()
    return session, script


async def next_of(session: Session) -> ReplyEvent:
    assert session.reply is not None
    async with asyncio.timeout(1):
        return await anext(session.reply)


def events_of(reply: Any) -> list[Any]:
    return [e.text if isinstance(e, TextDelta) else type(e).__name__ for e in reply.events]


# -- text beside its audio -------------------------------------------------------------------


async def test_text_comes_just_before_the_audio_in_which_it_is_spoken() -> None:
    session, script = committed()
    script.put(TextDelta("now", 0.0))
    script.put(TextDelta(" soon", 100.0))
    script.put(TextDelta(" later", 170.0))
    for i in range(3):
        script.put(chunk(i))
    script.put(done("now soon later", 3))
    reply = await read(session.reply)
    assert events_of(reply) == [
        "now", "AudioChunk", " soon", "AudioChunk", " later", "AudioChunk", "TurnDone",
    ]  # fmt: skip


async def test_text_alone_is_held_back_until_its_audio() -> None:
    session, script = committed()
    script.put(TextDelta("now", 0.0))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(session.reply), 0.02)
    script.put(chunk(0))
    assert await next_of(session) == TextDelta("now", 0.0)
    assert isinstance(await next_of(session), AudioChunk)


async def test_text_that_is_late_goes_before_the_next_audio() -> None:
    session, script = committed()
    script.put(chunk(0, 4))
    script.put(TextDelta("late", 10.0))
    script.put(chunk(4))
    script.put(done("late", 5))
    reply = await read(session.reply)
    assert events_of(reply) == ["AudioChunk", "late", "AudioChunk", "TurnDone"]


async def test_text_left_at_the_end_is_placed_within_the_audio() -> None:
    session, script = committed()
    script.put(TextDelta("one", 0.0))
    script.put(TextDelta(" two", 500.0))
    script.put(TextDelta(" three", 900.0))
    script.put(chunk(0))
    script.put(done("one two three", 1))
    reply = await read(session.reply)
    assert events_of(reply) == ["one", "AudioChunk", " two", " three", "TurnDone"]
    assert all(e.start_ms < 80.0 for e in reply.events if isinstance(e, TextDelta))


async def test_a_cancel_after_the_last_audio_keeps_all_of_the_text() -> None:
    session, script = committed()
    script.put(TextDelta("one", 0.0))
    script.put(TextDelta(" two", 500.0))
    script.put(chunk(0))
    script.put(done("one two", 1))
    for _ in range(3):
        await next_of(session)
    session.cancel()  # all was handed out but for the end itself
    assert spoken(session) == ["one two"]
    assert (await next_of(session)).text == "one two"  # type: ignore[union-attr]


async def test_a_reply_of_no_text_and_one_of_no_audio_end_too() -> None:
    session, script = committed()
    script.put(chunk(0))
    script.put(done("", 1))
    assert events_of(await read(session.reply)) == ["AudioChunk", "TurnDone"]
    session.respond()
    script.put(TextDelta("unheard", 0.0))
    script.put(done("unheard", 0))
    assert events_of(await read(session.reply)) == ["TurnDone"]
    assert [m.role for m in session.history] == ["user"]
    assert script.sent("keep_reply") == [(2, 0)]


async def test_text_that_the_cap_cut_off_is_not_said_to_be_spoken() -> None:
    session, script = committed()
    script.put(TextDelta("one", 0.0, tokens=2))
    script.put(TextDelta(" two", 500.0, tokens=3))
    script.put(chunk(0))
    script.put(done("one two", 1, EndReason.MAX_SECONDS))
    reply = await read(session.reply)
    assert events_of(reply) == ["one", "AudioChunk", "TurnDone"]
    assert (reply.done.reason, reply.done.text) == (EndReason.MAX_SECONDS, "one")
    assert session.history[-1] == Message("assistant", "one", 80.0, 1)
    assert script.sent("keep_reply") == [(1, 2)]


async def test_a_reader_that_waits_is_woken() -> None:
    session, script = committed()
    reader = asyncio.create_task(read(session.reply))
    for event in (TextDelta("hi", 0.0), chunk(0), done("hi", 1)):
        await asyncio.sleep(0.005)
        script.put(event)
    assert events_of(await reader) == ["hi", "AudioChunk", "TurnDone"]
    assert not (await read(session.reply)).events  # and it is over


# -- what the user says ----------------------------------------------------------------------


async def test_audio_reaches_the_engine_as_float_in_order() -> None:
    session, script = open_by_hand()
    pcm = np.arange(-800, 800, dtype=np.int16)
    session.push_audio(pcm)
    session.push_audio(pcm.tobytes())
    session.push_audio(pcm.astype(np.float32) / 32768)
    session.push_audio(b"")
    heard = script.sent("push_audio")
    assert len(heard) == 3
    for samples in heard:
        np.testing.assert_array_equal(samples, pcm.astype(np.float32) / 32768)
    assert session.commit_audio().user_audio_ms == 300.0


@pytest.mark.parametrize("piece", [1, 7, 441, 533, 1600])
async def test_a_turn_of_exactly_100_ms_is_one_whatever_its_pieces(piece: int) -> None:
    session, _ = open_by_hand()
    samples = SPEECH[:1600]
    for start in range(0, 1600, piece):
        session.push_audio(samples[start : start + piece])
    assert session.commit_audio().user_audio_ms == 100.0
    session.push_audio(samples[1:])
    with pytest.raises(AudioError, match=r"at least 100 ms are needed. Push 16 kHz audio"):
        session.commit_audio()


async def test_ten_minutes_are_heard_to_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    session, script = open_by_hand()
    with caplog.at_level(logging.WARNING):
        for _ in range(600 * 50):  # 20 ms at a time
            session.push_audio(SPEECH[:320])
        session.commit_turn()
    assert sum(s.size for s in script.sent("push_audio")) == 60 * 16_000
    script.put(done("", 0))
    ended = (await read(session.reply)).done
    assert (ended.user_audio_ms, ended.unheard_user_ms) == (60_000.0, 540_000.0)
    assert [r.getMessage() for r in caplog.records] == [
        "turn longer than 60 s: the rest is not heard"
    ]
    session.push_audio(SPEECH)  # the next turn is heard again
    assert session.commit_audio().unheard_user_ms == 0.0


async def test_the_limit_cuts_inside_a_piece(caplog: pytest.LogCaptureFixture) -> None:
    session, script = open_by_hand(max_turn_s=0.5)
    session.push_audio(SPEECH)
    session.push_audio(SPEECH)
    assert [s.size for s in script.sent("push_audio")] == [8_000]
    turn = session.commit_audio()
    assert (turn.user_audio_ms, turn.unheard_user_ms) == (500.0, 1500.0)
    assert [r.getMessage() for r in caplog.records] == [
        "turn longer than 0.5 s: the rest is not heard"
    ]


async def test_a_refused_turn_leaves_the_reply_before_it_speaking() -> None:
    session, script = committed()
    with pytest.raises(AudioError):
        session.commit_turn()
    script.put(chunk(0))
    assert isinstance(await next_of(session), AudioChunk)


# -- what the user said, as text -------------------------------------------------------------


async def test_a_transcript_becomes_the_text_of_the_users_message() -> None:
    session, script = committed()
    script.engine.transcript = "Stop."
    session.push_audio(SPEECH[:8_000])
    session.commit_audio()
    assert await session.transcribe(2) == "Stop."
    assert session.history == (
        Message("user", None, 1000.0, 1),
        Message("user", "Stop.", 500.0, 2),
    )
    assert script.sent("transcribe") == [2]
    assert script.sent("add_text") == []  # the model keeps the sound
    script.engine.transcript = "another"
    assert await session.transcribe(2) == "Stop."  # known
    assert script.sent("transcribe") == [2]


async def test_a_turn_is_named_by_its_reply_by_itself_or_by_its_number() -> None:
    session, script = committed()
    assert session.reply is not None
    assert session.reply.user_turn.number == session.reply.turn == 1
    assert session.reply.user_turn.user_audio_ms == 1000.0
    for turn in (session.reply.user_turn, session.reply.turn):
        assert await session.transcribe(turn) == "what was said"
    assert script.sent("commit_audio") == [1]


async def test_a_turn_in_which_nothing_was_said_aloud_has_no_transcript() -> None:
    history = [Message("user", "Hello", 500.0, 3)]
    session, script = open_by_hand(history=history)
    greeting = session.say("Hi")
    for turn in (greeting.user_turn, 0, 2, 3):
        with pytest.raises(ConfigError, match=r"user_turn of a reply to a spoken turn"):
            await session.transcribe(turn)
    assert script.sent("transcribe") == []


async def test_a_transcript_that_fails_leaves_the_history_and_can_be_tried_again() -> None:
    session, script = committed()
    script.engine.transcript = AudioError("The sound of turn 1 is forgotten.")
    with pytest.raises(AudioError, match="forgotten"):
        await session.transcribe(1)
    assert session.history == (Message("user", None, 1000.0, 1),)
    script.engine.transcript = ""
    assert await session.transcribe(1) == ""
    assert session.history == (Message("user", "", 1000.0, 1),)


async def test_a_wait_that_is_cancelled_reaches_the_engine() -> None:
    session, script = committed()
    script.engine.transcript = None
    waiting = asyncio.create_task(session.transcribe(1))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert script.sent("cancel_transcript") == [1]
    assert session.history[0].text is None


async def test_closing_ends_a_wait_for_a_transcript_at_once() -> None:
    session, _ = committed()
    waiting = asyncio.create_task(session.transcribe(1))
    await asyncio.sleep(0)
    await session.aclose()
    with pytest.raises(SessionClosed, match="before the transcript"):
        await waiting
    with pytest.raises(SessionClosed, match="open a new one"):
        await session.transcribe(1)


# -- what is answered ------------------------------------------------------------------------


async def test_an_engine_is_asked_with_the_settings_of_the_moment() -> None:
    sampling = SamplingParams(temperature=0.5)
    session, script = open_by_hand(sampling=sampling, max_reply_s=3.0)
    session.push_audio(SPEECH)
    session.commit_turn(instructions="Be brief.")
    session.update(sampling=SamplingParams(seed=1), instructions="You are a parrot.")
    session.update(instructions="You are a parrot.")  # no news
    session.say("Hello")
    voice = Voice.default()
    assert script.sent("start_reply") == [
        ReplyRequest(1, voice, sampling, None, "Be brief.", 3.0),
        ReplyRequest(2, voice, SamplingParams(seed=1), "Hello", None, 3.0),
    ]
    assert script.sent("set_instructions") == ["You are a parrot."]


async def test_text_with_half_a_character_is_refused() -> None:
    session, _ = open_by_hand()
    for call in (session.say, session.add_user_text):
        with pytest.raises(ConfigError, match=r"half a character at 3 \(a lone surrogate\)"):
            call("hal\ud800f")


async def test_settings_of_the_wrong_kind_are_refused_and_change_nothing() -> None:
    session, script = open_by_hand()
    for wrong in ({"voice": "bob"}, {"sampling": {"temperature": 0.5}}):
        with pytest.raises(ConfigError, match="is of type"):
            session.update(instructions="News.", **wrong)
    assert script.sent("set_instructions") == []
    for seconds in (0, -1.0, float("nan"), float("inf"), "2"):
        with pytest.raises(ConfigError, match="max_reply_s"):
            open_by_hand(max_reply_s=seconds)


async def test_history_is_handed_to_the_engine_in_order() -> None:
    history = [
        Message("system", "skipped"),
        Message("user", "Hello", turn=9),
        Message("assistant", "Hi", 400.0, 9),
        Message("user", ""),
    ]
    session, script = open_by_hand(history=history)
    assert script.sent("add_text") == [("user", "Hello"), ("assistant", "Hi")]
    assert session.history == (Message("user", "Hello"), Message("assistant", "Hi", 400.0))


async def test_turns_are_numbered_without_repeats() -> None:
    session, script = committed()
    session.push_audio(SPEECH)
    numbers = [session.commit_audio().number, session.respond().turn, session.say("Hi").turn]
    assert numbers == [2, 3, 4]
    assert script.sent("cancel_reply") == [1, 3]


async def test_typed_text_ends_the_reply_and_waits_for_respond() -> None:
    session, script = committed()
    first = session.reply
    session.add_user_text("Stop, something else.")
    assert first is not None
    assert (await read(first)).done.reason == EndReason.CANCELLED
    assert script.sent("add_text") == [("user", "Stop, something else.")]
    assert len(script.sent("start_reply")) == 1
    session.respond()
    assert len(script.sent("start_reply")) == 2


# -- cancelling and truncating ---------------------------------------------------------------


async def spoken_by_hand(frames: int = 4) -> tuple[Session, Script]:
    """A reply of a word a frame, made and read to its end."""
    session, script = committed()
    text = ""
    for i in range(frames):
        word = f"w{i}" if not i else f" w{i}"
        text += word
        script.put(TextDelta(word, i * 80.0, tokens=i + 1))
        script.put(chunk(i))
    script.put(done(text, frames))
    await read(session.reply)
    return session, script


async def test_a_cancel_keeps_what_was_handed_out_and_tells_the_engine() -> None:
    session, script = committed()
    for i in range(4):
        script.put(TextDelta(f"w{i}", i * 80.0, tokens=3))
        script.put(chunk(i))
    script.put(done("w0w1w2w3", 4))  # made to its end, but not read
    assert spoken(session) == ["w0w1w2w3"]
    for _ in range(4):
        await next_of(session)
    session.cancel()
    assert script.sent("cancel_reply") == [1]
    assert script.sent("keep_reply") == [(1, 6)]
    assert session.history[-1] == Message("assistant", "w0w1", 160.0, 1)
    ended = await next_of(session)
    assert isinstance(ended, TurnDone)
    assert (ended.reason, ended.text, ended.audio_ms, ended.frames, ended.tokens) == (
        EndReason.CANCELLED, "w0w1", 160.0, 2, 6,
    )  # fmt: skip


async def test_what_comes_after_a_cancel_is_dropped() -> None:
    session, script = committed()
    script.put(chunk(0))
    await next_of(session)
    session.cancel()
    late: list[Any] = [TextDelta("late", 0.0), chunk(1), done("late", 2), EngineFailed("late")]
    for event in late:
        script.put(event)
    assert events_of(await read(session.reply)) == ["TurnDone"]
    assert [m.role for m in session.history] == ["user"]
    session.cancel()  # nothing speaks
    assert script.sent("cancel_reply") == [1]


async def test_what_an_older_turn_sends_never_reaches_the_newer() -> None:
    session, script = committed()
    old = script.put
    session.say("Hello")
    old(chunk(0))
    old(done("old", 1))
    script.put(chunk(0))
    script.put(done("Hello", 1))
    assert events_of(await read(session.reply)) == ["AudioChunk", "TurnDone"]
    assert spoken(session) == ["Hello"]


async def test_a_cancel_of_text_without_its_audio_leaves_nothing_heard() -> None:
    session, script = committed()
    script.put(TextDelta("one", 0.0))
    script.put(chunk(0))
    assert isinstance(await next_of(session), TextDelta)  # the audio is still to be fetched
    session.cancel()
    assert spoken(session) == []


@pytest.mark.parametrize(
    ("heard_ms", "kept", "kept_ms", "tokens"),
    [
        (0.0, None, 0.0, 0),
        (1.0, "w0", 1.0, 1),
        (80.0, "w0", 80.0, 1),
        (200.0, "w0 w1 w2", 200.0, 6),
        (319.0, "w0 w1 w2 w3", 319.0, 10),
        (320.0, "w0 w1 w2 w3", 320.0, None),
        (1e9, "w0 w1 w2 w3", 320.0, None),
        (float("inf"), "w0 w1 w2 w3", 320.0, None),
    ],
)
async def test_truncate_keeps_what_was_heard(
    heard_ms: float, kept: str | None, kept_ms: float, tokens: int | None
) -> None:
    session, script = await spoken_by_hand()
    session.truncate(heard_ms)
    expected = [Message("assistant", kept, kept_ms, 1)] if kept else []
    assert [m for m in session.history if m.role == "assistant"] == expected
    assert script.sent("keep_reply") == ([] if tokens is None else [(1, tokens)])


async def test_truncate_never_brings_back_what_was_cut() -> None:
    session, script = await spoken_by_hand()
    session.truncate(100.0)
    session.truncate(300.0)
    session.truncate(0.0, text="w0 w1 w2")
    assert session.history[-1] == Message("assistant", "w0 w1", 0.0, 1)
    assert script.sent("keep_reply") == [(1, 3), (1, 3)]


@pytest.mark.parametrize(
    ("text", "kept", "tokens"),
    [
        ("", None, 0),
        ("w0", "w0", 1),
        (" w0  w1 ", "w0 w1", 3),
        ("w0 w", "w0 w1", 3),  # a word begun counts
        ("w0 w1 w2 w3 and more", "w0 w1 w2 w3", 10),
    ],
)
async def test_truncate_by_the_text_that_was_heard(
    text: str, kept: str | None, tokens: int
) -> None:
    session, script = await spoken_by_hand()
    session.truncate(150.0, text=text)
    expected = [Message("assistant", kept, 150.0, 1)] if kept else []
    assert [m for m in session.history if m.role == "assistant"] == expected
    assert script.sent("keep_reply") == [(1, tokens)]


async def test_truncate_cancels_what_still_speaks() -> None:
    session, script = committed()
    script.put(TextDelta("w0", 0.0))
    script.put(chunk(0, 4))
    for _ in range(2):
        await next_of(session)
    session.truncate(100.0)
    assert (await next_of(session)).reason == EndReason.CANCELLED  # type: ignore[union-attr]
    assert session.history[-1] == Message("assistant", "w0", 100.0, 1)


async def test_truncate_before_any_reply_is_harmless() -> None:
    session, script = open_by_hand()
    session.truncate(0.0)
    assert script.calls == []


# -- errors ----------------------------------------------------------------------------------


async def test_an_error_reaches_the_reader_after_what_was_made() -> None:
    session, script = committed()
    script.put(TextDelta("w0", 0.0))
    script.put(chunk(0))
    script.put(TextDelta(" w1", 80.0))
    script.put(EngineFailed("The GPU is gone."))
    script.put(chunk(1))  # late
    assert isinstance(await next_of(session), TextDelta)
    assert isinstance(await next_of(session), AudioChunk)
    with pytest.raises(EngineFailed, match="The GPU is gone"):
        await next_of(session)
    assert session.reply is not None
    assert session.reply.ended
    assert not (await read(session.reply)).events  # once
    assert session.history[-1] == Message("assistant", "w0", 80.0, 1)
    assert script.sent("keep_reply") == [(1, 1)]


async def test_an_error_before_any_audio_leaves_the_users_turn_alone() -> None:
    session, script = committed()
    script.put(EngineBusy("No row became free within 5 s."))
    with pytest.raises(EngineBusy):
        await next_of(session)
    assert [m.role for m in session.history] == ["user"]
    session.respond()  # try again on the same history
    script.put(done("yes", 0))
    assert (await read(session.reply)).done.text == "yes"


async def test_an_error_does_not_play_on_after_a_cancel() -> None:
    session, script = committed()
    script.put(TextDelta("w0", 0.0))
    script.put(chunk(0))
    script.put(chunk(1))
    script.put(EngineFailed("The GPU is gone."))
    first = session.reply
    await next_of(session)
    await next_of(session)
    session.say("Sorry.")
    assert first is not None
    assert events_of(await read(first)) == ["TurnDone"]
    assert spoken(session) == ["w0"]


async def test_closing_ends_the_conversation_once() -> None:
    session, script = committed()
    script.close = lambda: script.calls.append(("close",))  # type: ignore[method-assign]
    await session.aclose()
    await session.aclose()
    assert [call[0] for call in script.calls].count("close") == 1
    assert script.sent("cancel_reply") == [1]
    script.put(chunk(0))
    assert events_of(await read(session.reply)) == ["TurnDone"]


async def test_a_fake_engine_must_be_started() -> None:
    with pytest.raises(EngineClosed, match=r"await engine\.start"):
        await FakeEngine().open_session()
    engine = FakeEngine(reply="hello", frames=3)
    await engine.start()
    session = await engine.open_session()
    assert (await read(ask(session))).text == "hello"


# -- the text clock --------------------------------------------------------------------------


def test_text_is_placed_at_the_voices_rate() -> None:
    clock = TextClock(10.0)  # 100 ms a character
    assert clock.place("one", 0.0) == 0.0
    assert clock.place(" two", 160.0) == 300.0
    assert clock.place(" six", 320.0) == 700.0


def test_text_is_never_placed_before_it_was_made() -> None:
    clock = TextClock(100.0)  # faster than the model writes
    assert [clock.place("word", made) for made in (0.0, 160.0, 320.0)] == [0.0, 160.0, 320.0]


def test_empty_text_takes_no_time() -> None:
    clock = TextClock(10.0)
    assert clock.place("", 0.0) == 0.0
    assert clock.place("word", 0.0) == 0.0


def test_a_chunk_knows_its_length() -> None:
    assert chunk(2, 3).duration_ms == 240.0
    assert chunk(2, 3).end_ms == 400.0
