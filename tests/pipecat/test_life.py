"""From the first frame to the last: engines that fail, hang, go away and come back."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("pipecat")

from pipecat.frames.frames import (
    EndFrame,
    InterruptionFrame,
    LLMRunFrame,
    StartFrame,
    TTSStoppedFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.workers.runner import WorkerRunner

from chroma_plugin.audio import INPUT_RATE_HZ
from chroma_plugin.conversation import ReplyRequest
from chroma_plugin.errors import ChromaError, EngineBusy, EngineClosed, EngineFailed
from chroma_plugin.pipecat import ChromaRealtimeLLMService
from chroma_plugin.reply import AudioChunk, ReplyStream, Sink
from chroma_plugin.session import Session
from tests.fakes import FakeConversation, FakeEngine
from tests.pipecat.pipeline import conversation
from tests.pipecat.recordings import capital, tone

REPLY = "one two three four"


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    await engine.start()
    yield engine


class AwayEngine(FakeEngine):
    """An engine somewhere else: it can be lost, and found again."""

    away: ChromaError | None = None

    async def open_session(self, **settings: Any) -> Session:
        if self.away is not None:
            raise self.away
        return await super().open_session(**settings)

    def lose(self, error: ChromaError) -> None:
        """Every session goes, and no new one comes."""
        self.away = error
        for each in self.conversations:
            each.start_reply = lambda request, sink: sink(error)  # type: ignore[method-assign]


class SlowEngine(FakeEngine):
    """Opens a session when a test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def open_session(self, **settings: Any) -> Session:
        self.asked.set()
        await self.go.wait()
        return await super().open_session(**settings)


async def test_an_engine_that_dies_in_the_middle_of_a_reply(engine: FakeEngine) -> None:
    def die(request: ReplyRequest, sink: Sink) -> None:
        sink(AudioChunk(b"\x10\x20" * 1920, 0.0))
        sink(EngineFailed("Out of memory."))

    async with conversation(engine, vad=False) as call:
        call.conversation.start_reply = die  # type: ignore[method-assign]
        await call.send(LLMRunFrame())
        await call.until(lambda: "LLMFullResponseEndFrame" in call.names(), "the reply's end")
        assert [type(e.exception) for e in call.errors] == [EngineFailed]
        assert not call.chroma.is_usable and call.session is None


async def test_an_engine_that_comes_back(engine: FakeEngine) -> None:
    engine = AwayEngine()
    await engine.start()
    async with conversation(engine, vad=False) as call:
        await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
        await call.replies(1)
        engine.lose(EngineClosed("The connection is lost."))
        await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
        await call.until(lambda: call.errors, "the loss")
        await call.until(lambda: call.session is None, "no session")
        assert not call.chroma.is_usable
        errors = len(call.errors)
        await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)  # it is still away: said once a turn
        await call.until(lambda: len(call.errors) == errors + 1, "the second loss")
        await call.reached()
        engine.away = None
        await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
        await call.until(lambda: call.turns.count(REPLY) == 2, "an answer")
        assert call.chroma.is_usable and len(call.errors) == errors + 1
        assert call.session is not None
        assert [(m.role, m.text) for m in call.session.history] == [
            ("assistant", REPLY),  # what the context has of the time before
            ("user", None),
            ("assistant", REPLY),
        ]
        assert len(call.heard()) >= 0.5 * INPUT_RATE_HZ  # all of the turn


async def test_what_is_said_while_a_session_is_opened_is_heard() -> None:
    engine = SlowEngine()
    await engine.start()
    engine.go.set()
    async with conversation(engine, vad=False) as call:
        assert call.session is not None
        await call.chroma._line.leave()
        engine.go.clear()
        await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
        await call.until(lambda: call.names(UserStoppedSpeakingFrame), "the turn's end")
        await call.send(InterruptionFrame())  # harms nothing
        await call.reached()
        engine.go.set()
        await call.replies(1)
        assert len(call.heard()) == pytest.approx(0.5 * INPUT_RATE_HZ, abs=320)
        assert call.turns == [REPLY]


async def test_a_session_that_was_lost_is_told_and_opened_again(engine: FakeEngine) -> None:
    async with conversation(engine) as call:
        assert call.session is not None
        await call.session.aclose()
        await call.say(capital())
        await call.until(lambda: call.errors, "an error")
        await call.until(lambda: "UserStoppedSpeakingFrame" in call.names(), "the turn's end")
        assert len(call.errors) == 1  # and not one for every frame of audio
        await call.say(capital())
        await call.replies(1)
        assert call.chroma.is_usable and len(engine.conversations) == 2


