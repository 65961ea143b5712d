"""Pipecat's own OpenAI Realtime service, unmodified, in a whole pipeline that talks to this server.

The pipeline has real aggregators and a real output transport; the user's sound comes as a transport
would send it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chroma_plugin.server.app import create_app
from tests.fakes import FakeEngine
from tests.server.client import calls
from tests.server.serving import listening, serving
from tests.server.stock import (
    WORDS,
    complaints,
    heard_ms,
    model,
    names,
    pieces,
    silence,
    speech,
    told,
    tone,
    wire,
)

pytest.importorskip("openai")
pytest.importorskip("pipecat")

from pipecat.frames.frames import (
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMMessagesAppendFrame,
    LLMRunFrame,
    TTSAudioRawFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.services.openai.realtime import events
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.turns.user_start import VADUserTurnStartStrategy
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.workers.runner import WorkerRunner

from tests.pipecat.pipeline import PATIENCE_S, Call, log_lines

RATE_HZ = 16000
GREET = {"role": "user", "content": "Greet the user."}


def user_sound(sound: bytes) -> list[Frame]:
    """As a transport hands it out: 20 ms at a time."""
    return [InputAudioRawFrame(piece, RATE_HZ, 1) for piece in pieces(sound, RATE_HZ // 25)]


class StockCall(Call):
    """A conversation through the stock service."""

    service: OpenAIRealtimeLLMService

    async def greet(self) -> None:
        """Has Chroma begin, as applications do: the first context asks for a reply, always."""
        await self.send(LLMRunFrame())
        await self.replies(1)

    async def hear(self, seconds: float) -> None:
        """The user speaks, and is silent then, long enough for the server to know."""
        before = self.interruptions()
        await self.send(*user_sound(tone(seconds, RATE_HZ)))
        await self.until(lambda: self.interruptions() > before, "the user's voice")
        await self.send(*user_sound(silence(0.8, RATE_HZ)))

    async def audio(self, count: int) -> None:
        """Waits for so many pieces of Chroma's sound."""
        await self.until(lambda: self.sounds() >= count, f"{count} pieces of sound")

    def interruptions(self) -> int:
        return sum(isinstance(frame, InterruptionFrame) for frame in self.tap.frames)

    def sounds(self) -> int:
        return sum(isinstance(frame, TTSAudioRawFrame) for frame in self.tap.frames)


@asynccontextmanager
async def talking(
    place: str, engine: Any, *, messages: Sequence[Any] = (), manual: bool = False
) -> AsyncIterator[StockCall]:
    """A running pipeline; nobody complains while it runs."""
    context = LLMContext(list(messages))
    call = StockCall(engine, context)
    heard = events.AudioInput(
        transcription=events.InputAudioTranscription(),
        **({"turn_detection": False} if manual else {}),
    )
    call.service = OpenAIRealtimeLLMService(
        api_key="any",
        base_url=f"ws://{place}/v1/realtime",
        settings=OpenAIRealtimeLLMService.Settings(
            model="chroma",
            system_instruction="Be brief.",
            session_properties=events.SessionProperties(
                audio=events.AudioConfiguration(input=heard)
            ),
        ),
    )
    by_hand = UserTurnStrategies(
        start=[VADUserTurnStartStrategy()],
        stop=[SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=0)],
    )
    user, assistant = LLMContextAggregatorPair(
        context,
        user_params=LLMUserAggregatorParams(user_turn_strategies=by_hand if manual else None),
    )
    call.worker = PipelineWorker(
        Pipeline([user, call.service, call.tap, call.speaker, assistant]),
        params=PipelineParams(audio_in_sample_rate=RATE_HZ),
        enable_rtvi=False,
        idle_timeout_secs=None,
    )

    async def on_error(_: Any, frame: Any) -> None:
        call.errors.append(frame)

    async def on_assistant_turn(_: Any, message: Any) -> None:
        call.turns.append(message.content)
        call._moved.set()

    async def on_user_message(_: Any, message: Any) -> None:
        call.user_messages.append(message.content)
        call._moved.set()

    user.add_event_handler("on_user_turn_message_added", on_user_message)
    call.worker.add_event_handler("on_pipeline_error", on_error)
    assistant.add_event_handler("on_assistant_turn_stopped", on_assistant_turn)
    runner = WorkerRunner(handle_sigint=False)
    with complaints("chroma_plugin", "websockets", "uvicorn") as ours:
        async with log_lines() as theirs:
            await runner.add_workers(call.worker)
            running = asyncio.create_task(runner.run())
            try:
                yield call
            finally:
                call.speaker.play_to(float("inf"))
                await runner.cancel()
                done, _ = await asyncio.wait([running], timeout=PATIENCE_S)
                assert done, "the pipeline did not end"
    assert not call.errors
    assert not ours
    # With local turns it warns that the service tells none, as it is set, and of its strategies; a
    # test that ends in mid-reply may leave a task of its aggregator to its runner, which says so.
    own = ("is not emitting turn frames", "mutated turn strategies", "realtime_handoff_flush")
    assert not [line for line in theirs if not any(about in line for about in own)]


