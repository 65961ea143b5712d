"""Several pipelines share one engine: nothing is lost, doubled, given to another, or left behind.

``CHROMA_LOAD_MINUTES=5`` makes the two tests that go in rounds take that long each.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pipecat")

from pipecat.frames.frames import TTSAudioRawFrame, TTSStoppedFrame

from chroma_plugin.audio import INPUT_RATE_HZ, Samples
from chroma_plugin.conversation import ReplyRequest
from chroma_plugin.pipecat import ChromaRealtimeLLMService
from chroma_plugin.reply import AudioChunk, ReplyEvent, Sink, TurnDone
from chroma_plugin.session import Session
from chroma_plugin.voice import Voice
from tests.fakes import FakeConversation, FakeEngine
from tests.pipecat.pipeline import Call, conversation
from tests.pipecat.recordings import tone

PIPELINES = 8
TURNS = 3
FRAMES = 10
Settings = ChromaRealtimeLLMService.Settings

LOAD_S = 60 * float(os.environ.get("CHROMA_LOAD_MINUTES", "0"))
long = pytest.mark.timeout(120 + 2 * LOAD_S)


def rounds(at_least: int) -> Iterator[int]:
    """Numbers of rounds: so many, and more until the time is over."""
    number, ends = 0, time.monotonic() + LOAD_S
    while number < at_least or time.monotonic() < ends:
        yield number
        number += 1


def voice(number: int) -> Voice:
    default = Voice.default()
    return Voice.from_samples(default.samples, 24_000, default.transcript, f"{number}")


class MarkedEngine(FakeEngine):
    """Every frame tells whose voice speaks it, in which turn, and at which place."""

    async def open_session(self, **settings: object) -> Session:
        session = await super().open_session(**settings)
        conversation = self.conversations[-1]
        mark(conversation)
        return session


def mark(conversation: FakeConversation) -> None:
    start_reply = conversation.start_reply

    def start_marked(request: ReplyRequest, sink: Sink) -> None:
        def marked(event: ReplyEvent) -> None:
            if isinstance(event, AudioChunk):
                place = round(event.start_ms / 80)
                stamp = [int(request.voice.name) + 1, request.turn, place + 1, 77]
                event = replace(event, pcm=np.tile(np.array(stamp, "<i2"), 480).tobytes())
            sink(event)

        start_reply(request, marked)  # type: ignore[arg-type]

    conversation.start_reply = start_marked  # type: ignore[method-assign]


def pcm(call: Call) -> bytes:
    return b"".join(f.audio for f in call.tap.frames if isinstance(f, TTSAudioRawFrame))


async def talk(call: Call, question: Samples, turns: int = TURNS) -> None:
    for count in range(1, turns + 1):
        await call.say_by_hand(question, INPUT_RATE_HZ)
        await call.until(
            lambda count=count: (
                sum(isinstance(f, TTSStoppedFrame) for f in call.tap.frames) == count
            ),
            f"reply {count}",
        )
        await call.reached()


@pytest.fixture
async def marked() -> AsyncIterator[MarkedEngine]:
    engine = MarkedEngine(frames=FRAMES, frame_s=0.001)
    await engine.start()
    yield engine


async def all_talk(engine: MarkedEngine, turns: int) -> list[weakref.ref[Any]]:
    """Eight pipelines at once, from their start to their cleanup; what they were made of."""
    made: list[weakref.ref[Any]] = []
    async with AsyncExitStack() as stack:
        calls = [
            await stack.enter_async_context(conversation(engine, vad=False, voice=voice(i)))
            for i in range(PIPELINES)
        ]
        await asyncio.gather(*(talk(call, tone(0.5), turns) for call in calls))
        for i, call in enumerate(calls):
            stamps = np.frombuffer(pcm(call), "<i2").reshape(-1, 4)[::480]
            wanted = [
                [i + 1, turn, n, 77] for turn in range(1, turns + 1) for n in range(1, FRAMES + 1)
            ]
            assert stamps.tolist() == wanted  # all of it, once, in order, and nobody else's
            assert not call.errors
            assert call.session is not None
            made += [weakref.ref(call.chroma), weakref.ref(call.session)]
    made += [weakref.ref(each) for each in engine.conversations]
    return made


async def test_every_pipeline_gets_its_own_replies(marked: MarkedEngine) -> None:
    await all_talk(marked, TURNS)
    assert len(marked.conversations) == PIPELINES


@long
async def test_rounds_of_pipelines_leave_nothing_behind(marked: MarkedEngine) -> None:
    """Weak references and counts of objects: unlike the process's memory, they are exact."""
    tasks, counts = asyncio.all_tasks(), list[int]()
    for number in rounds(4):
        made = await all_talk(marked, turns=20 if LOAD_S else 1)
        assert len(made) == 3 * PIPELINES
        marked.conversations.clear()
        gc.collect()
        alive = [type(each()).__name__ for each in made if each() is not None]
        assert not alive, f"left after round {number}: {alive}"
        assert asyncio.all_tasks() == tasks
        counts.append(len(gc.get_objects()))
    print(f"{len(counts)} rounds of {PIPELINES} pipelines; objects after each: {counts}")
    grown = counts[-1] - counts[1]  # the first round fills what is made once
    assert grown < PIPELINES * (len(counts) - 2), f"objects after each round: {counts}"


async def test_one_that_is_cut_leaves_the_others_alone(marked: MarkedEngine) -> None:
    async with AsyncExitStack() as stack:
        calls = [
            await stack.enter_async_context(conversation(marked, vad=False, voice=voice(i)))
            for i in range(PIPELINES)
        ]
        calls[0].speaker.play_to(0.0)

        async def break_in() -> None:
            await calls[0].say_by_hand(tone(0.5), INPUT_RATE_HZ)
            await calls[0].until(lambda: pcm(calls[0]), "some audio")
            await calls[0].say_by_hand(tone(0.5), INPUT_RATE_HZ)
            await calls[0].worker.cancel()

        await asyncio.gather(break_in(), *(talk(call, tone(0.5)) for call in calls[1:]))
        for call in calls[1:]:
            assert len(pcm(call)) == TURNS * FRAMES * 1920 * 2 and not call.errors


@long
@pytest.mark.slow
async def test_the_engine_serves_eight_pipelines() -> None:
    """The real one; how long a reply may be tells whose it is."""
    pytest.importorskip("torch")
    from chroma_plugin import Engine, EngineConfig
    from tests.engine.test_stats import settled
    from tests.miniature import MINIATURE

    engine = Engine(EngineConfig(model=str(MINIATURE), device="cpu"))
    await engine.start()

    async def one(number: int) -> list[int]:
        settings = Settings(seed=number, max_reply_s=0.08 * (number + 1))
        async with conversation(engine, vad=False, settings=settings) as call:
            done: list[TurnDone] = []

            async def made(_: object, event: TurnDone) -> None:
                done.append(event)

            call.chroma.add_event_handler("on_reply_done", made)
            await talk(call, tone(0.3), turns=2)
            assert not call.errors
            assert len(pcm(call)) == sum(each.frames for each in done) * 1920 * 2
            return [each.frames for each in done]

    try:
        for _ in rounds(1):
            frames = await asyncio.gather(*(one(number) for number in range(PIPELINES)))
            assert frames == [[number + 1] * 2 for number in range(PIPELINES)]
            left = await settled(engine)
            assert (left.sessions, left.thinker_rows_taken) == (0, 0)  # all of it is free again
            assert left.rows_free == engine.config.max_replies
    finally:
        await engine.close()
