"""What the user said, in the context: written once, before the reply, whoever writes it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

import numpy as np
import pytest

pytest.importorskip("pipecat")

from pipecat.frames.frames import (
    EndFrame,
    Frame,
    InterruptionFrame,
    LLMContextUserTurnFrame,
    LLMFullResponseEndFrame,
    LLMRunFrame,
    StartFrame,
    STTMetadataFrame,
    TranscriptionFrame,
    TTSStoppedFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from chroma_plugin.audio import INPUT_RATE_HZ, Samples
from chroma_plugin.errors import EngineBusy
from tests.fakes import FakeEngine
from tests.pipecat.pipeline import Call, conversation, log_lines, microphone_frames
from tests.pipecat.recordings import capital, tone

REPLY = ("assistant", "one two three four")


class Typist:
    """A transcriber that writes when a test lets it."""

    def __init__(self, *texts: str) -> None:
        self.texts = deque(texts)
        self.heard: list[Samples] = []
        self.waiting: list[asyncio.Event] = []

    async def __call__(self, samples: Samples) -> str:
        text, go = self.texts.popleft(), asyncio.Event()
        self.heard.append(samples)
        self.waiting.append(go)
        await go.wait()
        return text


class Stt(FrameProcessor):
    """Stands for a speech-to-text service: says what it is, and writes down when a test says so."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if isinstance(frame, StartFrame):
            await self.broadcast_frame(STTMetadataFrame, service_name="Stt", ttfs_p99_latency=0.0)

    async def write(self, text: str) -> None:
        await self.push_frame(TranscriptionFrame(text, "", "now", finalized=True))


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    await engine.start()
    yield engine


async def speak(call: Call) -> None:
    """A turn by hand, up to its end."""
    before = sum(isinstance(f, UserStoppedSpeakingFrame) for f in call.tap.frames)
    await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
    await call.until(
        lambda: sum(isinstance(f, UserStoppedSpeakingFrame) for f in call.tap.frames) > before,
        "the turn's end",
    )


async def test_the_engine_writes_down_what_was_said(engine: FakeEngine) -> None:
    async with conversation(engine, transcribe=True) as call:
        for count in (1, 2):
            await call.say(capital())
            await call.replies(count)
        await call.until(lambda: len(call.user_messages) == 2, "the user's messages")
        assert call.told() == [("user", "what was said"), REPLY] * 2
        assert call.calls("transcribe") == [("transcribe", 1), ("transcribe", 2)]
        assert len(call.requests()) == 2 and call.calls("add_text") == []  # heard, not typed
        assert call.user_messages == ["what was said"] * 2


async def test_nobody_writes_unless_asked_to(engine: FakeEngine) -> None:
    async with conversation(engine) as call:
        await call.say(capital())
        await call.replies(1)
        assert call.told() == [REPLY] and call.calls("transcribe") == []


async def test_a_transcriber_of_ones_own_hears_the_whole_turn(engine: FakeEngine) -> None:
    typist = Typist("hello")
    async with conversation(engine, vad=False, transcribe=typist) as call:
        await speak(call)
        await call.until(lambda: typist.waiting, "a transcriber at work")
        typist.waiting[0].set()
        await call.replies(1)
        assert call.told() == [("user", "hello"), REPLY]
        [heard] = typist.heard
        assert heard.dtype == np.float32 and np.array_equal(heard, call.heard())


async def test_one_that_writes_while_the_reply_is_made(engine: FakeEngine) -> None:
    """The reply has begun, and the aggregator has found nothing to write down yet."""
    typist = Typist("hello")
    async with conversation(engine, vad=False, transcribe=typist) as call:
        call.speaker.play_to(0.4)
        await speak(call)
        await call.until(lambda: call.speaker.played_s >= 0.4 - 1e-6, "0.4 s played")
        typist.waiting[0].set()
        call.speaker.play_to(float("inf"))
        await call.replies(1)
        assert call.told() == [("user", "hello"), REPLY]
        await call.send(LLMRunFrame())
        await call.replies(2)
        assert call.calls("add_text") == [] and len(call.requests()) == 2


