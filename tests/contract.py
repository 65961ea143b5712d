"""What every engine owes to a host, as tests: subclass `EngineContract` and give it an `engine`.

::

    class TestMyEngine(EngineContract):
        @pytest.fixture
        async def engine(self) -> AsyncIterator[SpeechEngine]: ...

        @pytest.fixture
        async def small_engine(self) -> AsyncIterator[SpeechEngine]: ...

`engine` is started and has room for at least two sessions and two replies at once; `small_engine`
has room for one session and a deadline of at most half a second. Nothing here depends on what is
said or on how long a reply is: a model of random weights speaks noise, and may end at the cap.
Every wait is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chroma_plugin.audio import FRAME_MS, FRAME_SAMPLES, INPUT_RATE_HZ, Samples, read_audio
from chroma_plugin.config import SamplingParams
from chroma_plugin.conversation import Message
from chroma_plugin.errors import (
    AudioError,
    ConfigError,
    EngineBusy,
    EngineClosed,
    EngineError,
    SessionClosed,
)
from chroma_plugin.reply import AudioChunk, EndReason, ReplyStream, TextDelta, TurnDone
from chroma_plugin.session import Session, SpeechEngine
from chroma_plugin.voice import Voice

WAIT_S = 30.0
"""No reply of two seconds takes longer, whatever the machine."""
MAX_REPLY_S = 2.0
FRAME_BYTES = FRAME_SAMPLES * 2


@dataclass
class Reply:
    """What a reader got of one reply."""

    events: list[Any] = field(default_factory=list)

    @property
    def chunks(self) -> list[AudioChunk]:
        return [e for e in self.events if isinstance(e, AudioChunk)]

    @property
    def text(self) -> str:
        return "".join(e.text for e in self.events if isinstance(e, TextDelta))

    @property
    def pcm(self) -> bytes:
        return b"".join(chunk.pcm for chunk in self.chunks)

    @property
    def audio_ms(self) -> float:
        return sum(chunk.duration_ms for chunk in self.chunks)

    @property
    def done(self) -> TurnDone:
        assert isinstance(self.events[-1], TurnDone)
        return self.events[-1]


async def read(stream: ReplyStream, *, chunks: int | None = None) -> Reply:
    """Reads a reply to its end, or up to and including so many audio chunks."""
    reply = Reply()
    async with asyncio.timeout(WAIT_S):
        async for event in stream:
            reply.events.append(event)
            if chunks is not None and len(reply.chunks) >= chunks:
                break
    return reply


def question() -> Samples:
    """The packaged question, two seconds of speech at 16 kHz."""
    path = files("chroma_plugin") / "assets" / "questions" / "capital.flac"
    return read_audio(Path(str(path)), INPUT_RATE_HZ)


def ask(session: Session, *, seconds: float = 2.0) -> ReplyStream:
    """Pushes speech as hosts do, 20 ms at a time, and commits the turn."""
    samples = question()[: int(seconds * INPUT_RATE_HZ)]
    for start in range(0, len(samples), 320):
        session.push_audio(samples[start : start + 320])
    return session.commit_turn()


async def open_session(engine: SpeechEngine, **settings: Any) -> Session:
    async with asyncio.timeout(WAIT_S):
        return await engine.open_session(**{"max_reply_s": MAX_REPLY_S} | settings)


def spoken(session: Session) -> list[str]:
    """The assistant's messages of the history."""
    return [m.text or "" for m in session.history if m.role == "assistant"]


