"""Real rooms on a real server: what a guest hears and reads."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from livekit import rtc

from chroma_plugin.audio import Samples, resample
from chroma_plugin.livekit import RealtimeModel
from chroma_plugin.voice import Voice
from tests.livekit.rooms import (
    KEY,
    ROOM_RATE_HZ,
    SECRET,
    RoomServer,
    ToneEngine,
    agent_in,
    guest,
    serve_rooms,
)
from tests.livekit.stage import WAIT_S, calls
from tests.pipecat.recordings import capital
from tests.server.serving import serving

pytestmark = pytest.mark.slow
WORDS = "one two three four five six seven eight nine ten"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoomServer]:
    yield from serve_rooms(tmp_path_factory.mktemp("livekit"))


def question() -> Samples:
    return resample(capital(), 16_000, ROOM_RATE_HZ)


def voice(name: str) -> Voice:
    return Voice(name, Voice.default().transcript, Voice.default().samples)


async def test_a_reply_is_heard_and_read(server: RoomServer) -> None:
    engine = ToneEngine(WORDS, 20, 0.02)
    async with (
        guest(server, "one") as ann,
        agent_in(server, "one", RealtimeModel(engine=engine, transcribe=True)),
    ):
        await ann.say(question())
        await ann.until(lambda: ann.loud_s > 1.4)
        await ann.until(lambda: WORDS in ann.read)
        assert ann.pitch_hz == pytest.approx(440, abs=40)
        assert calls(engine, "start_reply")
        heard_s = sum(len(c[0]) for c in calls(engine, "push_audio")) / 16_000
        assert heard_s > len(capital()) / 16_000 - 0.5


async def test_a_barge_in_is_heard_to_stop(server: RoomServer) -> None:
    engine = ToneEngine(WORDS, 125, 0.02)
    async with (
        guest(server, "two") as ann,
        agent_in(server, "two", RealtimeModel(engine=engine)) as session,
    ):
        session.generate_reply()
        await ann.until(lambda: ann.loud_s > 1.0)
        states: list[tuple[str, float]] = []
        session.on("agent_state_changed", lambda e: states.append((e.new_state, ann.loud_s)))
        await ann.say(question())
        await ann.until(lambda: any(state == "listening" for state, _ in states))
        before_s = next(loud_s for state, loud_s in states if state == "listening")
        await ann.until(lambda: len(calls(engine, "start_reply")) == 2)
        assert ann.loud_s - before_s < 0.5  # of audio after the framework's decision
        await ann.until(lambda: ann.loud_s - before_s > 3)  # and the next reply is heard


async def test_a_second_guest_hears_it_too(server: RoomServer) -> None:
    engine = ToneEngine(WORDS, 12, 0.02)
    async with (
        guest(server, "three") as ann,
        guest(server, "three", "bob") as bob,
        agent_in(server, "three", RealtimeModel(engine=engine)) as session,
    ):
        await session.say("Hello to both of you.")
        await ann.until(lambda: ann.loud_s > 0.7)
        await bob.until(lambda: bob.loud_s > 0.7)


async def test_two_rooms_two_voices_one_engine(server: RoomServer) -> None:
    engine = ToneEngine(WORDS, 15, 0.02)
    low, high = (RealtimeModel(engine=engine, voice=voice(name)) for name in ("330", "660"))
    async with (
        guest(server, "low") as ann,
        guest(server, "high", "bob") as bob,
        agent_in(server, "low", low) as one,
        agent_in(server, "high", high) as other,
    ):
        await asyncio.gather(one.say("Low."), other.say("High."))
        await ann.until(lambda: ann.loud_s > 0.9)
        await bob.until(lambda: bob.loud_s > 0.9)
        assert ann.pitch_hz == pytest.approx(330, abs=40)
        assert bob.pitch_hz == pytest.approx(660, abs=40)


@pytest.mark.parametrize("cut", ["SIMULATE_SIGNAL_RECONNECT", "SIMULATE_FULL_RECONNECT"])
async def test_a_guest_whose_network_was_cut_goes_on(server: RoomServer, cut: str) -> None:
    engine = ToneEngine(WORDS, 12, 0.02)
    async with (
        guest(server, cut) as ann,
        agent_in(server, cut, RealtimeModel(engine=engine)) as session,
    ):
        await session.say("Before.")
        await ann.until(lambda: ann.loud_s > 0.7)
        await ann.room.simulate_scenario(rtc.SimulateScenarioKind.Value(cut))
        await ann.until(ann.back.is_set)
        before_s = ann.loud_s
        for _ in range(5):  # who is not answered says it again
            await ann.say(question())
            with suppress(TimeoutError):
                async with asyncio.timeout(8):
                    await ann.until(lambda: ann.loud_s > before_s + 0.5)
                break
        assert ann.loud_s > before_s + 0.5
        assert len(engine.conversations) == 1  # the same conversation


@asynccontextmanager
async def worker(
    server: RoomServer, engine_url: str, log: Path
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """An agent server in a process of its own."""
    environment = os.environ | {
        "LIVEKIT_URL": server.url,
        "LIVEKIT_API_KEY": KEY,
        "LIVEKIT_API_SECRET": SECRET,
        "CHROMA_ENGINE_URL": engine_url,
    }
    command = [sys.executable, "-m", "tests.livekit.worker", "start"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        async with asyncio.timeout(4 * WAIT_S):
            while b"registered worker" not in log.read_bytes():
                assert process.poll() is None, log.read_text()
                await asyncio.sleep(0.1)
        yield process
    finally:
        end(process.pid)
        await asyncio.to_thread(process.wait, 30)


def end(worker: int) -> None:
    """A worker and all of its processes are gone at once."""
    with suppress(ProcessLookupError):
        os.killpg(worker, 9)


def who_speaks(text: str) -> int:
    """The process that has said so."""
    return int(text.split()[1])


async def test_a_worker_is_killed_and_another_one_goes_on(
    server: RoomServer, tmp_path: Path
) -> None:
    """Dispatched by the server to a process of its own; the engine outlives it."""
    engine = ToneEngine(WORDS, 12, 0.02)
    async with serving(engine) as address:
        url = f"ws://{address}"
        async with (
            worker(server, url, tmp_path / "one.log") as one,
            worker(server, url, tmp_path / "other.log") as other,
            guest(server, "seven") as ann,
        ):
            await server.dispatch("seven", "chroma")
            await ann.until(lambda: ann.loud_s > 0.7 and ann.read)
            before_s, job = ann.loud_s, who_speaks(ann.read[0])
            end(next(w.pid for w in (one, other) if os.getpgid(job) == w.pid))
            await server.dispatch("seven", "chroma")  # as an application does that misses it
            await ann.until(lambda: ann.loud_s > before_s + 0.5 and len(ann.read) > 1)
            assert who_speaks(ann.read[-1]) != job
            assert len(engine.conversations) == 2


async def test_silence_in_a_room_is_no_turn(server: RoomServer) -> None:
    engine = ToneEngine(WORDS, 12, 0.02)
    async with (
        guest(server, "six") as ann,
        agent_in(server, "six", RealtimeModel(engine=engine)) as session,
    ):
        await ann.say(np.zeros(3 * ROOM_RATE_HZ, np.float32))
        assert not calls(engine, "push_audio") and session.agent_state == "listening"
