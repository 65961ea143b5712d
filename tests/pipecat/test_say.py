"""Words spoken as they are: `TTSSpeakFrame`, and the greeting."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

pytest.importorskip("pipecat")

from pipecat.frames.frames import (
    ClientConnectedFrame,
    InterruptionFrame,
    LLMAssistantPushAggregationFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMMessagesAppendFrame,
    LLMRunFrame,
    LLMTextFrame,
    LLMUpdateSettingsFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)

from chroma_plugin.audio import INPUT_RATE_HZ
from chroma_plugin.errors import ConfigError
from chroma_plugin.pipecat import ChromaRealtimeLLMService
from chroma_plugin.voice import Voice
from tests.fakes import FakeEngine
from tests.pipecat.pipeline import conversation, log_lines, microphone_frames
from tests.pipecat.recordings import capital, tone

SPOKEN = (
    LLMFullResponseStartFrame,
    LLMFullResponseEndFrame,
    LLMAssistantPushAggregationFrame,
    LLMTextFrame,
    TTSStartedFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
)
Settings = ChromaRealtimeLLMService.Settings


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    await engine.start()
    yield engine


async def test_words_are_spoken_as_they_are_in_the_voice(engine: FakeEngine) -> None:
    voice = Voice.from_samples(Voice.default().samples, 24_000, Voice.default().transcript, "mine")
    async with conversation(engine, vad=False, voice=voice) as call:
        await call.send(TTSSpeakFrame("Please hold the line."))
        await call.replies(1)
        [request] = call.requests()
        assert (request.say, request.voice) == ("Please hold the line.", voice)
        assert call.told() == [("assistant", "Please hold the line.")]
        assert call.names(*SPOKEN) == [  # those of a speaker, not of a language model
            "TTSStartedFrame",
            "TTSAudioRawFrame",
            "TTSStoppedFrame",
            "LLMAssistantPushAggregationFrame",
        ]
        assert call.session is not None
        assert [m.text for m in call.session.history] == ["Please hold the line."]


async def test_words_wait_for_the_audible_reply_and_come_one_by_one(engine: FakeEngine) -> None:
    async with conversation(engine, vad=False) as call:
        call.speaker.play_to(0.4)
        await call.send(LLMRunFrame())
        await call.until(lambda: call.speaker.played_s >= 0.4 - 1e-6, "0.4 s played")
        await call.send(TTSSpeakFrame("First."), TTSSpeakFrame("Second."))
        await call.reached()
        assert len(call.requests()) == 1
        call.speaker.play_to(float("inf"))
        await call.replies(3)
        assert [r.say for r in call.requests()] == [None, "First.", "Second."]
        assert call.turns == ["one two three four", "First.", "Second."]


async def test_words_and_a_request_keep_their_order(engine: FakeEngine) -> None:
    typed = LLMMessagesAppendFrame(messages=[{"role": "user", "content": "Hi."}], run_llm=True)
    async with conversation(engine, vad=False) as call:
        call.speaker.play_to(0.0)
        await call.send(LLMRunFrame())
        await call.until(lambda: call.requests(), "a request")
        await call.send(TTSSpeakFrame("One moment."), typed)
        await call.reached()
        call.speaker.play_to(float("inf"))
        await call.replies(3)
        assert [r.say for r in call.requests()] == [None, "One moment.", None]


async def test_words_outside_the_context_are_forgotten(engine: FakeEngine) -> None:
    async with conversation(engine, vad=False) as call:
        await call.send(TTSSpeakFrame("Just a second.", append_to_context=False))
        await call.until(lambda: call.names(TTSStoppedFrame), "the end of the words")
        await call.send(LLMRunFrame())
        await call.replies(1)
        assert call.told() == [("assistant", "one two three four")]
        assert call.session is not None
        assert [m.text for m in call.session.history] == ["one two three four"]
        assert ("keep_reply", 1, 0) in call.calls("keep_reply")  # the model did not say it
        assert not call.names(LLMAssistantPushAggregationFrame)


async def test_words_can_be_interrupted(engine: FakeEngine) -> None:
    async with conversation(engine) as call:
        call.speaker.play_to(0.4)
        await call.send(TTSSpeakFrame("one two three four five six seven"))
        await call.send(TTSSpeakFrame("never said"))
        await call.until(lambda: call.speaker.played_s >= 0.4 - 1e-6, "0.4 s played")
        await call.say(capital())
        await call.until(lambda: call.turns, "interrupted words")
        call.speaker.play_to(float("inf"))
        await call.replies(2)
        assert call.turns == ["one two", "one two three four"]
        assert [r.say for r in call.requests()] == ["one two three four five six seven", None]
        assert call.session is not None
        assert [m.text for m in call.session.history] == ["one two", None, "one two three four"]


async def test_words_that_must_be_heard_survive_an_interruption(engine: FakeEngine) -> None:
    warning = TTSSpeakFrame("one two three four")
    warning.interruptible = False
    async with conversation(engine, vad=False) as call:
        call.speaker.play_to(0.4)
        await call.send(warning)
        await call.until(lambda: call.speaker.played_s >= 0.4 - 1e-6, "0.4 s played")
        await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
        await call.until(lambda: call.names(UserStoppedSpeakingFrame), "the turn's end")
        await call.reached()
        assert call.calls("cancel_reply") == [] and len(call.requests()) == 1
        call.speaker.play_to(float("inf"))
        await call.until(lambda: len(call.requests()) == 2, "the answer")
        await call.until(lambda: call.speaker.played_s > 3.83, "all of both")
        assert call.speaker.played_s == pytest.approx(2 * 24 * 0.08)


async def test_no_words_are_not_spoken(engine: FakeEngine) -> None:
    async with conversation(engine, vad=False) as call:
        await call.send(TTSSpeakFrame("  "), TTSSpeakFrame("Hello."))
        await call.replies(1)
        assert [r.say for r in call.requests()] == ["Hello."]
        assert not call.errors


async def test_words_wait_while_the_user_speaks(engine: FakeEngine) -> None:
    async with conversation(engine, vad=False) as call:
        await call.send(VADUserStartedSpeakingFrame(start_secs=0.2))
        await call.until(lambda: call.names(UserStartedSpeakingFrame), "a turn")
        await call.send(TTSSpeakFrame("Are you there?"))
        await call.send(*microphone_frames(tone(0.5), INPUT_RATE_HZ))
        await call.reached()
        assert call.requests() == []
        await call.send(VADUserStoppedSpeakingFrame(stop_secs=0.2))
        await call.replies(2)
        assert [r.say for r in call.requests()] == ["Are you there?", None]


# -- greeting ---------------------------------------------------------------------------------


async def test_the_greeting_is_spoken_when_the_client_connects(engine: FakeEngine) -> None:
    text = "Hello, I am a machine."
    async with conversation(engine, vad=False, settings=Settings(greeting=text)) as call:
        await call.reached()
        assert call.requests() == []
        await call.send(ClientConnectedFrame())
        await call.replies(1)
        await call.send(ClientConnectedFrame())  # somebody else comes in
        await call.send(LLMRunFrame())
        await call.replies(2)
        assert [r.say for r in call.requests()] == [text, None]
        assert call.told()[0] == ("assistant", text)


async def test_the_microphone_of_samples_is_a_client(engine: FakeEngine) -> None:
    async with conversation(engine, settings=Settings(greeting="Good day.")) as call:
        await call.replies(1)
        assert call.turns == ["Good day."]


async def test_the_greeting_can_be_changed_until_it_is_spoken(engine: FakeEngine) -> None:
    async with conversation(engine, vad=False, settings=Settings(greeting="Hello.")) as call:
        await call.send(LLMUpdateSettingsFrame(delta=Settings(greeting="Good evening.")))
        await call.reached()
        await call.send(ClientConnectedFrame())
        await call.replies(1)
        assert call.turns == ["Good evening."]


async def test_nobody_is_greeted_without_a_greeting(engine: FakeEngine) -> None:
    async with conversation(engine, vad=False) as call:
        await call.send(ClientConnectedFrame(), LLMRunFrame())
        await call.replies(1)
        assert [r.say for r in call.requests()] == [None]


async def test_a_greeting_that_is_no_text_is_refused(engine: FakeEngine) -> None:
    with pytest.raises(ConfigError, match="greeting"):
        ChromaRealtimeLLMService(engine=engine, settings=Settings(greeting=1))  # type: ignore[arg-type]
    async with conversation(engine, vad=False) as call, log_lines() as lines:
        await call.send(LLMUpdateSettingsFrame(delta=Settings(greeting=1)))  # type: ignore[arg-type]
        await call.reached()
        assert [line for line in lines if "greeting" in line]


async def test_a_greeting_is_cut_by_whoever_speaks_over_it(engine: FakeEngine) -> None:
    settings = Settings(greeting="one two three four five six")
    async with conversation(engine, settings=settings) as call:
        call.speaker.play_to(0.4)
        await call.until(lambda: call.speaker.played_s >= 0.4 - 1e-6, "0.4 s played")
        await call.say(capital())
        await call.until(lambda: call.turns, "a greeting that was cut")
        cut = [f for f in call.tap.frames if isinstance(f, InterruptionFrame)]
        assert cut and call.turns == ["one two"]
        call.speaker.play_to(float("inf"))
        await call.replies(2)
        assert len(call.requests()) == 2
