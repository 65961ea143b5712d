"""What an engine says of itself: every figure against what was done to it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from chroma_plugin.engine.engine import Engine, EngineStats
from chroma_plugin.errors import EngineBusy, EngineClosed
from tests.contract import read
from tests.engine.test_engine import SHORT_S, new_engine, on_thread, worker_of


async def settled(engine: Engine) -> EngineStats:
    """The figures once the engine has done what it was asked so far."""
    await on_thread(worker_of(engine), lambda: None)
    return engine.stats


async def test_replies_and_rows_are_counted() -> None:
    async with new_engine(max_replies=1, thinker_rows=3, queue_timeout_s=0.05) as engine:
        new = engine.stats
        assert (new.rows_free, new.thinker_rows, new.thinker_rows_taken) == (1, 3, 0)
        assert (new.finished, new.cancelled, new.expired, new.underruns) == (0, 0, 0, 0)

        first = await engine.open_session(max_reply_s=60.0)
        second = await engine.open_session(max_reply_s=SHORT_S)
        await read(first.say("one two three four five six"), chunks=1)
        speaking = engine.stats
        assert (speaking.sessions, speaking.speaking, speaking.rows_free) == (2, 1, 0)
        assert 1 <= speaking.thinker_rows_taken <= 2  # who listens may have one, too
        with pytest.raises(EngineBusy):
            await read(second.say("seven"))
        assert engine.stats.expired == 1
        first.cancel()
        await read(second.say("seven"))
        stats = await settled(engine)
        assert (stats.finished, stats.cancelled, stats.expired) == (1, 1, 1)
        assert (stats.speaking, stats.waiting, stats.rows_free) == (0, 0, 1)
        await first.aclose()
        await second.aclose()
        stats = await settled(engine)
        assert (stats.sessions, stats.thinker_rows_taken) == (0, 0)


async def test_caches_are_as_large_as_they_say() -> None:
    small = {"thinker_rows": 2, "thinker_positions": 256, "max_replies": 1}
    sizes = []
    for change in ({}, {"thinker_rows": 4}, {"max_replies": 2}):
        async with new_engine(**(small | change)) as engine:
            stats, runner = engine.stats, worker_of(engine).runner
            assert stats.thinker_cache_bytes == runner.thinker_cache.nbytes
            assert stats.voice_bytes == worker_of(engine).voices.nbytes > 0
            assert stats.voices == 1  # the default one, from warming up
            sizes.append(
                (stats.thinker_cache_bytes, stats.backbone_cache_bytes, stats.codec_state_bytes)
            )
    (thinker, backbone, codec), more_seats, more_rows = sizes
    assert more_seats == (thinker // 3 * 5, backbone, codec)  # one more is for transcripts
    assert more_rows == (thinker, 2 * backbone, 2 * codec)


async def test_voices_that_do_not_fit_are_not_counted() -> None:
    async with new_engine(voice_cache_mb=0.0) as engine:
        session = await engine.open_session(max_reply_s=SHORT_S)
        assert (await read(session.say("hello"))).done.frames > 0
        assert (engine.stats.voices, engine.stats.voice_bytes) == (0, 0)


async def test_figures_can_be_read_from_another_thread() -> None:
    """Sessions come and go meanwhile; at the end the reader is told that the engine is closed."""
    read_so_far: list[EngineStats] = []
    end: list[BaseException] = []
    engine = new_engine(max_replies=2)
    await engine.start()

    def watch() -> None:
        try:
            while True:
                read_so_far.append(engine.stats)
        except BaseException as error:
            end.append(error)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    for _ in range(3):
        session = await engine.open_session(max_reply_s=SHORT_S)
        await read(session.say("hello"), chunks=1)
        await session.aclose()
    await engine.close()
    await asyncio.to_thread(thread.join, 30)
    assert isinstance(end[0], EngineClosed)
    assert {s.speaking + s.rows_free for s in read_so_far} == {2}
    assert max(s.sessions for s in read_so_far) == 1
