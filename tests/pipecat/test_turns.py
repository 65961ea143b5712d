"""Whatever says when the user speaks: Smart Turn, a button, words; muted, short, long, resumed."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest

pytest.importorskip("pipecat")

from pipecat.audio.turn.smart_turn.local_smart_turn_v3 import LocalSmartTurnAnalyzerV3
from pipecat.frames.frames import (
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    TranscriptionFrame,
    UserMuteStoppedFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.turns.types import ProcessFrameResult
from pipecat.turns.user_mute.mute_until_first_bot_complete_user_mute_strategy import (
    MuteUntilFirstBotCompleteUserMuteStrategy,
)
from pipecat.turns.user_start import MinWordsUserTurnStartStrategy, VADUserTurnStartStrategy
from pipecat.turns.user_stop import (
    BaseUserTurnStopStrategy,
    SpeechTimeoutUserTurnStopStrategy,
    TurnAnalyzerUserTurnStopStrategy,
)
from pipecat.turns.user_turn_strategies import ExternalUserTurnStrategies, UserTurnStrategies

from chroma_plugin.audio import INPUT_RATE_HZ, float_to_pcm
from chroma_plugin.pipecat import ChromaRealtimeLLMService
from chroma_plugin.pipecat.wav import WavTransport
from chroma_plugin.reply import TurnDone
from tests.fakes import FakeEngine
from tests.pipecat.pipeline import Call, conversation, log_lines, microphone_frames
from tests.pipecat.recordings import capital, silence, tone


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    await engine.start()
    yield engine


class Steps(BaseUserTurnStopStrategy):
    """Lets the fast microphone go on, frame by frame, and rest after a turn."""

    def __init__(self, transport: WavTransport) -> None:
        super().__init__()
        self._microphone = transport._microphone

    async def process_frame(self, frame: Frame) -> ProcessFrameResult:
        if isinstance(frame, InputAudioRawFrame):
            self._microphone.heard()
        return ProcessFrameResult.CONTINUE

    async def handle_user_turn_stopped(self) -> None:
        self._microphone.rest()


def smart(transport: WavTransport) -> UserTurnStrategies:
    """Pipecat's default, at any speed."""
    analyzer = TurnAnalyzerUserTurnStopStrategy(turn_analyzer=LocalSmartTurnAnalyzerV3())
    return UserTurnStrategies(start=[VADUserTurnStartStrategy()], stop=[Steps(transport), analyzer])


def by_words(_: WavTransport) -> UserTurnStrategies:
    return UserTurnStrategies(
        start=[MinWordsUserTurnStartStrategy(min_words=2)],
        stop=[SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=0)],
    )


async def test_smart_turn(engine: FakeEngine) -> None:
    async with conversation(engine, strategies=smart) as call:
        for count in (1, 2):
            await call.say(capital())
            await call.replies(count)
        assert len(call.requests()) == 2
        assert len(call.heard()) > 2 * (len(capital()) - 0.4 * INPUT_RATE_HZ)


async def test_a_button_says_when_the_user_speaks(engine: FakeEngine) -> None:
    async with conversation(
        engine, vad=False, strategies=lambda _: ExternalUserTurnStrategies()
    ) as call:
        for count in (1, 2):
            await call.send(UserStartedSpeakingFrame(), InterruptionFrame())
            await call.send(*microphone_frames(tone(1.0), INPUT_RATE_HZ))
            await call.reached()
            assert len(call.requests()) == count - 1
            await call.send(UserStoppedSpeakingFrame())
            await call.replies(count)
        assert len(call.requests()) == 2
        assert len(call.heard()) == pytest.approx(2 * INPUT_RATE_HZ, abs=320)


