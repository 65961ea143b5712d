"""The contract of a realtime session, event by event, with an engine that needs no model."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator

import numpy as np
import pytest
from livekit.agents import llm
from livekit.agents.types import TimedString

from chroma_plugin.config import SamplingParams
from chroma_plugin.errors import ConfigError, EngineBusy, EngineFailed
from chroma_plugin.livekit import RealtimeModel
from chroma_plugin.voice import Voice
from tests.fakes import FakeEngine
from tests.livekit.stage import (
    Events,
    calls,
    frame,
    frames,
    listen,
    noise,
    pushed_s,
    reply,
    say_into,
    silence,
    talking,
    told,
    tone,
    until,
)


def test_capabilities_are_told_truly() -> None:
    can = RealtimeModel(engine=FakeEngine()).capabilities
    assert can.message_truncation and can.audio_output and can.supports_say
    assert can.mutable_chat_context and can.mutable_instructions
    assert not can.turn_detection and not can.can_disable_turn_detection
    assert not can.user_transcription and not can.auto_tool_reply_generation
    assert not can.manual_function_calls and not can.mutable_tools
    assert not can.per_response_tool_choice and not can.supports_overlapping_speech
    assert RealtimeModel(engine=FakeEngine(), transcribe=True).capabilities.user_transcription


async def test_a_turn_is_answered() -> None:
    async with talking() as (session, engine, events):
        say_into(session)
        session.commit_audio()
        heard = await reply(session)
        assert heard.text == "one two three four" and heard.seconds == pytest.approx(1.92)
        assert {(f.sample_rate, f.num_channels) for f in heard.frames} == {(24_000, 1)}
        assert len(heard.messages) == 1 and heard.calls == 0
        assert told(engine) == ["commit_audio", "start_reply"]
        assert len(events.of("generation_created")) == 1
        assert not events.of("input_speech_started")  # it would interrupt


async def test_a_reply_is_the_users_wish_and_has_modalities() -> None:
    async with talking() as (session, _, _events):
        created = await session.generate_reply()
        assert created.user_initiated and created.response_id
        message = await anext(aiter(created.message_stream))
        assert set(await message.modalities) == set(await message.modalities) == {"audio", "text"}


async def test_a_greeting_needs_no_turn() -> None:
    async with talking() as (session, engine, _):
        assert (await reply(session)).text == "one two three four"
        assert told(engine) == ["start_reply"]


async def test_instructions_of_a_reply_add_to_the_sessions() -> None:
    async with talking() as (session, engine, _):
        await session.update_instructions("Be kind.")
        await reply(session, instructions="Greet.")
        assert calls(engine, "start_reply")[0][0].instructions == "Greet."
        assert session._line.session.instructions == "Be kind."


async def test_instructions_are_told_before_the_user_speaks() -> None:
    async with talking() as (session, engine, _):
        await until(lambda: engine.conversations)
        await session.update_instructions("Be brief.")
        say_into(session)
        names = [call[0] for call in engine.conversations[-1].calls]
        assert names.index("set_instructions") < names.index("push_audio")


async def test_several_replies_one_after_the_other() -> None:
    async with talking() as (session, engine, _):
        for _ in range(3):
            assert (await reply(session)).text == "one two three four"
        assert told(engine) == ["start_reply"] * 3


async def test_say_speaks_the_words() -> None:
    async with talking() as (session, engine, events):
        heard = await listen(await session.say("Please hold the line."))
        assert heard.text == "Please hold the line."
        assert calls(engine, "start_reply")[0][0].say == "Please hold the line."
        assert session.chat_ctx.items[-1].text_content == "Please hold the line."
        assert len(events.of("remote_item_added")) == 1


async def test_say_takes_words_as_they_come() -> None:
    async def words() -> AsyncIterator[str]:
        yield "Please "
        yield "hold."

    async with talking() as (session, _, _events):
        assert (await listen(await session.say(words()))).text == "Please hold."


async def test_nothing_to_say_is_an_error_of_the_caller() -> None:
    async def broken() -> AsyncIterator[str]:
        yield "Well"
        raise RuntimeError("no words")

    async with talking() as (session, _, _events):
        with pytest.raises(llm.RealtimeError):
            await session.say("  ")
        with pytest.raises(llm.RealtimeError, match="no words"):
            await session.say(broken())
        assert (await reply(session)).text  # and the conversation goes on


async def test_text_says_when_it_is_spoken() -> None:
    async with talking() as (session, _, _events):
        heard = await reply(session)
        starts = [piece.start_time for piece in heard.pieces if isinstance(piece, TimedString)]
        assert len(starts) == 4 and starts == sorted(starts) and starts[-1] < heard.seconds


# -- the end of a reply -----------------------------------------------------------------------


async def test_interrupt_closes_every_stream_at_once() -> None:
    async with talking(FakeEngine(frames=1000, frame_s=0.001)) as (session, engine, _):
        created = await session.generate_reply()
        message = await anext(aiter(created.message_stream))
        await anext(aiter(message.audio_stream))
        session.interrupt()
        for stream in (message.audio_stream, message.text_stream, created.message_stream):
            assert [item async for item in stream] == []
        assert [call async for call in created.function_stream] == []
        assert len(calls(engine, "cancel_reply")) == 1


async def test_interrupt_is_idempotent_and_harmless_without_a_reply() -> None:
    async with talking(FakeEngine(frames=1000, frame_s=0.001)) as (session, engine, _):
        session.interrupt()
        await session.generate_reply()
        session.interrupt()
        session.interrupt()
        assert len(calls(engine, "cancel_reply")) == 1


async def test_interrupt_keeps_what_the_user_said() -> None:
    async with talking(FakeEngine(frames=1000, frame_s=0.001)) as (session, engine, _):
        await session.generate_reply()
        say_into(session)
        session.commit_audio()
        session.interrupt()
        session.interrupt()
        await session.generate_reply()
        assert told(engine)[1:] == ["cancel_reply", "keep_reply", "commit_audio", "start_reply"]
        assert pushed_s(engine) > 1.0


async def test_interrupted_before_it_began() -> None:
    async with talking(FakeEngine(frame_s=1000.0)) as (session, engine, _):
        waiting = session.generate_reply()
        await until(lambda: engine.conversations and calls(engine, "start_reply"))
        session.interrupt()
        with pytest.raises(llm.RealtimeError, match="interrupted"):
            await waiting
        assert len(calls(engine, "cancel_reply")) == 1
        assert not session.chat_ctx.items


async def test_a_cancelled_promise_tells_the_engine() -> None:
    async with talking(FakeEngine(frame_s=1000.0)) as (session, engine, events):
        waiting = session.generate_reply()
        await until(lambda: engine.conversations and calls(engine, "start_reply"))
        waiting.cancel()
        await until(lambda: calls(engine, "cancel_reply"))
        assert not events and not session.chat_ctx.items


async def test_a_promise_that_was_cancelled_late_leaves_the_next_reply_alone() -> None:
    async with talking() as (session, _, _events):
        first = session.generate_reply()
        second = session.generate_reply()
        first.cancel()
        assert (await listen(await second)).text == "one two three four"


async def test_a_reply_that_does_not_begin_times_out_and_is_never_heard() -> None:
    async with talking(FakeEngine(frame_s=1000.0), reply_timeout_s=0.05) as (session, engine, ev):
        with pytest.raises(llm.RealtimeError, match="timed out"):
            await session.generate_reply()
        assert len(calls(engine, "cancel_reply")) == 1
        assert not ev.of("generation_created") and ev.of("error")[0].recoverable
        engine.frame_s = 0.0
        assert (await reply(session)).text == "one two three four"


async def test_a_reply_that_stops_in_its_middle_ends() -> None:
    engine = FakeEngine(frames=24)
    async with talking(engine, reply_timeout_s=0.05) as (session, _, events):
        await until(lambda: engine.conversations)
        speak = engine.conversations[0]._speak

        async def stall(request, sink):  # type: ignore[no-untyped-def]
            engine.conversations[0]._speak = speak
            for each in range(3):
                from chroma_plugin.reply import AudioChunk

                sink(AudioChunk(b"\0\0" * 1920, each * 80.0))
            await asyncio.sleep(1000)

        engine.conversations[0]._speak = stall
        heard = await reply(session)
        assert heard.seconds == pytest.approx(0.24)
        assert "stopped" in str(events.of("error")[0].error)
        assert (await reply(session)).text == "one two three four"


async def test_a_busy_engine_reaches_the_caller() -> None:
    engine = FakeEngine()

    async def full(**settings: object) -> None:
        raise EngineBusy("No room.")

    opens, engine.open_session = engine.open_session, full  # type: ignore[assignment]
    async with talking(engine) as (session, _, events):
        with pytest.raises(llm.RealtimeError, match="No room") as refused:
            await session.generate_reply()
        assert refused.value.code == "EngineBusy"
        assert all(error.recoverable for error in events.of("error"))
        engine.open_session = opens  # type: ignore[method-assign]
        assert (await reply(session)).text == "one two three four"


async def test_a_dead_engine_is_an_error_that_ends_the_conversation() -> None:
    engine = FakeEngine()
    async with talking(engine) as (session, _, events):
        await reply(session)

        async def dead(**settings: object) -> None:
            raise EngineFailed("It is dead.")

        async def dies(request, sink):  # type: ignore[no-untyped-def]
            sink(EngineFailed("It died."))

        engine.conversations[0]._speak = dies
        engine.open_session = dead  # type: ignore[assignment]
        with pytest.raises(llm.RealtimeError, match="It died"):
            await session.generate_reply()
        await until(lambda: len(events.of("error")) == 2)
        assert [error.recoverable for error in events.of("error")] == [True, False]


async def test_an_engine_that_comes_back_goes_on_with_the_conversation() -> None:
    engine = FakeEngine()
    async with talking(engine) as (session, _, events):
        say_into(session)
        session.commit_audio()

        async def dies(request, sink):  # type: ignore[no-untyped-def]
            sink(EngineFailed("It died."))

        await until(lambda: engine.conversations)
        engine.conversations[0]._speak = dies
        with pytest.raises(llm.RealtimeError, match="It died"):
            await session.generate_reply()
        heard = await reply(session)
        assert heard.text == "one two three four" and len(engine.conversations) == 2
        assert told(engine) == ["commit_audio", "start_reply"]  # the sound was told again
        assert all(error.recoverable for error in events.of("error"))


async def test_no_voice_for_the_engine_is_no_passing_error() -> None:
    engine = FakeEngine()

    async def refuses(**settings: object) -> None:
        raise ConfigError("No such voice.")

    engine.open_session = refuses  # type: ignore[assignment]
    async with talking(engine) as (_, _engine, events):
        await until(lambda: events.of("error"))
        assert not events.of("error")[0].recoverable


# -- what is kept of it -----------------------------------------------------------------------


async def test_truncate_keeps_what_was_heard() -> None:
    async with talking() as (session, engine, _):
        heard = await reply(session)
        session.truncate(
            message_id=heard.messages[0],
            modalities=["audio", "text"],
            audio_end_ms=700,
            audio_transcript="one two",
        )
        assert calls(engine, "keep_reply")[-1] == (1, 2)
        assert session.chat_ctx.items[-1].text_content == "one two"


async def test_truncate_without_words_goes_by_the_playhead() -> None:
    async with talking() as (session, engine, _):
        heard = await reply(session)
        session.truncate(
            message_id=heard.messages[0], modalities=["audio", "text"], audio_end_ms=300
        )
        assert calls(engine, "keep_reply")[-1][1] < 4
        assert session.chat_ctx.items[-1].text_content in ("one", "one two")


async def test_truncate_at_nothing_takes_the_reply_out() -> None:
    async with talking() as (session, engine, _):
        heard = await reply(session)
        session.truncate(message_id=heard.messages[0], modalities=["audio"], audio_end_ms=0)
        assert calls(engine, "keep_reply")[-1] == (1, 0) and not session.chat_ctx.items
        session.truncate(message_id="nobody's", modalities=["audio"], audio_end_ms=0)
        assert (await reply(session)).text == "one two three four"
        assert len(engine.conversations) == 1


async def test_a_turn_may_be_committed_without_a_reply() -> None:
    async with talking() as (session, engine, events):
        say_into(session)
        session.commit_audio()
        await until(lambda: engine.conversations)
        say_into(session)
        session.commit_audio()
        assert len(events.of("remote_item_added")) == len(session.chat_ctx.items) == 2
        await reply(session)
        assert told(engine) == ["commit_audio", "commit_audio", "start_reply"]


async def test_a_turn_committed_into_a_reply_leaves_it_alone() -> None:
    """An agent may be speaking what nobody may interrupt."""
    async with talking(FakeEngine(frames=12, frame_s=0.001)) as (session, engine, _):
        created = await session.generate_reply()
        say_into(session)
        session.commit_audio()
        heard = await listen(created)
        assert heard.seconds == pytest.approx(0.96) and not calls(engine, "cancel_reply")
        await until(lambda: calls(engine, "commit_audio"))
        assert told(engine) == ["start_reply", "commit_audio"]


async def test_items_are_told_to_the_framework() -> None:
    async with talking() as (session, _, events):
        say_into(session)
        session.commit_audio()
        heard = await reply(session)
        added = [event.item for event in events.of("remote_item_added")]
        assert [(item.role, item.content) for item in added] == [("user", []), ("assistant", [])]
        assert added[1].id == heard.messages[0]
        assert [item.id for item in session.chat_ctx.items] == [item.id for item in added]


# -- the user's sound -------------------------------------------------------------------------


async def test_silence_is_trimmed() -> None:
    async with talking() as (session, engine, _):
        await until(lambda: engine.conversations)
        for each in frames(np.concatenate([silence(20), tone(1), silence(20)])):
            session.push_audio(each)
        assert 1.4 < pushed_s(engine) < 3.0


async def test_noise_is_not_kept_for_ever() -> None:
    async with talking() as (session, engine, _):
        await until(lambda: engine.conversations)
        for each in frames(np.concatenate([tone(0.1), silence(15)])):
            session.push_audio(each)
        assert told(engine) == ["clear_audio"]


async def test_a_long_turn_is_capped_at_its_end() -> None:
    async with talking() as (session, engine, _):
        await until(lambda: engine.conversations)
        for each in frames(tone(70), ms=1000):
            session.push_audio(each)
        assert session._line.heard_s < 60
        assert calls(engine, "clear_audio")


async def test_a_quiet_speaker_is_believed_when_the_host_is() -> None:
    async with talking() as (session, engine, events):
        await until(lambda: engine.conversations)
        for each in frames(noise(3, 0.0005)):
            session.push_audio(each)
        assert pushed_s(engine) == 0
        session.commit_audio()
        assert pushed_s(engine) > 2 and len(events.of("remote_item_added")) == 1


async def test_no_sound_is_no_turn() -> None:
    async with talking() as (session, engine, events):
        await until(lambda: engine.conversations)
        session.commit_audio()
        for each in frames(silence(1)):
            session.push_audio(each)
        session.commit_audio()
        assert not events and not told(engine)


@pytest.mark.parametrize(("rate_hz", "channels"), [(8000, 1), (16000, 1), (24000, 1), (48000, 2)])
async def test_any_rate_in(rate_hz: int, channels: int) -> None:
    async with talking() as (session, engine, _):
        for each in frames(tone(2.0, rate_hz), rate_hz, 10, channels):
            session.push_audio(each)
        session.commit_audio()
        await reply(session)
        assert pushed_s(engine) == pytest.approx(2.0, abs=0.05)


async def test_one_rate_after_another() -> None:
    async with talking() as (session, engine, _):
        for rate_hz in (48_000, 16_000):
            for each in frames(tone(1.0, rate_hz), rate_hz):
                session.push_audio(each)
        session.push_audio(frame(tone(0.1, 500), 500))  # dropped, with a word
        session.commit_audio()
        await reply(session)
        assert pushed_s(engine) == pytest.approx(2.0, abs=0.05)


async def test_what_is_said_while_a_session_is_opened_is_heard() -> None:
    async with talking() as (session, engine, _):
        say_into(session)  # not one step of the loop was run
        session.commit_audio()
        await reply(session)
        assert pushed_s(engine) > 1.0


async def test_clear_audio_takes_it_back() -> None:
    async with talking() as (session, engine, events):
        await until(lambda: engine.conversations)
        say_into(session)
        session.clear_audio()
        session.commit_audio()
        assert told(engine) == ["clear_audio"] and not events


# -- settings ---------------------------------------------------------------------------------


async def test_voice_and_sampling_change_live() -> None:
    other = Voice("other", Voice.default().transcript, Voice.default().samples)
    async with talking() as (session, engine, _):
        await reply(session)
        session.update_options(voice=other, sampling=SamplingParams(seed=7))
        await reply(session)
        requests = [call[0] for call in calls(engine, "start_reply")]
        assert [r.voice.name for r in requests] == ["default", "other"]
        assert [r.sampling.seed for r in requests] == [None, 7]


async def test_a_model_changes_all_its_sessions() -> None:
    engine = FakeEngine()
    model = RealtimeModel(engine=engine)
    session = model.session()
    model.update_options(sampling=SamplingParams(seed=3))
    await reply(session)
    await reply(model.session())
    seeds = [calls(engine, "start_reply", i)[0][0].sampling.seed for i in range(2)]
    assert seeds == [3, 3]
    await model.aclose()


async def test_a_cap_on_replies() -> None:
    async with talking(max_reply_s=0.8) as (session, _, _events):
        assert (await reply(session)).seconds == pytest.approx(0.8)


async def test_tools_and_video_are_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    @llm.function_tool
    async def weather() -> str:
        """The weather."""
        return "fine"

    async with talking() as (session, _, _events):
        await session.update_tools([weather])
        await session.update_tools([weather])
        session.update_options(tool_choice="none")
        assert not session.tools.flatten()
        assert len([r for r in caplog.records if "no tools" in r.message]) == 1


@pytest.mark.parametrize(
    "options", [{"reply_timeout_s": 0.0}, {"voice": "ada"}, {"api_key": "secret"}]
)
def test_options_that_do_not_go_together(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        RealtimeModel(engine=FakeEngine(), **options)  # type: ignore[arg-type]


# -- measures ---------------------------------------------------------------------------------


async def test_metrics_of_a_reply() -> None:
    async with talking() as (session, _, events):
        say_into(session, 2.0)
        session.commit_audio()
        created = await session.generate_reply()
        await listen(created)
        await until(lambda: events.of("metrics_collected"))
        [metrics] = events.of("metrics_collected")
        assert metrics.request_id == created.response_id
        assert metrics.ttft >= 0 and metrics.duration >= metrics.ttft and not metrics.cancelled
        assert metrics.output_token_details.audio_tokens == 24
        assert metrics.output_token_details.text_tokens == 4
        assert metrics.input_token_details.audio_tokens > 50
        assert metrics.total_tokens == metrics.input_tokens + metrics.output_tokens
        assert metrics.metadata is not None and metrics.metadata.model_name == "chroma"
        [done] = events.of("chroma_reply_done")
        assert done.audio_ms == 1920


async def test_metrics_of_a_reply_that_was_cut() -> None:
    async with talking(FakeEngine(frames=1000, frame_s=0.001)) as (session, _, events):
        await session.generate_reply()
        session.interrupt()
        await until(lambda: events.of("metrics_collected"))
        assert events.of("metrics_collected")[0].cancelled


# -- the user's words -------------------------------------------------------------------------


async def test_the_engine_writes_down_what_the_user_said() -> None:
    async with talking(transcribe=True) as (session, _, events):
        say_into(session)
        session.commit_audio()
        await until(lambda: events.of("input_audio_transcription_completed"))
        [written] = events.of("input_audio_transcription_completed")
        [item] = session.chat_ctx.items
        assert written.item_id == item.id and written.is_final
        assert written.transcript == item.text_content == "what was said"
        assert written.turn_started_at < item.created_at


async def test_a_transcriber_of_ones_own() -> None:
    lengths = []

    async def write(samples: np.ndarray) -> str:
        lengths.append(len(samples) / 16_000)
        return " some words "

    async with talking(transcribe=write) as (session, _, events):
        say_into(session)
        session.commit_audio()
        await until(lambda: events.of("input_audio_transcription_completed"))
        assert events.of("input_audio_transcription_completed")[0].transcript == "some words"
        assert lengths[0] > 1.0


async def test_no_transcript_is_no_event() -> None:
    async def fails(samples: np.ndarray) -> str:
        raise RuntimeError("no")

    for writer in (fails, True):
        engine = FakeEngine()
        engine.transcript = ""
        async with talking(engine, transcribe=writer) as (session, _, events):
            say_into(session)
            session.commit_audio()
            await reply(session)
            await session._transcripts.aclose()
            assert not events.of("input_audio_transcription_completed")


# -- the end ----------------------------------------------------------------------------------


async def test_closed_in_mid_reply() -> None:
    async with talking(FakeEngine(frames=1000, frame_s=0.001)) as (session, engine, _):
        created = await session.generate_reply()
        await session.aclose()
        assert (await listen(created)).seconds < 80
        await session.aclose()
        assert engine.conversations[0].calls[-1][0] in ("cancel_reply", "close")
        session.push_audio(frame(tone(0.1)))
        session.commit_audio()
        session.interrupt()
        with pytest.raises(llm.RealtimeError, match="closed"):
            await session.generate_reply()


async def test_closed_while_a_session_is_opened() -> None:
    engine = FakeEngine()
    model = RealtimeModel(engine=engine)
    session = model.session()
    waiting = session.generate_reply()
    await session.aclose()
    assert waiting.done()
    await model.aclose()
    assert not engine.closed  # others may use it


async def test_audio_does_not_run_far_ahead() -> None:
    """A room takes all it is given: nobody hears what an interruption throws away."""
    async with talking(FakeEngine(frames=500)) as (session, engine, _):
        created = await session.generate_reply()
        message = await anext(aiter(created.message_stream))
        taken = 0
        async for _ in message.audio_stream:
            taken += 1
            if taken == 20:
                break
        await until(lambda: engine.conversations[0].task.done())
        for _ in range(1000):
            await asyncio.sleep(0)
        assert session._asking.answer is not None
        waiting = len(session._asking.answer._audio._items)
        assert 80 * (taken + waiting) < 4000
        session.interrupt()


async def test_only_the_text_is_read() -> None:
    async with talking(FakeEngine(frames=500)) as (session, _, _events):
        created = await session.generate_reply()
        message = await anext(aiter(created.message_stream))
        text = "".join([piece async for piece in message.text_stream])
        assert text == "one two three four"


async def test_events_of_two_sessions_do_not_mix() -> None:
    engine = FakeEngine()
    model = RealtimeModel(engine=engine)
    one, other = model.session(), model.session()
    events = Events(other)
    await reply(one)
    assert not events and not other.chat_ctx.items
    await model.aclose()


async def test_nothing_of_a_conversation_is_left() -> None:
    engine, left = FakeEngine(), []
    model = RealtimeModel(engine=engine, transcribe=True)
    tasks = asyncio.all_tasks()
    for _ in range(3):
        session = model.session()
        say_into(session)
        session.commit_audio()
        await reply(session)
        await session.aclose()
        left.append(weakref.ref(session))
        del session
    await until(lambda: asyncio.all_tasks() <= tasks)
    gc.collect()
    assert [reference() for reference in left] == [None] * 3
    await model.aclose()


async def test_nobodys_words_are_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with talking(transcribe=True) as (session, _, events):
        say_into(session)
        session.commit_audio()
        await reply(session, instructions="Speak of gold.")
        await until(lambda: events.of("input_audio_transcription_completed"))
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("chroma_plugin")]
    assert not [m for m in ours if "what was said" in m or "one two" in m or "gold" in m]


async def test_an_interruption_while_a_session_is_opened_loses_none() -> None:
    """The session that is being opened is the next reply's."""
    engine, gate = FakeEngine(), asyncio.Event()
    opens = engine.open_session

    async def slowly(**settings: object) -> object:
        await gate.wait()
        return await opens(**settings)

    engine.open_session = slowly  # type: ignore[assignment]
    async with talking(engine) as (session, _, _events):
        waiting = session.generate_reply()
        await asyncio.sleep(0)
        session.interrupt()
        with pytest.raises(llm.RealtimeError):
            await waiting
        second = session.generate_reply()
        gate.set()
        assert (await listen(await second)).text and len(engine.conversations) == 1