def assert_well_made(reply: Reply, session: Session) -> None:
    """What holds for every reply that was read to its end."""
    done = reply.done
    assert sum(isinstance(e, TurnDone) for e in reply.events) == 1
    assert reply.text == done.text
    now_ms, text_ms = 0.0, 0.0
    for i, event in enumerate(reply.events):
        if isinstance(event, AudioChunk):
            assert event.start_ms == pytest.approx(now_ms)
            assert event.pcm
            assert len(event.pcm) % FRAME_BYTES == 0
            now_ms = event.end_ms
        elif isinstance(event, TextDelta):
            assert event.start_ms >= text_ms, "text goes back in time"
            text_ms = event.start_ms
            later = next((e for e in reply.events[i:] if isinstance(e, AudioChunk)), None)
            assert later is None or event.start_ms < later.end_ms, "text before its audio"
    assert now_ms == pytest.approx(done.audio_ms)
    assert done.audio_ms <= MAX_REPLY_S * 1000 + FRAME_MS
    assert session.reply is not None
    assert session.reply.ended
    assert session.reply.delivered_ms == pytest.approx(done.audio_ms)


@contextmanager
def unchanged(session: Session) -> Iterator[None]:
    before = session.history
    yield
    assert session.history == before


def assert_same_speech(one: Reply, other: Reply) -> None:
    """The same codes: sums in another order move the samples by their last bits only."""
    a, b = (np.frombuffer(reply.pcm, "<i2").astype(int) for reply in (one, other))
    assert len(a) == len(b) > 0
    assert np.abs(a - b).max() <= 8