async def test_an_engine_without_room_refuses_and_takes_the_next_turn() -> None:
    engine = AwayEngine()
    await engine.start()
    engine.away = EngineBusy("No room for another session.")
    async with conversation(engine, vad=False) as call:
        await call.until(lambda: call.errors, "a refusal")
        engine.away = None
        await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
        await call.replies(1)
        assert call.chroma.is_usable


async def test_an_engine_that_gives_nothing_is_given_up(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chroma_plugin.pipecat.speech.STALL_S", 0.05)
    engine.frame_s = 3600
    async with conversation(engine, vad=False) as call:
        await call.send(LLMRunFrame())
        await call.until(lambda: call.errors, "the watchdog")
        assert "made nothing for" in str(call.errors[0].exception)
        assert call.chroma.is_usable
        monkeypatch.undo()
        engine.frame_s = 0.0
        await call.send(LLMRunFrame())
        await call.until(lambda: REPLY in call.turns, "the next reply")
        assert call.calls("cancel_reply")  # of the first one


async def test_an_engine_that_gives_nothing_does_not_hold_up_the_end(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chroma_plugin.pipecat.speech.STALL_S", 0.05)
    engine.frame_s = 3600
    async with conversation(engine, vad=False) as call:
        await call.send(LLMRunFrame(), EndFrame())
        await call.until(lambda: call.names(EndFrame), "the end")
        assert call.errors


async def test_an_engine_that_never_opens_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chroma_plugin.pipecat.line.OPEN_LIMIT_S", 0.05)
    engine = SlowEngine()
    await engine.start()
    async with conversation(engine, vad=False) as call:
        await call.until(lambda: call.errors, "an error")
        assert isinstance(call.errors[0].exception, EngineBusy)


async def test_nobody_plays_what_is_made(engine: FakeEngine) -> None:
    """The transport takes no more; the user breaks in, and the call goes on."""
    engine.frames = 1000
    async with conversation(engine, vad=False) as call:
        call.speaker.play_to(0.2)
        await call.send(LLMRunFrame())
        await call.until(lambda: call.names(TTSStoppedFrame), "all of the reply")
        assert call.speaker.played_s == pytest.approx(0.2)
        await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
        await call.until(lambda: len(call.requests()) == 2, "the next request")
        assert call.calls("keep_reply")[-1][0] == "keep_reply"


async def test_a_second_start_changes_nothing(engine: FakeEngine) -> None:
    async with conversation(engine, vad=False, played=False) as call:
        await call.chroma.queue_frame(StartFrame())
        await call.reached()
        await call.send(LLMRunFrame())
        await call.until(lambda: "LLMFullResponseEndFrame" in call.names(), "a reply")
        assert len(engine.conversations) == 1 and len(call.requests()) == 1


async def test_cancelled_while_it_is_set_up() -> None:
    engine = SlowEngine()
    await engine.start()
    chroma = ChromaRealtimeLLMService(engine=engine, context=LLMContext())
    worker = PipelineWorker(Pipeline([chroma]), enable_rtvi=False, idle_timeout_secs=None)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    async with asyncio.timeout(20):
        await engine.asked.wait()
        await runner.cancel()
        engine.go.set()
        await running
    await chroma.cleanup()
    assert chroma._line.session is None
    for each in engine.conversations:
        assert each.calls[-1] == ("cancel_reply", -1)  # closed


async def test_hung_up_while_it_is_opened() -> None:
    engine = SlowEngine()
    await engine.start()
    chroma = ChromaRealtimeLLMService(engine=engine)
    opening = asyncio.create_task(chroma._line.open())
    await engine.asked.wait()
    await chroma._line.hang_up()
    engine.go.set()
    await opening
    assert chroma._line.session is None
    assert engine.conversations[0].calls[-1] == ("cancel_reply", -1)


async def test_the_engine_outlives_its_pipelines(engine: FakeEngine) -> None:
    for _ in range(3):
        async with conversation(engine, vad=False) as call:
            await call.send(LLMRunFrame())
            await call.replies(1)
    assert len(engine.conversations) == 3 and not engine.closed


async def test_nothing_is_left_of_a_conversation(engine: FakeEngine) -> None:
    kinds = (Session, ReplyStream, ChromaRealtimeLLMService, FakeConversation)

    async def talk() -> None:
        async with conversation(engine, vad=False, transcribe=True) as call:
            for count in (1, 2):
                await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
                await call.replies(count)
        engine.conversations.clear()

    def left() -> list[str]:
        gc.collect()
        return [type(each).__name__ for each in gc.get_objects() if type(each) in kinds]

    await talk()
    tasks, before = asyncio.all_tasks(), left()
    for _ in range(3):
        await talk()
    assert asyncio.all_tasks() == tasks
    assert len(left()) <= len(before), left()