async def test_pipecat_greeting() -> None:
    engine = FakeEngine(frames=8)
    async with serving(engine) as place, talking(place, engine, messages=[GREET]) as call:
        await call.greet()
        assert call.turns == [WORDS]
        assert call.speaker.played_s == pytest.approx(0.64)
    assert told(engine) == [("user", "Greet the user.")]
    assert calls(engine, "set_instructions")[-1] == ("Be brief.",)


async def test_pipecat_server_vad_turn() -> None:
    engine = FakeEngine(frames=8)
    async with serving(engine) as place, talking(place, engine, messages=[GREET]) as call:
        await call.greet()
        await call.send(*user_sound(silence(0.5, RATE_HZ)))
        await call.hear(0.6)
        await call.replies(2)
        await call.until(lambda: call.user_messages, "what the user said")
        assert call.turns == [WORDS] * 2
        assert call.user_messages == ["what was said"]
    assert names(engine).count("commit_audio") == 1
    assert 1000 < heard_ms(engine) < 1500  # with what came before, and the silence after


async def test_pipecat_manual_turn() -> None:
    engine = FakeEngine(frames=8)
    greeting = {"messages": [GREET], "manual": True}
    async with serving(engine) as place, talking(place, engine, **greeting) as call:
        await call.greet()
        await call.send(VADUserStartedSpeakingFrame(start_secs=0.2))
        await call.send(*user_sound(tone(0.5, RATE_HZ)))
        await call.send(VADUserStoppedSpeakingFrame(stop_secs=0.2))
        await call.replies(2)
        assert call.turns == [WORDS] * 2
    assert heard_ms(engine) == pytest.approx(500, abs=40)


async def test_pipecat_three_turns() -> None:
    engine = FakeEngine(frames=8)
    async with serving(engine) as place, talking(place, engine, messages=[GREET]) as call:
        await call.greet()
        for count in (2, 3, 4):
            await call.hear(0.4)
            await call.replies(count)
        assert call.turns == [WORDS] * 4
    assert names(engine).count("commit_audio") == 3
    assert len(engine.conversations) == 1


async def test_pipecat_barge_in_with_truncation() -> None:
    long = " ".join(f"word{i}" for i in range(200))
    engine = FakeEngine(long, frames=600, frame_s=0.005)
    async with serving(engine) as place, talking(place, engine, messages=[GREET]) as call:
        await call.send(LLMRunFrame())
        await call.audio(10)
        before = call.sounds()
        await call.hear(0.4)
        await call.audio(before + 10)  # of the next reply
        await call.replies(1)
        assert long.startswith(call.turns[0])
    kept = [call for call in calls(engine, "keep_reply") if call[0] == 1]  # of the greeting
    assert kept[-1][1] < 100  # tokens, of 200
    assert names(engine).count("start_reply") == 2
    assert len(engine.conversations) == 1


async def test_pipecat_text_input() -> None:
    engine = FakeEngine(frames=8)
    async with serving(engine) as place, talking(place, engine, messages=[GREET]) as call:
        await call.greet()
        typed = [{"role": "user", "content": "What time is it?"}]
        append = LLMMessagesAppendFrame(messages=typed, run_llm=True)
        await call.service.queue_frame(append)  # the user aggregator would keep it for itself
        await call.replies(2)
        assert call.turns == [WORDS] * 2
    # The service sends what is appended to a running conversation as a message of the system.
    assert calls(engine, "set_instructions")[-1] == ("Be brief.\n\nWhat time is it?",)


async def test_pipecat_context_restore() -> None:
    engine = FakeEngine(frames=8)
    said = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "How are you?"},
    ]
    async with serving(engine) as place, talking(place, engine, messages=said) as call:
        await call.send(LLMRunFrame())
        await call.replies(1)
    ((role, words),) = told(engine)  # the service packs a conversation into one message
    assert role == "user"
    assert all(message["content"] in words for message in said)


async def test_pipecat_reconnect() -> None:
    engine = FakeEngine(frames=8)
    async with serving(engine) as place, wire(place) as line:
        async with talking(line.place, engine, messages=[GREET]) as call:
            await call.greet()
            await call.service.reset_conversation()
            await call.until(lambda: len(engine.conversations) == 2, "another conversation")
            await call.hear(0.4)
            await call.replies(2)
            assert call.turns == [WORDS] * 2
        assert line.connections == 2
    # The context comes again when the service itself asks for a reply, not with a spoken turn.
    assert [call[0] for call in engine.conversations[1].calls].count("commit_audio") == 1


async def test_pipecat_with_a_model() -> None:
    async with (
        model() as engine,
        listening(create_app(engine)) as place,  # with the network that finds turns, too
        talking(place, engine, messages=[GREET]) as call,
    ):
        await call.send(LLMRunFrame())
        await call.until(lambda: "LLMFullResponseEndFrame" in call.names(), "a greeting")
        greeted = call.sounds()
        assert greeted > 0
        await call.send(*user_sound(speech(RATE_HZ) + silence(0.8, RATE_HZ)))
        await call.audio(greeted + 1)
