"""ChromaRealtimeLLMService in whole pipelines, with an engine that needs no model."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pipecat")

from pipecat.adapters.llm.schemas.function_schema import FunctionSchema
from pipecat.adapters.llm.schemas.tools_schema import ToolsSchema
from pipecat.frames.frames import (
    BotStoppedSpeakingFrame,
    EndFrame,
    InputTextRawFrame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMMessagesAppendFrame,
    LLMRunFrame,
    LLMTextFrame,
    LLMUpdateSettingsFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.metrics.metrics import (
    LLMUsageMetricsData,
    ProcessingMetricsData,
    TTFAMetricsData,
    TTFBMetricsData,
)
from pipecat.observers.user_bot_latency_observer import UserBotLatencyObserver
from pipecat.services.settings import LLMSettings

from chroma_plugin.audio import INPUT_RATE_HZ, Samples, float_to_pcm, read_audio
from chroma_plugin.config import DEFAULT_INSTRUCTIONS, SamplingParams
from chroma_plugin.errors import ConfigError, EngineBusy, EngineClosed, EngineFailed
from chroma_plugin.pipecat import ChromaRealtimeLLMService
from chroma_plugin.reply import AudioChunk, EndReason, Sink, TurnDone
from chroma_plugin.voice import Voice
from tests.fakes import FakeEngine
from tests.pipecat.pipeline import Call, conversation, log_lines, microphone_frames

RESPONSE = (
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    InterruptionFrame,
    LLMFullResponseStartFrame,
    LLMFullResponseEndFrame,
    TTSStartedFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
)


@pytest.fixture
async def engine() -> FakeEngine:
    engine = FakeEngine()
    await engine.start()
    return engine


def capital() -> Samples:
    """The packaged question: espeak-ng asks for a capital."""
    path = files("chroma_plugin") / "assets" / "questions" / "capital.flac"
    return read_audio(str(path), INPUT_RATE_HZ)


def recorded(name: str) -> Samples:
    """Recorded speech; not in the package."""
    folder = Path(os.environ.get("CHROMA_TEST_AUDIO", Path(__file__).parents[3] / "shared/audio"))
    if not (folder / name).is_file():
        pytest.skip(f"no {name} in {folder}; set CHROMA_TEST_AUDIO")
    return read_audio(folder / name, INPUT_RATE_HZ)


def tone(seconds: float, rate_hz: int = INPUT_RATE_HZ) -> Samples:
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * 220 * t)).astype(np.float32)


def requests(call: Call) -> list[Any]:
    return [request for _, request in call.calls("start_reply")]


def audible(call: Call) -> None:
    """Lets the engine speak a tone: its own samples are all the same, which is silence."""
    start_reply, pcm = call.conversation.start_reply, float_to_pcm(tone(0.08, 24_000))

    def start_with_tone(request: Any, sink: Sink) -> None:
        start_reply(
            request, lambda e: sink(replace(e, pcm=pcm) if isinstance(e, AudioChunk) else e)
        )

    call.conversation.start_reply = start_with_tone  # type: ignore[method-assign]


# -- turns ------------------------------------------------------------------------------------


async def test_one_turn(engine: FakeEngine) -> None:
    async with conversation(engine) as call:
        await call.say(capital())
        await call.replies(1)
        assert call.names(*RESPONSE) == [
            "UserStartedSpeakingFrame",
            "InterruptionFrame",
            "UserStoppedSpeakingFrame",
            "LLMFullResponseStartFrame",
            "TTSStartedFrame",
            "TTSAudioRawFrame",
            "TTSStoppedFrame",
            "LLMFullResponseEndFrame",
        ]
        assert call.turns == ["one two three four"]
        assert call.context.messages == [{"role": "assistant", "content": "one two three four"}]
        assert [c[0] for c in call.calls("commit_audio", "start_reply")] == [
            "commit_audio",
            "start_reply",
        ]
        assert call.speaker.played_s == pytest.approx(24 * 0.08)


async def test_text_goes_out_beside_its_audio(engine: FakeEngine) -> None:
    async with conversation(engine) as call:
        await call.say(capital())
        await call.replies(1)
    sent, audio_ms = [], 0.0
    for frame in call.tap.frames:
        if isinstance(frame, TTSAudioRawFrame):
            assert (frame.sample_rate, frame.num_channels) == (24_000, 1)
            audio_ms += len(frame.audio) / 48
        elif isinstance(frame, TTSTextFrame):
            assert frame.includes_inter_frame_spaces
            sent.append((frame.text, audio_ms))
        elif isinstance(frame, LLMTextFrame):
            assert not frame.append_to_context  # or the context would have it twice
    assert "".join(text for text, _ in sent) == "one two three four"
    places = [at for _, at in sent]
    assert places == sorted(places) and places[0] == 0 and places[-1] > 3 * 80


async def test_the_engine_hears_while_the_user_speaks(engine: FakeEngine) -> None:
    async with conversation(engine) as call:
        await call.say(capital())
        await call.until(lambda: call.calls("push_audio"), "audio at the engine")
        assert not call.calls("commit_audio")
        await call.replies(1)
        pieces = [len(c[1]) for c in call.calls("push_audio")]
        assert max(pieces[1:]) <= INPUT_RATE_HZ // 50  # one transport frame at a time
        assert len(capital()) - 0.4 * INPUT_RATE_HZ < sum(pieces)  # its silent ends apart


@pytest.mark.parametrize("name", ["hello_world.wav", "make_taco.wav", "weather_question.wav"])
async def test_recorded_speech(engine: FakeEngine, name: str) -> None:
    async with conversation(engine) as call:
        await call.say(recorded(name))
        await call.replies(1)
        assert len(requests(call)) == 1


async def test_three_turns_in_a_row(engine: FakeEngine) -> None:
    async with conversation(engine) as call:
        for count in (1, 2, 3):
            await call.say(capital())
            await call.replies(count)
        assert [r.turn for r in requests(call)] == [1, 2, 3]
        assert [m["role"] for m in call.context.messages] == ["assistant"] * 3
        assert (
            call.names(LLMFullResponseStartFrame, LLMFullResponseEndFrame)
            == [
                "LLMFullResponseStartFrame",
                "LLMFullResponseEndFrame",
            ]
            * 3
        )
        assert not call.errors


@pytest.mark.parametrize("made", ["while it is made", "when all is made"])
async def test_barge_in(made: str) -> None:
    still_made = made == "while it is made"
    engine = FakeEngine(frames=1000 if still_made else 24, frame_s=0.005 if still_made else 0.0)
    await engine.start()
    cancelled_first: list[bool] = []

    async with conversation(engine) as call:

        async def pushing(_: Any, frame: Any) -> None:
            if isinstance(frame, InterruptionFrame):
                cancelled_first.append(bool(call.calls("cancel_reply", "keep_reply")))

        call.chroma.add_event_handler("on_before_push_frame", pushing)
        call.speaker.play_to(0.4)
        await call.say(capital())
        await call.until(lambda: call.speaker.played_s >= 0.4 - 1e-6, "0.4 s played")
        if not still_made:
            await call.until(lambda: "TTSStoppedFrame" in call.names(), "all of the reply")
        await call.say(capital())
        await call.until(lambda: call.turns, "an interrupted turn")
        assert cancelled_first == [False, still_made]  # nothing more is made, then it is told
        # " three" would be said after 0.5 s
        assert call.turns == ["one two"]
        assert call.context.messages == [{"role": "assistant", "content": "one two"}]
        second = call.tap.frames.index(
            [f for f in call.tap.frames if isinstance(f, InterruptionFrame)][1]
        )
        engine.frames, engine.frame_s = 24, 0.0
        call.speaker.play_to(float("inf"))
        await call.replies(2)
        after = call.tap.frames[second + 1 :]
        opened = next(i for i, f in enumerate(after) if isinstance(f, LLMFullResponseStartFrame))
        closed = [type(f) for f in after[:opened] if isinstance(f, RESPONSE)]
        expected = [TTSStoppedFrame, LLMFullResponseEndFrame] if still_made else []
        assert closed == [*expected, UserStoppedSpeakingFrame]  # and no late audio
        assert len(requests(call)) == 2
        session = call.session
        assert session is not None
        assert [(m.role, m.text) for m in session.history] == [
            ("user", None),
            ("assistant", "one two"),
            ("user", None),
            ("assistant", "one two three four"),
        ]
        kept = call.calls("keep_reply")
        assert kept[-1] == ("keep_reply", 1, 2)


async def test_barge_in_before_the_first_word_leaves_no_message() -> None:
    engine = FakeEngine(frame_s=3600)
    await engine.start()
    async with conversation(engine, metrics=True) as call:
        await call.say(capital())
        await call.until(lambda: requests(call), "a request")
        engine.frame_s = 0.0
        await call.say(capital())
        await call.until(lambda: "one two three four" in call.turns, "the second reply")
        assert call.context.messages == [{"role": "assistant", "content": "one two three four"}]
        session = call.session
        assert session is not None
        assert [m.role for m in session.history] == ["user", "user", "assistant"]
        waits = [m.value for m in call.tap.metrics if isinstance(m, TTFBMetricsData)]
        assert len([wait for wait in waits if wait]) == 1  # the one that was not interrupted


async def test_what_nobody_plays_nobody_hears(engine: FakeEngine) -> None:
    engine.frames = 3
    async with conversation(engine, vad=False, played=False) as call:
        await call.send(LLMRunFrame())
        await call.until(lambda: "LLMFullResponseEndFrame" in call.names(), "a reply")
        await call.send(InterruptionFrame())
        await call.reached()
        call.tap.frames.clear()
        await call.send(LLMRunFrame(), LLMRunFrame())  # and nobody says when it has been played
        await call.until(lambda: call.names().count("LLMFullResponseEndFrame") == 2, "replies")
        session = call.session
        assert session is not None
        assert [m.turn for m in session.history] == [2, 3]


async def test_interruptions_of_a_silent_bot_change_nothing(engine: FakeEngine) -> None:
    async with conversation(engine, vad=False) as call:
        await call.send(InterruptionFrame(), InterruptionFrame())
        await call.send(LLMRunFrame())
        await call.replies(1)
        assert call.calls("cancel_reply", "keep_reply") == []


async def test_noise_is_no_turn(engine: FakeEngine) -> None:
    async with conversation(engine, vad=False) as call:
        await call.send(
            VADUserStartedSpeakingFrame(start_secs=0.2), VADUserStoppedSpeakingFrame(stop_secs=0.2)
        )
        await call.until(lambda: "UserStoppedSpeakingFrame" in call.names(), "the turn's end")
        await call.reached()
        assert call.calls("commit_audio", "start_reply") == []  # less than 100 ms
        assert not call.errors
        await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
        await call.replies(1)


async def test_what_came_before_vad_was_sure_is_heard(engine: FakeEngine) -> None:
    before, spoken = tone(2.0), tone(0.6)
    async with conversation(engine, vad=False) as call:
        await call.say_by_hand(spoken, INPUT_RATE_HZ, before=before)
        await call.replies(1)
        preroll = round((0.2 + 0.3) * INPUT_RATE_HZ)
        wanted = np.concatenate([before[-preroll:], spoken])
        assert np.allclose(call.heard(), wanted, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 24_000, 48_000])
async def test_any_rate_in(engine: FakeEngine, rate_hz: int, channels: int) -> None:
    async with conversation(engine, vad=False) as call:
        await call.say_by_hand(tone(1.0, rate_hz), rate_hz, channels)
        await call.replies(1)
        heard = call.heard()
        assert 0.9 * INPUT_RATE_HZ < len(heard) <= INPUT_RATE_HZ  # the filter keeps a little
        middle = heard[4000:12000]
        crossings = np.count_nonzero(np.diff(np.signbit(middle))) / 2 / 0.5
        assert crossings == pytest.approx(220, abs=3)
        assert np.abs(middle).max() == pytest.approx(0.3, abs=0.02)


# -- requests without speech ------------------------------------------------------------------


async def test_greeting(engine: FakeEngine) -> None:
    messages = [
        {"role": "system", "content": "You are a pirate."},
        {"role": "developer", "content": "Greet the user."},
    ]
    async with conversation(engine, messages=messages) as call:
        await call.send(LLMRunFrame())
        await call.replies(1)
        [request] = requests(call)
        assert request.instructions == "Greet the user."
        session = call.session
        assert session is not None and session.instructions == "You are a pirate."
        assert call.calls("add_text", "commit_audio") == []
        await call.send(LLMRunFrame())
        await call.replies(2)
        assert requests(call)[1].instructions is None  # said once


async def test_typed_text_is_answered(engine: FakeEngine) -> None:
    async with conversation(engine) as call:
        typed = {"role": "user", "content": "What is the capital of France?"}
        await call.send(LLMMessagesAppendFrame(messages=[typed], run_llm=True))
        await call.replies(1)
        await call.send(LLMRunFrame())
        await call.replies(2)
        assert [c[0] for c in call.calls("add_text", "start_reply")] == [
            "add_text",
            "start_reply",
            "start_reply",
        ]
        assert call.calls("add_text") == [("add_text", "user", typed["content"])]


async def test_raw_input_text_is_answered_and_kept_as_the_users(engine: FakeEngine) -> None:
    async with conversation(engine) as call:
        await call.send(InputTextRawFrame("Hello there."))
        await call.replies(1)
        assert call.calls("add_text") == [("add_text", "user", "Hello there.")]
        assert call.context.messages == [
            {"role": "user", "content": "Hello there."},
            {"role": "assistant", "content": "one two three four"},
        ]


async def test_text_typed_without_a_request_is_known_in_the_next_turn(engine: FakeEngine) -> None:
    async with conversation(engine) as call:
        typed = {"role": "user", "content": "My name is Ada."}
        await call.send(LLMMessagesAppendFrame(messages=[typed]))
        await call.reached()
        assert requests(call) == []
        await call.say(capital())
        await call.replies(1)
        assert [c[0] for c in call.calls("add_text", "commit_audio", "start_reply")] == [
            "add_text",
            "commit_audio",
            "start_reply",
        ]


async def test_a_run_waits_for_the_audible_reply(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chroma_plugin.pipecat.response.PLAYED_MARGIN_S", 3600)
    async with conversation(engine) as call:
        call.speaker.play_to(0.4)
        await call.send(LLMRunFrame())
        await call.until(lambda: call.speaker.played_s >= 0.4 - 1e-6, "0.4 s played")
        typed = {"role": "user", "content": "And then?"}
        await call.send(LLMMessagesAppendFrame(messages=[typed], run_llm=True), LLMRunFrame())
        await call.reached()
        assert len(requests(call)) == 1
        call.speaker.play_to(float("inf"))
        await call.replies(2)
        await call.reached()
        assert len(requests(call)) == 2  # both requests are answered by one reply
        assert call.turns == ["one two three four"] * 2


async def test_the_context_frame_after_a_transcript_is_no_request(engine: FakeEngine) -> None:
    async with conversation(engine, vad=False) as call:
        await call.send(VADUserStartedSpeakingFrame(start_secs=0.2))
        await call.send(*microphone_frames(tone(0.5), INPUT_RATE_HZ))
        await call.send(TranscriptionFrame("hello bot", "", "now"))
        await call.send(VADUserStoppedSpeakingFrame(stop_secs=0.2))
        await call.replies(1)
        await call.reached()
        assert call.context.messages == [
            {"role": "user", "content": "hello bot"},
            {"role": "assistant", "content": "one two three four"},
        ]
        assert len(requests(call)) == 1
        await call.send(LLMRunFrame())
        await call.replies(2)
        assert call.calls("add_text") == []  # it was heard, not typed


async def test_a_given_context_is_the_beginning_of_the_conversation(engine: FakeEngine) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello!"},
    ]
    async with conversation(engine, messages=messages) as call:
        session = call.session
        assert session is not None
        assert [(m.role, m.text) for m in session.history] == [
            ("user", "Hi."),
            ("assistant", "Hello!"),
        ]
        await call.send(LLMRunFrame())
        await call.replies(1)
        assert len(call.calls("add_text")) == 2  # of the history


# -- settings ---------------------------------------------------------------------------------


async def test_settings_reach_the_session(engine: FakeEngine) -> None:
    voice = Voice.from_samples(Voice.default().samples, 24_000, Voice.default().transcript, "mine")
    settings = ChromaRealtimeLLMService.Settings(
        system_instruction="Be kind.",
        temperature=0.5,
        top_k=7,
        top_p=0.9,
        seed=3,
        repetition_penalty=1.2,
        max_reply_s=0.8,
    )
    async with conversation(engine, voice=voice, settings=settings) as call:
        await call.send(LLMRunFrame())
        await call.replies(1)
        [request] = requests(call)
        assert request.voice is voice
        assert request.sampling == SamplingParams(0.5, 7, 0.9, 3, 1.2)
        assert request.max_reply_s == 0.8
        session = call.session
        assert session is not None and session.instructions == "Be kind."


async def test_changed_settings_count_from_the_next_reply_on(engine: FakeEngine) -> None:
    voice = Voice.from_samples(Voice.default().samples, 24_000, Voice.default().transcript, "new")
    delta = ChromaRealtimeLLMService.Settings(
        system_instruction="Be a poet.", temperature=0.0, voice=voice
    )
    async with conversation(engine) as call:
        await call.send(LLMRunFrame())
        await call.replies(1)
        await call.send(LLMUpdateSettingsFrame(delta=delta), LLMRunFrame())
        await call.replies(2)
        first, second = requests(call)
        assert (first.sampling.temperature, second.sampling.temperature) == (1.0, 0.0)
        assert first.voice is not voice and second.voice is voice
        assert call.calls("set_instructions") == [("set_instructions", "Be a poet.")]


async def test_refused_settings_are_named(engine: FakeEngine) -> None:
    unknown = ChromaRealtimeLLMService.Settings.from_mapping({"speed": 2, "max_tokens": 9})
    wrong = ChromaRealtimeLLMService.Settings(temperature=99.0)
    async with conversation(engine) as call, log_lines() as lines:
        await call.send(
            LLMUpdateSettingsFrame(delta=unknown),
            LLMUpdateSettingsFrame(delta=wrong),
            LLMUpdateSettingsFrame(delta=LLMSettings(temperature=0.5)),
            LLMRunFrame(),
        )
        await call.replies(1)
        told = [line for line in lines if "settings" in line]
        assert len(told) == 2
        assert "max_tokens, speed" in told[0] and "temperature" in told[1]
        assert "those that can: greeting, repetition_penalty, seed" in told[0]
        assert requests(call)[0].sampling == SamplingParams(temperature=0.5)


def test_unsupported_settings_are_an_error_at_the_start() -> None:
    for settings, name in (
        (ChromaRealtimeLLMService.Settings(frequency_penalty=1.0), "frequency_penalty"),
        (ChromaRealtimeLLMService.Settings(temperature=-1.0), "temperature"),
        (ChromaRealtimeLLMService.Settings(temperature="hot"), "temperature is .hot."),
        (ChromaRealtimeLLMService.Settings(repetition_penalty=0.5), "repetition_penalty"),
        (
            ChromaRealtimeLLMService.Settings.from_mapping({"min_p": 0.1}),
            "min_p. Those that are: greeting, max_reply_s, model",
        ),
        (ChromaRealtimeLLMService.Settings(voice="alloy"), "voice"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match=name):
            ChromaRealtimeLLMService(engine=FakeEngine(), settings=settings)


async def test_instructions_default_to_the_models_own(engine: FakeEngine) -> None:
    async with conversation(engine) as call:
        session = call.session
        assert session is not None and session.instructions == DEFAULT_INSTRUCTIONS
        call.chroma._settings.validate_complete()


# -- what goes wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "usable"),
    [(EngineBusy("No row became free."), True), (EngineFailed("Out of memory."), False)],
)
async def test_a_failed_reply_is_closed(engine: FakeEngine, error: Exception, usable: bool) -> None:
    async with conversation(engine) as call:
        call.conversation.start_reply = lambda request, sink: sink(error)  # type: ignore[method-assign]
        await call.say(capital())
        await call.until(lambda: call.errors, "an error")
        await call.until(lambda: "LLMFullResponseEndFrame" in call.names(), "the response's end")
        assert call.names(*RESPONSE)[3:] == [
            "LLMFullResponseStartFrame",
            "TTSStartedFrame",
            "TTSStoppedFrame",
            "LLMFullResponseEndFrame",
        ]
        assert [e.exception for e in call.errors] == [error]
        assert call.chroma.is_usable is usable
        if usable:
            del call.conversation.start_reply
            await call.say(capital())
            await call.until(lambda: "one two three four" in call.turns, "the next reply")


async def test_an_engine_that_was_not_started_is_a_permanent_error() -> None:
    async with conversation(FakeEngine()) as call:
        await call.until(lambda: call.errors, "an error")
        assert isinstance(call.errors[0].exception, EngineClosed)
        assert not call.chroma.is_usable
        await call.say(capital())  # and nothing breaks
        await call.until(lambda: "UserStoppedSpeakingFrame" in call.names(), "the turn's end")


async def test_tools_are_warned_about_once(engine: FakeEngine) -> None:
    weather = FunctionSchema("weather", "Tells the weather.", {}, [])
    tools = ToolsSchema(standard_tools=[weather])
    async with log_lines() as lines, conversation(engine, tools=tools) as call:
        for count in (1, 2):
            await call.send(LLMRunFrame())
            await call.replies(count)
        assert len([line for line in lines if "tools" in line]) == 1


async def test_missing_vad_is_warned_about_once(engine: FakeEngine) -> None:
    async with log_lines() as lines, conversation(engine, vad=False) as call:
        await call.send(*microphone_frames(tone(12.0), INPUT_RATE_HZ))
        await call.reached()
        assert len([line for line in lines if "vad_analyzer" in line]) == 1


async def test_vad_is_not_missed_where_it_is(engine: FakeEngine) -> None:
    async with log_lines() as lines, conversation(engine) as call:
        await call.say(np.concatenate([np.zeros(6 * INPUT_RATE_HZ, np.float32), capital()]))
        await call.replies(1)
        assert not [line for line in lines if "vad_analyzer" in line]


# -- life -------------------------------------------------------------------------------------


async def test_end_lets_the_reply_end() -> None:
    engine = FakeEngine(frame_s=0.005)
    await engine.start()
    async with conversation(engine) as call:
        await call.send(LLMRunFrame(), EndFrame())
        await call.replies(1)
        assert call.turns == ["one two three four"]
        assert call.speaker.played_s == pytest.approx(24 * 0.08)


async def test_cancel_stops_at_once() -> None:
    engine = FakeEngine(frames=100_000, frame_s=0.001)
    await engine.start()
    async with conversation(engine) as call:
        await call.send(LLMRunFrame())
        await call.until(lambda: call.speaker.played_s > 0, "some audio")
        session = call.session
        assert session is not None
        await call.worker.cancel()
    assert session.closed and session.reply is not None
    assert any(c[0] == "cancel_reply" for c in call.calls())


async def test_cleanup_twice(engine: FakeEngine) -> None:
    async with conversation(engine) as call:
        await call.send(LLMRunFrame())
        await call.replies(1)
        session = call.session
        assert session is not None
    assert session.closed
    await call.chroma.cleanup()
    await call.chroma.cleanup()
    assert not engine.closed  # it is shared


async def test_two_services_share_an_engine(engine: FakeEngine) -> None:
    async with conversation(engine) as one, conversation(engine) as two:
        await one.say(capital())
        await two.say(capital())
        await one.replies(1)
        await two.replies(1)
    assert len(engine.conversations) == 2


async def test_metrics(engine: FakeEngine) -> None:
    latencies: list[float] = []
    latency = UserBotLatencyObserver()

    async def measured(_: Any, seconds: float) -> None:
        latencies.append(seconds)

    latency.add_event_handler("on_latency_measured", measured)
    done: list[TurnDone] = []

    async def made(_: Any, event: TurnDone) -> None:
        done.append(event)

    async with conversation(engine, observers=[latency], metrics=True) as call:
        call.chroma.add_event_handler("on_reply_done", made)
        audible(call)
        await call.say(capital())
        await call.replies(1)
        own = [m for m in call.tap.metrics if m.processor == call.chroma.name]
        kinds = (TTFBMetricsData, TTFAMetricsData, ProcessingMetricsData, LLMUsageMetricsData)
        measured_values = [m for m in own if getattr(m, "value", None) != 0]  # 0: announced
        assert [sum(isinstance(m, k) for m in measured_values) for k in kinds] == [1, 1, 1, 1]
        usage = next(m for m in own if isinstance(m, LLMUsageMetricsData)).value
        assert usage.output_audio_tokens == 24
        assert usage.input_audio_tokens == round(len(call.heard()) / INPUT_RATE_HZ * 25)
        assert done[0].reason is EndReason.END_OF_SPEECH and done[0].text == "one two three four"
        await call.until(lambda: latencies, "a latency")


async def test_bot_stopped_comes_with_the_last_audio(engine: FakeEngine) -> None:
    """Without TTSStoppedFrame the transport would wait for three seconds."""
    stopped: list[float] = []

    async with conversation(engine) as call:

        async def pushed(_: Any, frame: Any) -> None:
            if isinstance(frame, BotStoppedSpeakingFrame):
                stopped.append(call.speaker.played_s)

        call.speaker.add_event_handler("on_before_push_frame", pushed)
        await call.say(capital())
        await call.replies(1)
        assert stopped and stopped[0] == pytest.approx(24 * 0.08)
