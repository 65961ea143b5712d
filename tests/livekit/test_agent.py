"""Whole conversations of an `AgentSession`: the framework's VAD and turn detector, our model."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from livekit.agents import Agent, CloseReason, llm

from chroma_plugin.errors import EngineBusy, EngineFailed
from chroma_plugin.livekit import RealtimeModel
from chroma_plugin.voice import Voice
from tests.fakes import FakeEngine
from tests.livekit.agents import Call, calling, question
from tests.livekit.stage import calls, pushed_s, silence, told, tone

WORDS = "one two three four five six seven eight nine ten"


def talkative(frames: int = 60) -> FakeEngine:
    """Somewhat faster than speech."""
    return FakeEngine(WORDS, frames, 0.02)


async def speaking(call: Call, seconds: float = 1.0) -> None:
    await call.until(lambda: call.speaker.played_s > seconds)


# -- turns ------------------------------------------------------------------------------------


async def test_a_turn() -> None:
    engine = talkative(12)
    async with calling(RealtimeModel(engine=engine, transcribe=True)) as call:
        await call.ask()
        await call.played(1)
        assert call.speaker.segments == [(pytest.approx(0.96, abs=0.01), False)]
        assert told(engine) == ["commit_audio", "transcribe", "start_reply"]
        assert pushed_s(engine) > 1.0
        assert call.states[-2:] == ["speaking", "listening"]
        said = "one two three four five six"
        assert call.history == [("user", "what was said"), ("assistant", said)]
        assert call.screen.shown == [said]
        assert not call.of("error")


@pytest.mark.slow
async def test_five_turns_and_five_replies() -> None:
    engine = talkative(6)
    async with calling(RealtimeModel(engine=engine, transcribe=True)) as call:
        for count in range(1, 6):
            await call.ask()
            await call.played(count)
            await call.until(lambda: sum(role == "assistant" for role, _ in call.history) == count)  # noqa: B023
        assert told(engine) == ["commit_audio", "transcribe", "start_reply"] * 5
        # Sorted by the framework, which lets a turn begin before its first word: who speaks at once
        # after a reply may stand before it.
        roles = sorted(role for role, _ in call.history)
        assert roles == ["assistant"] * 5 + ["user"] * 5
        assert len(engine.conversations) == 1 and not call.of("error")


async def test_a_pause_in_a_sentence_is_one_turn() -> None:
    engine = talkative(6)
    async with calling(RealtimeModel(engine=engine)) as call:
        half = len(question()) // 2
        call.microphone.say(question()[:half])
        call.microphone.say(silence(0.15))
        call.microphone.say(question()[half:])
        await call.played(1)
        assert len(calls(engine, "start_reply")) == 1


async def test_a_noise_is_no_turn() -> None:
    engine = talkative(6)
    async with calling(RealtimeModel(engine=engine)) as call:
        await call.ask(tone(0.05))
        await call.ask()
        await call.played(1)
        assert len(calls(engine, "start_reply")) == 1


async def test_every_turn_has_an_end_however_long_it_is() -> None:
    """Half a minute without a pause: the framework ends it, and it is answered once."""
    engine = talkative(6)
    async with calling(RealtimeModel(engine=engine)) as call:
        for _ in range(3):
            call.microphone.say(question())
        await call.until(lambda: call.microphone.quiet)
        await call.until(lambda: calls(engine, "start_reply"))
        await call.played(1)
        assert len(calls(engine, "start_reply")) == len(calls(engine, "commit_audio"))


async def test_a_button_ends_the_turn() -> None:
    engine = talkative(6)
    async with calling(RealtimeModel(engine=engine), detection="manual") as call:
        await call.ask()
        call.session.commit_user_turn()
        await call.played(1)
        assert told(engine) == ["commit_audio", "start_reply"]
        await call.ask()
        call.session.clear_user_turn()
        assert told(engine)[2:] == ["clear_audio"]


# -- barge-in ---------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_barge_in_with_pausing() -> None:
    engine = talkative()
    async with calling(RealtimeModel(engine=engine, transcribe=True)) as call:
        await call.ask()
        await speaking(call)
        await call.ask()
        await call.until(lambda: call.speaker.segments)
        assert call.speaker.pauses >= 1
        heard_s, cut = call.speaker.segments[0]
        assert cut and 1.0 < heard_s < 3.0
        await call.played(2)
        names = told(engine)
        assert names.count("start_reply") == 2 and names.count("cancel_reply") <= 1
        kept = calls(engine, "keep_reply")[-1]
        assert kept[0] == 2 and 0 < kept[1] < 10  # of the first reply, less than all
        assert [role for role, _ in call.history] == ["user", "assistant"] * 2
        assert len(call.history[1][1] or "") < len(WORDS)
        assert call.history[3][1] == WORDS


@pytest.mark.slow
async def test_a_barge_in_without_pausing() -> None:
    engine = talkative()
    async with calling(RealtimeModel(engine=engine), can_pause=False) as call:
        await call.ask()
        await speaking(call)
        await call.ask()
        await call.played(2)
        heard_s, cut = call.speaker.segments[0]
        assert cut and 1.0 < heard_s < 3.0 and not call.speaker.pauses
        assert told(engine).count("commit_audio") == 2 and not call.of("error")
        assert call.speaker.segments[1] == (pytest.approx(4.8, abs=0.01), False)


@pytest.mark.slow
async def test_barge_in_after_barge_in() -> None:
    """Nothing is stuck: each is answered, and the last reply is heard whole."""
    engine = talkative()
    async with calling(RealtimeModel(engine=engine), can_pause=False) as call:
        for count in range(3):
            await call.ask()
            await call.until(lambda: len(calls(engine, "start_reply")) == count + 1)  # noqa: B023
            await speaking(call, 0.3)
        await call.played(3)
        assert [cut for _, cut in call.speaker.segments] == [True, True, False]


async def test_a_false_interruption_resumes_what_was_said() -> None:
    engine = talkative()
    async with calling(
        RealtimeModel(engine=engine), interruption={"false_interruption_timeout": 0.5}
    ) as call:
        call.session.generate_reply()
        await speaking(call, 0.5)
        call.speaker.pause()  # what the framework does when it hears a voice
        paused_s = call.speaker.played_s
        await asyncio.sleep(0.3)
        call.speaker.resume()
        await call.played(1)
        assert call.speaker.segments == [(pytest.approx(4.8, abs=0.01), False)]
        assert paused_s < 4.8 and not calls(engine, "cancel_reply")
        assert call.history == [("assistant", WORDS)]


async def test_a_cough_pauses_and_what_was_paused_is_heard() -> None:
    """Whatever the framework makes of it, the reply is heard to its end or answered anew."""
    engine = talkative()
    async with calling(
        RealtimeModel(engine=engine), interruption={"false_interruption_timeout": 0.5}
    ) as call:
        call.session.generate_reply()
        await speaking(call, 0.5)
        await call.ask(question()[: 24_000 * 7 // 10])
        await call.until(lambda: any(not cut for _, cut in call.speaker.segments))
        assert call.speaker.segments[-1] == (pytest.approx(4.8, abs=0.01), False)


async def test_interrupted_before_the_first_audio() -> None:
    engine = FakeEngine(WORDS, 60, 1000.0)
    async with calling(RealtimeModel(engine=engine)) as call:
        handle = call.session.generate_reply()
        await call.until(lambda: engine.conversations and calls(engine, "start_reply"))
        await call.session.interrupt()
        assert handle.interrupted and len(calls(engine, "cancel_reply")) == 1
        engine.frame_s = 0.01
        await call.ask()
        await call.played(1)
        assert call.history == [("assistant", WORDS)]  # and nothing that nobody heard


async def test_an_interruption_stops_the_engine() -> None:
    engine = talkative(200)
    async with calling(RealtimeModel(engine=engine)) as call:
        call.session.generate_reply()
        await speaking(call, 0.3)
        await call.session.interrupt()
        assert len(calls(engine, "cancel_reply")) == 1
        assert call.speaker.segments[0][1]


async def test_who_may_not_be_interrupted_is_not() -> None:
    engine = talkative(40)
    async with calling(RealtimeModel(engine=engine)) as call:
        call.session.say("one two three four five", allow_interruptions=False)
        await speaking(call, 0.3)
        await call.ask()
        await call.until(lambda: call.speaker.segments)
        assert call.speaker.segments[0] == (pytest.approx(3.2, abs=0.01), False)
        assert not calls(engine, "cancel_reply")


# -- what the application asks for ------------------------------------------------------------


async def test_a_greeting_on_enter() -> None:
    class Host(Agent):
        async def on_enter(self) -> None:
            self.session.generate_reply(instructions="Greet the user.")

    engine = talkative(12)
    async with calling(RealtimeModel(engine=engine), Host(instructions="Be kind.")) as call:
        await call.played(1)
        assert told(engine) == ["start_reply"]
        assert calls(engine, "start_reply")[0][0].instructions == "Greet the user."


async def test_say_in_the_cloned_voice() -> None:
    engine = talkative(12)
    ada = Voice("ada", Voice.default().transcript, Voice.default().samples)
    async with calling(RealtimeModel(engine=engine, voice=ada)) as call:
        handle = call.session.say("Please hold.")
        await handle
        request = calls(engine, "start_reply")[0][0]
        assert request.say == "Please hold." and request.voice.name == "ada"
        assert call.history == [("assistant", "Please hold.")]


async def test_typed_input() -> None:
    engine = talkative(12)
    async with calling(RealtimeModel(engine=engine)) as call:
        await call.session.generate_reply(user_input="What is new?")
        assert told(engine) == ["add_text", "start_reply"]
        assert [role for role, _ in call.history] == ["user", "assistant"]


async def test_typed_input_into_a_reply() -> None:
    engine = talkative()
    async with calling(RealtimeModel(engine=engine)) as call:
        call.session.generate_reply()
        await speaking(call, 0.3)
        await call.session.interrupt()
        await call.session.generate_reply(user_input="Something else.")
        assert [cut for _, cut in call.speaker.segments] == [True, False]
        assert told(engine)[-2:] == ["add_text", "start_reply"]


async def test_two_requests_are_two_replies_one_after_the_other() -> None:
    engine = talkative(12)
    async with calling(RealtimeModel(engine=engine)) as call:
        one, two = call.session.say("First."), call.session.say("Second.")
        await one
        await two
        assert call.screen.shown == ["First.", "Second."]
        assert [cut for _, cut in call.speaker.segments] == [False, False]


async def test_a_handoff_keeps_the_conversation() -> None:
    engine = talkative(12)
    async with calling(RealtimeModel(engine=engine)) as call:
        await call.ask()
        await call.played(1)
        context = call.session.current_agent.chat_ctx
        await call.hand_over(Agent(instructions="Another.", chat_ctx=context))
        await call.session.generate_reply()
        assert len(engine.conversations) == 1  # the sound of the turn is still in it
        assert told(engine) == ["commit_audio", "start_reply", "start_reply"]
        assert "set_instructions" in [c[0] for c in engine.conversations[0].calls]


async def test_a_handoff_to_another_voice() -> None:
    engine = talkative(12)
    ada = Voice("ada", Voice.default().transcript, Voice.default().samples)
    other = RealtimeModel(engine=engine, voice=ada)
    async with calling(RealtimeModel(engine=engine, transcribe=True)) as call:
        await call.ask()
        await call.played(1)
        await call.until(lambda: call.history[0][1] == "what was said")
        context = call.session.current_agent.chat_ctx
        await call.hand_over(Agent(instructions="Ada.", llm=other, chat_ctx=context))
        await call.session.generate_reply()
        assert len(engine.conversations) == 2
        said = "one two three four five six"
        assert calls(engine, "add_text") == [("user", "what was said"), ("assistant", said)]
        assert calls(engine, "start_reply")[0][0].voice.name == "ada"


async def test_a_handoff_to_a_fresh_conversation() -> None:
    engine = talkative(12)
    async with calling(RealtimeModel(engine=engine)) as call:
        await call.session.generate_reply(user_input="A secret.")
        await call.hand_over(Agent(instructions="Fresh."))
        await call.session.generate_reply()
        assert len(engine.conversations) == 2 and not calls(engine, "add_text")


# -- what is written down ---------------------------------------------------------------------


async def test_transcripts_come_once_and_before_the_reply() -> None:
    engine = talkative(12)
    async with calling(RealtimeModel(engine=engine, transcribe=True)) as call:
        await call.ask()
        await call.played(1)
        written = [event.transcript for event in call.of("user_input_transcribed")]
        assert written == ["what was said"]
        assert [role for role, _ in call.history] == ["user", "assistant"]


async def test_the_history_keeps_no_word_that_nobody_heard() -> None:
    engine = talkative(100)
    async with calling(RealtimeModel(engine=engine), can_pause=False) as call:
        call.session.generate_reply()
        await speaking(call, 0.6)
        await call.session.interrupt()
        heard = call.history[0][1] or ""
        assert heard and len(heard) < len(WORDS)
        [known] = call.session.current_agent.realtime_llm_session.chat_ctx.items
        assert known.text_content == heard


# -- what goes wrong --------------------------------------------------------------------------


async def test_closed_in_mid_reply() -> None:
    engine = talkative(200)
    async with calling(RealtimeModel(engine=engine)) as call:
        call.session.generate_reply()
        await speaking(call, 0.3)
        async with asyncio.timeout(10):
            await call.session.aclose()
        assert engine.conversations[0].calls[-1] == ("cancel_reply", -1)


async def test_a_dead_engine_ends_the_session() -> None:
    engine = talkative(12)
    async with calling(RealtimeModel(engine=engine)) as call:
        await call.ask()
        await call.played(1)

        async def dead(**settings: Any) -> None:
            raise EngineFailed("It is dead.")

        async def dies(request: Any, sink: Any) -> None:
            sink(EngineFailed("It died."))

        engine.conversations[0]._speak = dies  # type: ignore[method-assign]
        engine.open_session = dead  # type: ignore[assignment]
        await call.ask()
        await call.until(lambda: call.of("close"))
        assert call.of("close")[0].reason is CloseReason.ERROR
        assert "dead" in str(call.of("close")[0].error.error)


async def test_a_busy_engine_says_so_and_the_next_turn_is_answered() -> None:
    engine = talkative(12)
    async with calling(RealtimeModel(engine=engine)) as call:
        await call.until(lambda: engine.conversations)
        speak = engine.conversations[0]._speak

        async def busy(request: Any, sink: Any) -> None:
            engine.conversations[0]._speak = speak  # type: ignore[method-assign]
            sink(EngineBusy("No row was free."))

        engine.conversations[0]._speak = busy  # type: ignore[method-assign]
        handle = call.session.generate_reply()
        await handle
        assert isinstance(handle.exception(), llm.RealtimeError)
        assert "No row" in str(handle.exception())
        assert [error.error.recoverable for error in call.of("error")] == [True]
        await call.ask()
        await call.played(1)
        assert not call.of("close")


async def test_a_reply_that_comes_too_late_is_never_heard() -> None:
    engine = FakeEngine(WORDS, 12, 0.3)
    async with calling(RealtimeModel(engine=engine, reply_timeout_s=0.1)) as call:
        handle = await call.session.generate_reply()
        assert "timed out" in str(handle.exception())
        assert len(calls(engine, "cancel_reply")) == 1
        engine.frame_s = 0.01
        await call.session.generate_reply()
        assert len(call.speaker.segments) == 1 and len(call.screen.shown) == 1


async def test_every_conversation_is_closed() -> None:
    engine = talkative(6)
    for count in range(2):
        async with calling(RealtimeModel(engine=engine)) as call:
            await call.session.generate_reply()
        assert engine.conversations[count].calls[-1] == ("cancel_reply", -1)
    assert len(engine.conversations) == 2 and not engine.closed