async def test_a_button_stops_the_bot(engine: FakeEngine) -> None:
    async with conversation(
        engine, vad=False, strategies=lambda _: ExternalUserTurnStrategies()
    ) as call:
        call.speaker.play_to(0.4)
        await call.send(UserStartedSpeakingFrame())
        await call.send(*microphone_frames(tone(0.5), INPUT_RATE_HZ), UserStoppedSpeakingFrame())
        await call.until(lambda: call.speaker.played_s >= 0.4 - 1e-6, "0.4 s played")
        await call.send(UserStartedSpeakingFrame(), InterruptionFrame())
        await call.until(lambda: call.turns == ["one two"], "an interrupted turn")
        await call.send(*microphone_frames(tone(0.5), INPUT_RATE_HZ), UserStoppedSpeakingFrame())
        call.speaker.play_to(float("inf"))
        await call.replies(2)


async def test_who_is_muted_at_first_is_not_heard(engine: FakeEngine) -> None:
    settings = ChromaRealtimeLLMService.Settings(greeting="Please listen first.")
    mute = MuteUntilFirstBotCompleteUserMuteStrategy()
    async with conversation(engine, mutes=[mute], strategies=smart, settings=settings) as call:
        call.speaker.play_to(0.4)
        await call.until(lambda: call.speaker.played_s >= 0.4 - 1e-6, "0.4 s played")
        await call.send(
            VADUserStartedSpeakingFrame(start_secs=0.2),
            *microphone_frames(tone(0.5), INPUT_RATE_HZ),
            VADUserStoppedSpeakingFrame(stop_secs=0.2),
        )
        await call.reached()
        assert call.calls("push_audio", "cancel_reply") == []
        call.speaker.play_to(float("inf"))
        await call.until(lambda: call.names(UserMuteStoppedFrame), "an ear")
        await call.say(capital())
        await call.replies(2)
        assert [r.say for r in call.requests()] == ["Please listen first.", None]
        assert len(call.heard()) < len(capital()) + INPUT_RATE_HZ


async def test_a_turn_that_was_not_over_is_gone_on_with() -> None:
    """The user only paused: the reply to the first half gives way, the second half is answered."""
    engine = FakeEngine(frame_s=3600)
    await engine.start()
    async with conversation(engine, vad=False) as call:
        await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
        await call.until(lambda: call.requests(), "a hasty request")
        engine.frame_s = 0.0
        await call.say_by_hand(tone(0.7), INPUT_RATE_HZ)
        await call.until(lambda: "one two three four" in call.turns, "the reply")
        assert call.session is not None
        assert [(m.role, m.text) for m in call.session.history] == [
            ("user", None),
            ("user", None),
            ("assistant", "one two three four"),
        ]
        assert [m.audio_ms for m in call.session.history[:2]] == pytest.approx([500, 700], abs=60)


async def test_words_that_come_late_do_not_clip_the_onset(engine: FakeEngine) -> None:
    """A strategy that counts words begins the turn when the voice is silent again."""
    async with conversation(engine, vad=False, strategies=by_words) as call:
        await call.send(VADUserStartedSpeakingFrame(start_secs=0.2))
        await call.send(*microphone_frames(tone(0.8), INPUT_RATE_HZ))
        await call.send(VADUserStoppedSpeakingFrame(stop_secs=0.2))
        await call.send(*microphone_frames(silence(0.6), INPUT_RATE_HZ))
        await call.reached()
        assert call.calls("push_audio") == []
        await call.send(TranscriptionFrame("how are you", "", "now", finalized=True))
        await call.until(lambda: call.names(UserStartedSpeakingFrame), "a turn")
        await call.send(VADUserStoppedSpeakingFrame(stop_secs=0.2))
        await call.replies(1)
        heard = call.heard()
        assert np.count_nonzero(np.abs(heard) > 0.01) > 0.7 * INPUT_RATE_HZ
        assert len(call.requests()) == 1


