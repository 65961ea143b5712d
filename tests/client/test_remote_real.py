"""RemoteEngine before a server with the real engine: the same contract, and the same bits."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from chroma_plugin.audio import float_to_pcm, pcm_to_float
from chroma_plugin.client import RemoteEngine
from chroma_plugin.config import EngineConfig, SamplingParams
from chroma_plugin.conversation import Message
from chroma_plugin.engine.engine import Engine
from chroma_plugin.engine.graphs import DeviceMode
from chroma_plugin.engine.parts import Parts, load_parts
from chroma_plugin.reply import TextDelta
from chroma_plugin.server.settings import ServerConfig
from chroma_plugin.session import Session, SpeechEngine
from chroma_plugin.voice import Voice
from tests.contract import EngineContract, Reply, open_session, question, read
from tests.miniature import MINIATURE
from tests.recorded import GRAPHS_OFF
from tests.server.serving import serving

CONFIG = ServerConfig()
_loaded: dict[str, Parts] = {}


def started(**settings: Any) -> Engine:
    """The miniature, loaded once for all tests; a server that is asked too early has no room."""

    def parts(config: EngineConfig) -> Parts:
        if "parts" not in _loaded:
            _loaded["parts"] = load_parts(EngineConfig(model=MINIATURE))
        return _loaded["parts"]

    room = {"thinker_positions": 1024, "backbone_positions": 1024, "run_ahead_s": math.inf}
    return Engine(EngineConfig(**(room | settings)), load=parts)


class TestContract(EngineContract):
    @pytest.fixture
    async def engine(self) -> AsyncIterator[SpeechEngine]:
        async with (
            started() as behind,
            serving(behind) as place,
            RemoteEngine(f"ws://{place}", voice_consent="a test") as engine,
        ):
            yield engine

    @pytest.fixture
    async def small_engine(self) -> AsyncIterator[SpeechEngine]:
        async with (
            started(max_sessions=1, queue_timeout_s=0.2) as behind,
            serving(behind) as place,
            RemoteEngine(f"ws://{place}", queue_timeout_s=0.3) as engine,
        ):
            yield engine


def rounded(samples: Any) -> Any:
    """What the wire carries: PCM16."""
    return pcm_to_float(float_to_pcm(samples))


def told(reply: Reply) -> tuple[bytes, list[tuple[str, float, int]], Any]:
    """All of a reply but its timings; where it was cut into chunks is a matter of time as well."""
    pieces = [(e.text, e.start_ms, e.tokens) for e in reply.events if isinstance(e, TextDelta)]
    done = replace(reply.done, timings=type(reply.done.timings)())
    return reply.pcm, pieces, done


async def converse(session: Session, other: Voice) -> list[Any]:
    """All that a conversation can do, one after the other; what came of it."""
    got: list[Any] = []
    spoken = rounded(question())
    for start in range(0, len(spoken), 320):
        session.push_audio(spoken[start : start + 320])
    stream = session.commit_turn(instructions="Answer in one word.")
    got += [told(await read(stream)), await session.transcribe(stream.turn)]
    session.add_user_text("And now?")
    got.append(told(await read(session.respond())))
    session.truncate(160.0)
    got.append(told(await read(session.say("Good bye."))))
    session.update(
        instructions="Be brief.", voice=other, sampling=SamplingParams(temperature=0.9, seed=11)
    )
    session.push_audio(spoken[:8_000])
    turn = session.commit_audio()
    session.push_audio(spoken[8_000:20_000])
    got += [told(await read(session.commit_turn())), await session.transcribe(turn)]
    session.update(voice=Voice.default())
    got.append(told(await read(session.respond())))
    got.append(session.history)
    return got


async def test_a_remote_conversation_is_the_same_to_the_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the shapes of a GPU: on a CPU how many frames the codec makes at once is a matter of
    time, and moves the last bit, remote or not."""
    monkeypatch.setattr(DeviceMode, "of", lambda device, graphs=True: GRAPHS_OFF)
    clip = Voice.default()
    other = Voice.from_samples(rounded(clip.samples[: 24_000 * 5]), 24_000, clip.transcript)
    history = [Message("user", "Hello"), Message("assistant", "Hi there")]
    settings: dict[str, Any] = {
        "sampling": SamplingParams(seed=7),
        "history": history,
        "instructions": "Speak clearly.",
        "max_reply_s": 0.8,
    }
    results = []
    async with (
        started() as engine,
        serving(engine, CONFIG) as place,
        RemoteEngine(f"ws://{place}", voice_consent="a test") as remote,
    ):
        for one in (engine, remote):
            session = await open_session(one, **settings)
            results.append(await converse(session, other))
            await session.aclose()
    for local, far in zip(*results, strict=True):
        assert far == local
    assert len({reply[0] for reply in results[0] if isinstance(reply[0], bytes)}) == 5