async def test_one_that_writes_after_the_reply(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chroma_plugin.pipecat.answering.TRANSCRIPT_GRACE_S", -3600)
    typist = Typist("hello", "more")
    async with conversation(engine, vad=False, transcribe=typist) as call:
        await speak(call)
        await call.replies(1)
        assert call.told() == [REPLY]
        typist.waiting[0].set()
        await call.until(lambda: call.names(TranscriptionFrame), "the transcript")
        assert call.told() == [("user", "hello"), REPLY]
        assert call.names(LLMContextUserTurnFrame)
        await speak(call)
        await call.replies(2)
        typist.waiting[1].set()
        await call.until(lambda: ("user", "more") in call.told(), "the second transcript")
        assert call.told() == [("user", "hello"), REPLY, ("user", "more"), REPLY]
        assert len(call.requests()) == 2 and call.calls("add_text") == []


async def test_transcripts_that_come_in_the_wrong_order(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chroma_plugin.pipecat.answering.TRANSCRIPT_GRACE_S", -3600)
    typist = Typist("first", "second")
    async with conversation(engine, vad=False, transcribe=typist) as call:
        for count in (1, 2):
            await speak(call)
            await call.replies(count)
        typist.waiting[1].set()
        await call.until(lambda: ("user", "second") in call.told(), "the second")
        typist.waiting[0].set()
        await call.until(lambda: ("user", "first") in call.told(), "the first")
        assert call.told() == [("user", "first"), REPLY, ("user", "second"), REPLY]


@pytest.mark.parametrize("written", ["before the barge-in", "after it"])
async def test_a_barge_in_does_not_turn_the_order_around(written: str) -> None:
    engine = FakeEngine(frames=1000, frame_s=0.005)
    await engine.start()
    typist = Typist("hello", "stop")
    async with conversation(engine, transcribe=typist) as call:
        call.speaker.play_to(0.4)
        await call.say(capital())
        await call.until(lambda: call.speaker.played_s >= 0.4 - 1e-6, "0.4 s played")
        if written == "before the barge-in":
            typist.waiting[0].set()
            await call.reached()
        engine.frames, engine.frame_s = 24, 0.0
        await call.say(capital())
        await call.until(lambda: call.turns, "an interrupted turn")
        typist.waiting[0].set()
        call.speaker.play_to(float("inf"))
        await call.until(lambda: len(typist.waiting) == 2, "the second turn's transcriber")
        typist.waiting[1].set()
        await call.replies(2)
        await call.until(lambda: ("user", "stop") in call.told(), "all transcripts")
        assert call.told() == [("user", "hello"), ("assistant", "one two"), ("user", "stop"), REPLY]
        assert len(call.requests()) == 2 and call.calls("add_text") == []


async def test_a_barge_in_before_the_first_word() -> None:
    engine = FakeEngine(frame_s=3600)
    await engine.start()
    typist = Typist("hello", "stop")
    async with conversation(engine, transcribe=typist) as call:
        await call.say(capital())
        await call.until(lambda: call.requests(), "a request")
        engine.frame_s = 0.0
        await call.say(capital())
        await call.until(lambda: len(typist.waiting) == 2, "both transcribers")
        for go in typist.waiting:
            go.set()
        await call.until(lambda: REPLY[1] in call.turns, "the second reply")
        await call.until(lambda: len(call.told()) == 3, "all messages")
        assert call.told() == [("user", "hello"), ("user", "stop"), REPLY]


async def test_nothing_understood_writes_nothing(engine: FakeEngine) -> None:
    engine.transcript = "  "
    async with conversation(engine, transcribe=True) as call:
        await call.say(capital())
        await call.replies(1)
        assert call.told() == [REPLY]


async def test_a_transcriber_that_fails_costs_the_transcript_only(engine: FakeEngine) -> None:
    engine.transcript = EngineBusy("No time.")
    async with log_lines() as lines, conversation(engine, transcribe=True) as call:
        for count in (1, 2):
            await call.say(capital())
            await call.replies(count)
        assert call.told() == [REPLY] * 2 and not call.errors
        assert [line for line in lines if "no transcript: No time." in line]


async def test_a_transcriber_that_never_comes_back_holds_nothing_up(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chroma_plugin.pipecat.answering.TRANSCRIPT_GRACE_S", 0.01)
    monkeypatch.setattr("chroma_plugin.pipecat.transcripts.TRANSCRIPT_LIMIT_S", 0.05)
    engine.transcript = None
    async with log_lines() as lines, conversation(engine, transcribe=True) as call:
        await call.say(capital())
        await call.replies(1)
        await call.say(capital())
        await call.replies(2)
        await call.send(EndFrame())
        await call.until(lambda: call.names(EndFrame), "the end")
        assert [line for line in lines if "no transcript within" in line]


async def test_the_event(engine: FakeEngine) -> None:
    told: list[str] = []

    async def written(_: object, text: str) -> None:
        told.append(text)

    async with conversation(engine, transcribe=True) as call:
        call.chroma.add_event_handler("on_user_transcript", written)
        await call.say(capital())
        await call.replies(1)
        assert told == ["what was said"]


async def test_the_last_words_are_written_before_the_end(engine: FakeEngine) -> None:
    async with conversation(engine, transcribe=True) as call:
        await call.say(capital())
        await call.until(lambda: call.names(UserStoppedSpeakingFrame), "the turn's end")
        await call.send(EndFrame())
        await call.replies(1)
        assert call.told() == [("user", "what was said"), REPLY]


# -- somebody else writes ---------------------------------------------------------------------


async def test_a_speech_to_text_service_is_given_way_to(engine: FakeEngine) -> None:
    stt = Stt()
    async with (
        log_lines() as lines,
        conversation(engine, vad=False, before=[stt], transcribe=True) as call,
    ):
        for count in (1, 2):
            await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
            await stt.write("hello bot")
            await call.replies(count)
        await call.until(lambda: len(call.told()) == 4, "all messages")
        assert call.told() == [("user", "hello bot"), REPLY] * 2
        assert call.calls("transcribe", "add_text") == [] and len(call.requests()) == 2
        assert len([line for line in lines if "`transcribe` is not needed" in line]) == 1


async def test_late_words_of_a_speech_to_text_service_after_a_barge_in() -> None:
    """It hands its text in when the bot has been interrupted already."""
    engine = FakeEngine(frames=1000, frame_s=0.005)
    await engine.start()
    stt = Stt()
    async with conversation(engine, vad=False, before=[stt]) as call:
        call.speaker.play_to(0.4)
        await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
        await call.until(lambda: call.speaker.played_s >= 0.4 - 1e-6, "0.4 s played")
        await stt.write("hello bot")
        await call.reached()
        engine.frames, engine.frame_s = 24, 0.0
        await call.send(VADUserStartedSpeakingFrame(start_secs=0.2))
        await call.until(lambda: call.turns, "an interrupted turn")
        call.speaker.play_to(float("inf"))
        await call.until(lambda: ("user", "hello bot") in call.told(), "the late words")
        await call.send(*microphone_frames(tone(0.5), INPUT_RATE_HZ))
        await call.send(VADUserStoppedSpeakingFrame(stop_secs=0.2))
        await stt.write("stop")
        await call.replies(2)
        await call.until(lambda: len(call.told()) == 4, "all messages")
        assert call.told() == [
            ("user", "hello bot"),
            ("assistant", "one two"),
            ("user", "stop"),
            REPLY,
        ]


async def test_a_transcript_is_no_request_and_no_typed_text(engine: FakeEngine) -> None:
    async with conversation(engine, vad=False, transcribe=True) as call:
        await speak(call)
        await call.replies(1)
        await call.send(LLMRunFrame())
        await call.replies(2)
        await call.reached()
        assert len(call.requests()) == 2 and call.calls("add_text") == []
        assert not [f for f in call.tap.frames if isinstance(f, InterruptionFrame)][1:]


async def test_the_reply_is_told_to_be_over_while_the_words_are_awaited(
    engine: FakeEngine,
) -> None:
    typist = Typist("hello")
    async with conversation(engine, vad=False, transcribe=typist) as call:
        await speak(call)
        await call.until(lambda: call.names(TTSStoppedFrame), "the end of the audio")
        await call.reached()
        assert not call.names(LLMFullResponseEndFrame)
        typist.waiting[0].set()
        await call.replies(1)
        assert call.told() == [("user", "hello"), REPLY]


async def test_a_barge_in_while_the_words_are_awaited(engine: FakeEngine) -> None:
    typist = Typist("hello", "stop")
    async with conversation(engine, vad=False, transcribe=typist) as call:
        call.speaker.play_to(0.4)
        await speak(call)
        await call.until(lambda: call.names(TTSStoppedFrame), "the end of the audio")
        await call.until(lambda: call.speaker.played_s >= 0.4 - 1e-6, "0.4 s played")
        await speak(call)
        await call.until(lambda: len(call.requests()) == 2, "the second request")
        for go in typist.waiting:
            go.set()
        call.speaker.play_to(float("inf"))
        await call.replies(2)
        await call.until(lambda: len(call.told()) == 4, "all messages")
        assert call.told() == [("user", "hello"), ("assistant", "one two"), ("user", "stop"), REPLY]
        kinds = [f for f in call.tap.frames if isinstance(f, TTSStoppedFrame)]
        assert len(kinds) == 2  # once a reply


async def test_silent_frames_before_a_turn_are_not_written_down(engine: FakeEngine) -> None:
    typist = Typist("hello")
    async with conversation(engine, vad=False, transcribe=typist) as call:
        await call.send(*microphone_frames(tone(3.0), INPUT_RATE_HZ))
        await speak(call)
        await call.until(lambda: typist.heard, "a transcriber at work")
        assert len(typist.heard[0]) <= 1.0 * INPUT_RATE_HZ + 1
        typist.waiting[0].set()