class EngineContract:
    """Everything that hosts rely on, whichever engine is behind the session."""

    # -- turns -------------------------------------------------------------------------------

    async def test_one_turn(self, engine: SpeechEngine) -> None:
        session = await open_session(engine)
        reply = await read(ask(session))
        assert_well_made(reply, session)
        assert reply.chunks
        assert reply.done.reason != EndReason.CANCELLED
        assert reply.done.frames == round(reply.audio_ms / FRAME_MS)
        assert reply.done.user_audio_ms == pytest.approx(2000.0)
        assert reply.done.unheard_user_ms == 0.0
        assert session.history[0] == Message("user", None, 2000.0, 1)
        assert spoken(session) == ([reply.text] if reply.text else [])
        await session.aclose()

    async def test_three_turns_in_a_row(self, engine: SpeechEngine) -> None:
        session = await open_session(engine)
        turns = []
        for _ in range(3):
            stream = ask(session)
            assert_well_made(await read(stream), session)
            turns.append(stream.turn)
        assert turns == sorted(set(turns))
        assert [m.turn for m in session.history if m.role == "user"] == turns
        await session.aclose()

    async def test_two_sessions_speak_at_the_same_time(self, engine: SpeechEngine) -> None:
        sessions = [await open_session(engine) for _ in range(2)]
        replies = await asyncio.gather(*(read(ask(s)) for s in sessions))
        for session, reply in zip(sessions, replies, strict=True):
            assert_well_made(reply, session)
            assert len([m for m in session.history if m.role == "user"]) == 1
            await session.aclose()

    async def test_the_same_seed_gives_the_same_reply(self, engine: SpeechEngine) -> None:
        replies = []
        for _ in range(2):
            session = await open_session(engine, sampling=SamplingParams(seed=7))
            replies.append(await read(ask(session)))
            await session.aclose()
        assert replies[0].text == replies[1].text
        assert_same_speech(*replies)

    async def test_a_greeting_needs_no_user(self, engine: SpeechEngine) -> None:
        session = await open_session(engine)
        reply = await read(session.respond(instructions="Greet the caller."))
        assert_well_made(reply, session)
        assert reply.done.user_audio_ms == 0.0
        assert_well_made(await read(ask(session)), session)
        await session.aclose()

    async def test_typed_text_is_answered(self, engine: SpeechEngine) -> None:
        session = await open_session(engine)
        session.add_user_text("What is the capital of France?")
        assert_well_made(await read(session.respond()), session)
        assert session.history[0] == Message("user", "What is the capital of France?")
        await session.aclose()

    async def test_what_is_said_is_the_text_given(self, engine: SpeechEngine) -> None:
        session = await open_session(engine)
        reply = await read(session.say("Hello there."))
        assert_well_made(reply, session)
        heard = reply.text.strip()
        if reply.done.reason == EndReason.END_OF_SPEECH:
            assert heard == "Hello there."
        else:  # the cap came first
            assert "Hello there.".startswith(heard)
        assert_well_made(await read(ask(session)), session)
        await session.aclose()

    async def test_a_conversation_goes_on_from_its_history(self, engine: SpeechEngine) -> None:
        history = [
            Message("system", "skipped"),
            Message("user", "Hello", 500.0, 3),
            Message("assistant", "Hi there", 500.0, 3),
            Message("user", None, 500.0, 4),
        ]
        session = await open_session(engine, history=history)
        restored = (Message("user", "Hello", 500.0), Message("assistant", "Hi there", 500.0))
        assert session.history == restored
        assert_well_made(await read(ask(session)), session)
        assert session.history[:2] == restored
        await session.aclose()

    async def test_settings_change_between_replies(self, engine: SpeechEngine) -> None:
        session = await open_session(engine)
        await read(ask(session))
        clip = Voice.default()
        other = Voice.from_samples(clip.samples[: 24_000 * 5], 24_000, clip.transcript)
        session.update(instructions="Be brief.", voice=other, sampling=SamplingParams(seed=1))
        assert_well_made(await read(ask(session)), session)
        await session.aclose()

    # -- what the user says ------------------------------------------------------------------

    async def test_silence_is_a_turn_like_any_other(self, engine: SpeechEngine) -> None:
        session = await open_session(engine)
        session.push_audio(bytes(2 * INPUT_RATE_HZ))
        reply = await read(session.commit_turn())
        assert_well_made(reply, session)
        assert reply.done.user_audio_ms == pytest.approx(1000.0)
        await session.aclose()

    @pytest.mark.parametrize("pushed_ms", [0, 20, 99])
    async def test_a_turn_of_no_word_is_refused(self, engine: SpeechEngine, pushed_ms: int) -> None:
        session = await open_session(engine)
        with unchanged(session):
            session.push_audio(bytes(32 * pushed_ms))
            with pytest.raises(AudioError, match=f"{pushed_ms} ms of audio; at least 100 ms"):
                session.commit_turn()
        assert_well_made(await read(ask(session)), session)  # and the conversation goes on
        await session.aclose()

    async def test_a_bad_piece_is_dropped_and_the_turn_goes_on(self, engine: SpeechEngine) -> None:
        session = await open_session(engine)
        session.push_audio(question()[:8_000])
        for bad in (b"odd", np.array([np.nan]), np.zeros((2, 2), np.float32)):
            with pytest.raises(AudioError):
                session.push_audio(bad)
        reply = await read(session.commit_turn())
        assert_well_made(reply, session)
        assert reply.done.user_audio_ms == pytest.approx(500.0)
        await session.aclose()

    async def test_audio_can_be_taken_back(self, engine: SpeechEngine) -> None:
        session = await open_session(engine)
        session.push_audio(question())
        session.clear_audio()
        with pytest.raises(AudioError, match="0 ms"):
            session.commit_turn()
        reply = await read(ask(session, seconds=1.0))
        assert reply.done.user_audio_ms == pytest.approx(1000.0)
        await session.aclose()

    # -- what the user said, as text ----------------------------------------------------------

    async def test_what_the_user_said_is_written_down(self, engine: SpeechEngine) -> None:
        session = await open_session(engine)
        stream = ask(session)
        async with asyncio.timeout(WAIT_S):
            text = await session.transcribe(stream.user_turn)  # while the reply is made
        assert isinstance(text, str)
        assert_well_made(await read(stream), session)
        assert session.history[0] == Message("user", text, 2000.0, 1)
        async with asyncio.timeout(WAIT_S):
            assert await session.transcribe(stream.turn) == text
            session.push_audio(question()[:8_000])
            turn = session.commit_audio()
            assert isinstance(await session.transcribe(turn), str)
        assert [m.audio_ms for m in session.history if m.role == "user"] == [2000.0, 500.0]
        assert_well_made(await read(session.respond()), session)
        await session.aclose()

    async def test_only_what_the_user_said_aloud_can_be_written_down(
        self, engine: SpeechEngine
    ) -> None:
        session = await open_session(engine)
        session.add_user_text("Hello")
        greeting = session.respond()
        with unchanged(session):
            for turn in (greeting.user_turn, 0, -1, 99):
                with pytest.raises(ConfigError, match="commit_audio"):
                    await session.transcribe(turn)
        assert_well_made(await read(greeting), session)
        await session.aclose()

    async def test_a_wait_for_a_transcript_can_be_given_up(self, engine: SpeechEngine) -> None:
        session = await open_session(engine)
        stream = ask(session)
        for _ in range(3):
            waiting = asyncio.create_task(session.transcribe(stream.turn))
            await asyncio.sleep(0)
            waiting.cancel()
            with suppress(asyncio.CancelledError):  # it may have come just now
                await waiting
        assert_well_made(await read(stream), session)
        async with asyncio.timeout(WAIT_S):
            text = await session.transcribe(stream.turn)
        assert session.history[0].text == text
        await session.aclose()

    async def test_nobody_waits_for_the_transcripts_of_a_closed_session(
        self, engine: SpeechEngine
    ) -> None:
        session, other = await open_session(engine), await open_session(engine)
        stream = ask(session)
        waiting = asyncio.create_task(session.transcribe(stream.turn))
        await asyncio.sleep(0)
        await session.aclose()
        for wait in (waiting, session.transcribe(stream.turn)):
            async with asyncio.timeout(WAIT_S):
                with pytest.raises(SessionClosed):
                    await wait
        assert session.history[0].text is None
        assert_well_made(await read(ask(other)), other)
        await other.aclose()

    # -- cancelling --------------------------------------------------------------------------

    async def test_a_cancelled_reply_ends_at_what_was_given(self, engine: SpeechEngine) -> None:
        session = await open_session(engine)
        stream = ask(session)
        before = await read(stream, chunks=1)
        session.cancel()
        session.cancel()  # twice is once
        after = await read(stream)
        assert [type(e) for e in after.events] == [TurnDone]
        assert after.done.reason == EndReason.CANCELLED
        assert after.done.text == before.text
        assert after.done.audio_ms == pytest.approx(before.audio_ms)
        assert "".join(spoken(session)) == before.text
        with unchanged(session):  # what the engine still makes of it is dropped
            await asyncio.sleep(0.3)
            assert not (await read(stream)).events
        assert_well_made(await read(ask(session)), session)
        await session.aclose()

    async def test_a_reply_can_be_cancelled_before_its_first_audio(
        self, engine: SpeechEngine
    ) -> None:
        session = await open_session(engine)
        stream = ask(session)
        session.cancel()
        reply = await read(stream)
        assert [type(e) for e in reply.events] == [TurnDone]
        assert (reply.done.text, reply.done.audio_ms, reply.done.frames) == ("", 0.0, 0)
        assert reply.done.user_audio_ms == pytest.approx(2000.0)
        assert spoken(session) == []
        assert_well_made(await read(ask(session)), session)
        assert [m.role for m in session.history[:2]] == ["user", "user"]
        await session.aclose()

    async def test_cancelled_replies_free_their_place(self, engine: SpeechEngine) -> None:
        session = await open_session(engine)
        for i in range(12):
            stream = ask(session, seconds=0.5)
            if i % 2:
                await read(stream, chunks=1)
            session.cancel()
        assert_well_made(await read(ask(session)), session)
        await session.aclose()

    async def test_a_new_turn_ends_the_reply_before_it(self, engine: SpeechEngine) -> None:
        session = await open_session(engine)
        first = ask(session)
        given = await read(first, chunks=1)
        second = ask(session)
        assert [e.reason for e in (await read(first)).events] == [EndReason.CANCELLED]
        assert_well_made(await read(second), session)
        roles = ["user", "assistant", "user"] if given.text else ["user", "user"]
        assert [m.role for m in session.history][: len(roles)] == roles
        await session.aclose()

    async def test_what_was_not_heard_leaves_the_history(self, engine: SpeechEngine) -> None:
        session = await open_session(engine)
        reply = await read(ask(session))
        session.truncate(reply.audio_ms + 1e6)
        assert spoken(session) == ([reply.text] if reply.text else [])
        session.truncate(FRAME_MS)
        kept = "".join(spoken(session))
        assert reply.text.startswith(kept)
        assert all(m.audio_ms <= FRAME_MS for m in session.history if m.role == "assistant")
        session.truncate(0.0)
        assert spoken(session) == []
        session.truncate(1e6)  # what is gone stays gone
        assert spoken(session) == []
        assert_well_made(await read(ask(session)), session)
        await session.aclose()

    async def test_a_reply_that_nobody_reads_holds_up_nobody(self, engine: SpeechEngine) -> None:
        silent, session = await open_session(engine), await open_session(engine)
        ask(silent)
        for _ in range(3):
            assert_well_made(await read(ask(session)), session)
        await silent.aclose()
        await session.aclose()

    # -- opening and closing -----------------------------------------------------------------

    async def test_closing_ends_the_reply_and_refuses_the_rest(self, engine: SpeechEngine) -> None:
        session = await open_session(engine)
        stream = ask(session)
        await read(stream, chunks=1)
        await session.aclose()
        await session.aclose()
        assert session.closed
        assert [e.reason for e in (await read(stream)).events] == [EndReason.CANCELLED]
        session.cancel()  # harmless
        for refused in (
            lambda: session.push_audio(b""),
            session.clear_audio,
            session.commit_audio,
            session.commit_turn,
            session.respond,
            lambda: session.say("Hello"),
            lambda: session.add_user_text("Hello"),
            lambda: session.truncate(0),
            session.update,
        ):
            with pytest.raises(SessionClosed, match="open a new one with open_session"):
                refused()

    async def test_closed_sessions_leave_their_place(self, engine: SpeechEngine) -> None:
        for _ in range(20):
            await (await open_session(engine)).aclose()
        session = await open_session(engine)
        assert_well_made(await read(ask(session)), session)
        await session.aclose()

    async def test_a_wrong_call_changes_nothing(self, engine: SpeechEngine) -> None:
        session = await open_session(engine)
        stream = ask(session)
        given = await read(stream, chunks=1)
        with unchanged(session):
            for wrong in (
                lambda: session.say(" "),
                lambda: session.add_user_text(""),
                lambda: session.truncate(-1.0),
                lambda: session.truncate(float("nan")),
            ):
                with pytest.raises(ConfigError):
                    wrong()
        rest = await read(stream)  # the reply speaks on
        assert rest.done.reason != EndReason.CANCELLED
        assert rest.done.text == given.text + rest.text
        await session.aclose()

    async def test_starting_twice_is_harmless(self, engine: SpeechEngine) -> None:
        await engine.start()
        session = await open_session(engine)
        assert_well_made(await read(ask(session)), session)
        await session.aclose()

    async def test_an_engine_without_room_says_so_in_time(self, small_engine: SpeechEngine) -> None:
        session = await open_session(small_engine)
        async with asyncio.timeout(5):
            with pytest.raises(EngineBusy):
                await small_engine.open_session()
        assert_well_made(await read(ask(session)), session)
        await session.aclose()
        again = await open_session(small_engine)
        assert_well_made(await read(ask(again)), again)
        await again.aclose()

    async def test_closing_an_engine_ends_its_sessions(self, small_engine: SpeechEngine) -> None:
        session = await open_session(small_engine)
        stream = ask(session)
        await read(stream, chunks=1)
        transcript = asyncio.create_task(session.transcribe(stream.turn))
        await asyncio.sleep(0)
        async with asyncio.timeout(WAIT_S):
            await small_engine.close()
            await small_engine.close()
            with suppress(EngineError):  # made or not, it is not left waiting
                await transcript
        with suppress(EngineError):  # the reader is not left waiting
            await read(stream)
        with pytest.raises(EngineClosed):
            await open_session(small_engine)
        await session.aclose()