async def test_too_few_words_are_no_turn_while_the_bot_speaks(engine: FakeEngine) -> None:
    async with conversation(engine, vad=False, strategies=by_words) as call:
        call.speaker.play_to(0.4)
        await call.send(TranscriptionFrame("hello bot", "", "now", finalized=True))
        await call.send(VADUserStartedSpeakingFrame(start_secs=0.2))
        await call.send(*microphone_frames(tone(0.5), INPUT_RATE_HZ))
        await call.send(VADUserStoppedSpeakingFrame(stop_secs=0.2))
        await call.until(lambda: call.speaker.played_s >= 0.4 - 1e-6, "0.4 s played")
        await call.send(VADUserStartedSpeakingFrame(start_secs=0.2))
        await call.send(*microphone_frames(tone(0.3), INPUT_RATE_HZ))
        await call.send(VADUserStoppedSpeakingFrame(stop_secs=0.2))
        await call.send(TranscriptionFrame("mhm", "", "now", finalized=True))
        await call.reached()
        assert call.calls("cancel_reply") == [] and len(call.requests()) == 1
        call.speaker.play_to(float("inf"))
        await call.until(lambda: call.turns, "the whole reply")
        assert call.turns == ["one two three four"]


async def test_a_very_long_turn_is_cut_and_answered(engine: FakeEngine) -> None:
    done: list[TurnDone] = []

    async def made(_: object, event: TurnDone) -> None:
        done.append(event)

    async with conversation(engine, vad=False) as call:
        call.chroma.add_event_handler("on_reply_done", made)
        second = InputAudioRawFrame(float_to_pcm(tone(1.0)), INPUT_RATE_HZ, 1)
        await call.send(VADUserStartedSpeakingFrame(start_secs=0.2))
        for _ in range(62):
            await call.send(second)
        await call.send(VADUserStoppedSpeakingFrame(stop_secs=0.2))
        await call.replies(1)
        assert done[0].user_audio_ms == pytest.approx(60_000, abs=100)
        assert done[0].unheard_user_ms == pytest.approx(2_000, abs=200)


async def test_a_very_short_turn_is_no_turn_and_the_next_one_is(engine: FakeEngine) -> None:
    async with conversation(engine, vad=False) as call:
        await call.say_by_hand(tone(0.06), INPUT_RATE_HZ)
        await call.until(lambda: call.names(UserStoppedSpeakingFrame), "the turn's end")
        await call.reached()
        assert call.requests() == [] and not call.errors
        await call.say_by_hand(tone(0.2), INPUT_RATE_HZ)
        await call.replies(1)


async def test_one_sample_rate_after_another(engine: FakeEngine) -> None:
    """A transport that changes its rate in the middle of a call."""
    async with conversation(engine, vad=False) as call:
        for count, rate_hz in enumerate((8_000, 48_000, 16_000), 1):
            await call.say_by_hand(tone(1.0, rate_hz), rate_hz)
            await call.replies(count)
        assert len(call.heard()) == pytest.approx(3 * INPUT_RATE_HZ, rel=0.05)


async def test_without_vad_nothing_is_answered_and_the_log_says_so(engine: FakeEngine) -> None:
    async with log_lines() as lines, conversation(engine, vad=False) as call:
        await call.send(*microphone_frames(tone(12.0), INPUT_RATE_HZ))
        await call.reached()
        assert call.requests() == []
        assert len([line for line in lines if "vad_analyzer" in line]) == 1


async def sent_until(call: Call, *frames: Frame) -> None:
    await call.send(*frames)
    await call.reached()


async def test_a_turn_that_begins_twice_is_one(engine: FakeEngine) -> None:
    async with conversation(
        engine, vad=False, strategies=lambda _: ExternalUserTurnStrategies()
    ) as call:
        audio = microphone_frames(tone(0.5), INPUT_RATE_HZ)
        await sent_until(call, UserStartedSpeakingFrame(), *audio)
        await sent_until(call, UserStartedSpeakingFrame(), *audio)
        await sent_until(call, UserStoppedSpeakingFrame(), UserStoppedSpeakingFrame())
        await call.replies(1)
        assert len(call.requests()) == 1
        assert len(call.heard()) == pytest.approx(INPUT_RATE_HZ, abs=320)
