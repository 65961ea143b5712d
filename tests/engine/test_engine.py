"""The engine on the packaged checkpoint: the contract of every engine, and what is its own."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chroma_plugin.audio import INPUT_RATE_HZ, Samples
from chroma_plugin.config import GREEDY, EngineConfig, SamplingParams
from chroma_plugin.conversation import Message
from chroma_plugin.engine.call import Call
from chroma_plugin.engine.engine import Engine
from chroma_plugin.engine.frames import StepTimes
from chroma_plugin.engine.graphs import DeviceMode
from chroma_plugin.engine.parts import Parts, find_device, load_parts
from chroma_plugin.engine.runner import Runner
from chroma_plugin.engine.worker import Worker
from chroma_plugin.errors import (
    CheckpointError,
    ConfigError,
    EngineBusy,
    EngineClosed,
    EngineError,
    EngineFailed,
    VoiceError,
)
from chroma_plugin.reply import AudioChunk, EndReason, TurnDone
from chroma_plugin.session import Session, SpeechEngine
from chroma_plugin.voice import Voice
from tests.contract import MAX_REPLY_S, EngineContract, Reply, assert_same_speech, read
from tests.miniature import MINIATURE
from tests.recorded import GRAPHS_OFF

SEEDED = SamplingParams(temperature=0.9, top_k=40, seed=7)
SHORT_S = 0.8

_loaded: dict[str, Parts] = {}


def shared_parts(config: EngineConfig) -> Parts:
    """The packaged checkpoint, loaded once for all tests; nothing in it changes."""
    if "parts" not in _loaded:
        _loaded["parts"] = load_parts(EngineConfig(model=MINIATURE))
    return _loaded["parts"]


def new_engine(**settings: object) -> Engine:
    room = {"thinker_positions": 1024, "backbone_positions": 1024, "run_ahead_s": math.inf}
    return Engine(EngineConfig(**(room | settings)), load=shared_parts)  # type: ignore[arg-type]


def worker_of(engine: Engine) -> Worker:
    assert engine._worker is not None
    return engine._worker


def call_of(session: Session) -> Call:
    return session._conversation._call  # type: ignore[attr-defined, no-any-return]


def speech(seconds: float, seed: int) -> Samples:
    """Something to hear: noise with a rhythm."""
    time = np.arange(int(seconds * INPUT_RATE_HZ)) / INPUT_RATE_HZ
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return (0.1 * noise * (1 + np.sin(2 * np.pi * 3 * time))).clip(-1, 1).astype(np.float32)


async def on_thread(worker: Worker, what: Callable[[], object]) -> object:
    """Runs something on the engine's thread, after all that was asked before."""
    loop, done = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
    worker.post(lambda: worker.mail.put(loop, done.set_result, what()))
    return await asyncio.wait_for(done, 30)


class TestContract(EngineContract):
    @pytest.fixture
    async def engine(self) -> AsyncIterator[SpeechEngine]:
        async with new_engine() as engine:
            yield engine

    @pytest.fixture
    async def small_engine(self) -> AsyncIterator[SpeechEngine]:
        async with new_engine(max_sessions=1, queue_timeout_s=0.2) as engine:
            yield engine


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few shapes, and the next step launched before one is looked at."""
    monkeypatch.setattr(DeviceMode, "of", lambda device, graphs=True: GRAPHS_OFF)


@pytest.mark.usefixtures("as_on_a_gpu")
class TestContractAsOnAGpu(TestContract):
    pass


@pytest.fixture(params=["as_on_a_cpu", "as_on_a_gpu"])
def either_way(request: pytest.FixtureRequest) -> None:
    if request.param == "as_on_a_gpu":
        request.getfixturevalue("as_on_a_gpu")


async def converse(engine: Engine, seed: int, turns: int = 1, **settings: object) -> list[Reply]:
    """A conversation of its own: greedy text, seeded speech."""
    sampling = SamplingParams(temperature=0.9, top_k=40, seed=seed)
    session = await engine.open_session(
        sampling=sampling,
        max_reply_s=SHORT_S,
        **settings,  # type: ignore[arg-type]
    )
    replies = []
    for turn in range(turns):
        session.push_audio(speech(1.0 + seed % 3 * 0.7, seed * 10 + turn))
        replies.append(await read(session.commit_turn()))
    await session.aclose()
    return replies


@pytest.mark.usefixtures("either_way")
async def test_conversations_together_equal_each_alone() -> None:
    async with new_engine() as engine:
        alone = [await converse(engine, seed, turns=2) for seed in (1, 2, 3)]
        together = await asyncio.gather(*(converse(engine, seed, turns=2) for seed in (3, 1, 2)))
    for replies, others in zip(alone, [together[1], together[2], together[0]], strict=True):
        for a, b in zip(replies, others, strict=True):
            assert a.text == b.text
            assert_same_speech(a, b)


async def test_the_same_seed_gives_the_same_speech_and_another_one_does_not() -> None:
    async with new_engine() as engine:
        replies = []
        for seed in (7, 7, 8):
            session = await engine.open_session(
                sampling=SamplingParams(seed=seed), max_reply_s=SHORT_S
            )
            replies.append(await read(session.say("Good morning.")))
    assert_same_speech(*replies[:2])
    assert replies[0].pcm != replies[2].pcm


@pytest.mark.usefixtures("either_way")
async def test_a_rebuilt_cache_gives_the_same_reply() -> None:
    """The log is the truth: a second turn on the kept cache equals one on a cache made anew."""
    replies = []
    async with new_engine() as engine:
        for rebuild in (False, True):
            session = await engine.open_session(sampling=SEEDED, max_reply_s=SHORT_S)
            session.push_audio(speech(2.5, 1))
            await read(session.commit_turn())
            worker, call = worker_of(engine), call_of(session)

            def lose(worker: Worker = worker, call: Call = call) -> None:
                worker.runner.thinker_cache.k[:, call.thinker_row].fill_(9.0)
                call.dialogue.cached = 0

            if rebuild:
                await on_thread(worker, lose)
            session.push_audio(speech(1.5, 2))
            replies.append(await read(session.commit_turn()))
            await session.aclose()
    assert replies[0].text == replies[1].text
    assert_same_speech(*replies)


async def test_audio_is_understood_while_the_user_speaks() -> None:
    async with new_engine() as engine:
        session = await engine.open_session(max_reply_s=SHORT_S)
        worker, call = worker_of(engine), call_of(session)
        session.push_audio(speech(4.5, 1))
        while await on_thread(worker, lambda: worker._next_prompt()) is not None:
            pass
        spoken = [e for e in call.dialogue.entries if e.kind == "listening"]
        assert [len(e.audio) for e in spoken if e.audio is not None] == [100]  # two whole blocks
        assert call.dialogue.cached == call.dialogue.positions


async def test_what_is_said_while_a_reply_speaks_comes_after_it() -> None:
    async with new_engine() as engine:
        session = await engine.open_session(max_reply_s=MAX_REPLY_S, sampling=GREEDY)
        session.push_audio(speech(1.0, 1))
        stream = session.commit_turn()
        await read(stream, chunks=1)
        session.push_audio(speech(2.5, 2))
        await read(stream)
        await read(session.commit_turn())
        kinds = [e.kind for e in call_of(session).dialogue.entries]
        assert kinds == ["system", "user", "assistant", "user", "assistant"]


async def test_say_in_mid_turn_keeps_what_the_user_said_so_far() -> None:
    async with new_engine() as engine:
        session = await engine.open_session(max_reply_s=SHORT_S)
        session.push_audio(speech(2.5, 1))
        await read(session.say("One moment."))
        session.push_audio(speech(0.5, 2))
        await read(session.commit_turn())
        entries = call_of(session).dialogue.entries
        assert [e.kind for e in entries] == ["system", "assistant", "user", "assistant"]
        assert entries[2].audio is not None and len(entries[2].audio) == 75  # 3 s
        assert [m.role for m in session.history] == ["assistant", "user", "assistant"]


@pytest.mark.usefixtures("either_way")
async def test_what_was_not_heard_leaves_the_thinker_too() -> None:
    async with new_engine() as engine:
        session = await engine.open_session(max_reply_s=5.0)
        stream = session.say("one two three four five six seven eight nine ten")
        await read(stream)
        session.truncate(stream.delivered_ms / 3)
        worker, call = worker_of(engine), call_of(session)
        heard = session.history[-1].text
        assert heard and heard != "one two three four five six seven eight nine ten"
        text = await on_thread(worker, lambda: call.prompt.decode(call.dialogue.entries[-1].tokens))
        assert text == heard


async def test_new_instructions_wait_for_the_reply_to_end() -> None:
    """A reply keeps the prompt that it began with, and its cache stays in step with the log."""
    async with new_engine() as engine:
        texts = []
        for change in (False, True):
            session = await engine.open_session(
                max_reply_s=MAX_REPLY_S, sampling=GREEDY, instructions="Be brief."
            )
            stream = session.respond()
            start = await read(stream, chunks=1)
            if change:
                session.update(instructions="Be long, and speak of the weather and of houses.")
            texts.append(start.text + (await read(stream)).text)
            if change:
                worker, call = worker_of(engine), call_of(session)
                await on_thread(worker, lambda: None)
                spelt = call.prompt.decode(call.dialogue.entries[0].before)
                assert "weather" in spelt
                assert (await read(session.respond())).done.frames
            await session.aclose()
    assert texts[0] == texts[1]


async def test_an_instruction_for_one_reply_is_gone_after_it() -> None:
    async with new_engine() as engine:
        session = await engine.open_session(max_reply_s=SHORT_S, sampling=GREEDY)
        plain = await read(session.respond())
        session.truncate(0)
        other = await read(session.respond(instructions="Answer with one word: house."))
        session.truncate(0)
        again = await read(session.respond())
        kinds = [e.kind for e in call_of(session).dialogue.entries]
    assert plain.text == again.text != other.text
    assert kinds == ["system", "assistant"]


@pytest.mark.usefixtures("either_way")
async def test_cancel_frees_the_row_for_the_next_in_line() -> None:
    async with new_engine(max_replies=1) as engine:
        first = await engine.open_session(max_reply_s=60.0)
        second = await engine.open_session(max_reply_s=SHORT_S)
        stream = first.say("one two three four five six")
        await read(stream, chunks=1)
        waiting = second.say("seven")
        first.cancel()
        assert (await read(waiting)).done.frames == SHORT_S * 12.5


async def test_a_turn_that_gets_no_row_in_time_ends_as_busy_and_can_be_tried_again() -> None:
    async with new_engine(max_replies=1, queue_timeout_s=0.05) as engine:
        first = await engine.open_session(max_reply_s=60.0)
        second = await engine.open_session(max_reply_s=SHORT_S)
        stream = first.say("one two three four five six")
        await read(stream, chunks=1)
        second.push_audio(speech(1.0, 1))
        with pytest.raises(EngineBusy, match="max_replies"):
            await read(second.commit_turn())
        first.cancel()
        assert (await read(second.respond())).done.frames
        assert engine.stats.waiting == 0


async def test_the_idlest_cache_gives_way_and_is_rebuilt_with_the_same_result() -> None:
    """Three conversations take turns on two rows of the thinker's cache."""
    replies: dict[int, list[Reply]] = {}
    for rows in (8, 2):
        async with new_engine(max_replies=2, thinker_rows=rows) as engine:
            sessions = [
                await engine.open_session(max_reply_s=SHORT_S, sampling=SEEDED) for _ in range(3)
            ]
            replies[rows] = []
            for turn in range(2):
                for i, session in enumerate(sessions):
                    session.push_audio(speech(1.5 + i, 10 * turn + i))
                    replies[rows].append(await read(session.commit_turn()))
            assert (engine.stats.evictions > 0) == (rows == 2)
    for kept, rebuilt in zip(replies[8], replies[2], strict=True):
        assert kept.text == rebuilt.text
        assert_same_speech(kept, rebuilt)


async def test_a_reply_is_made_only_so_far_ahead_of_its_playback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock stands still, so playback does: the reply rests at its bound, and goes on when
    the clock does."""
    now_s = time.monotonic()
    clock = SimpleNamespace(monotonic=lambda: now_s, perf_counter=time.perf_counter)
    async with new_engine(run_ahead_s=0.5) as engine:
        worker = worker_of(engine)
        monkeypatch.setattr("chroma_plugin.engine.worker.time", clock)
        monkeypatch.setattr("chroma_plugin.engine.frames.time", clock)
        session = await engine.open_session(max_reply_s=SHORT_S * 4)
        stream = session.respond()
        start = await read(stream, chunks=4)
        while await on_thread(worker, lambda: bool(worker.scheduler.acting)):
            pass
        (slot,) = worker.scheduler.speaking.values()
        assert 6 <= slot.frames <= 12  # half a second, a beat, and a chunk that was being filled
        reading = asyncio.create_task(read(stream))
        while not reading.done():
            now_s += 0.5
            await on_thread(worker, lambda: None)
        assert start.audio_ms + (await reading).audio_ms == SHORT_S * 4000


async def test_sessions_come_and_go_without_using_anything_up() -> None:
    async with new_engine(max_sessions=2, max_replies=2, queue_timeout_s=0.2) as engine:
        for i in range(12):
            session = await engine.open_session(max_reply_s=SHORT_S)
            stream = session.say("hello")
            if i % 3 == 0:
                await read(stream, chunks=1)
            await session.aclose()
        worker = worker_of(engine)
        await on_thread(worker, lambda: None)
        stats = engine.stats
        assert (stats.sessions, stats.speaking, stats.waiting) == (0, 0, 0)
        assert len(worker.seats) == 0
        assert not bool(worker.runner.rows.active.any())


async def test_the_event_loop_runs_while_the_engine_works() -> None:
    """Between two frames of speech the loop turns many times: nothing waits for the model."""
    async with new_engine() as engine:
        session = await engine.open_session(max_reply_s=4.0)
        session.push_audio(speech(4.0, 1))
        turns, speaking = 0, True

        async def count() -> None:
            nonlocal turns
            while speaking:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        reply = await read(session.commit_turn())
        speaking = False
        await counting
        assert turns > 10 * reply.done.frames


@pytest.mark.usefixtures("either_way")
async def test_a_reply_ends_when_the_backbone_is_full() -> None:
    voice = Voice.default()
    async with new_engine(backbone_positions=256) as engine:
        session = await engine.open_session(voice=voice, max_reply_s=60.0)
        done = (await read(session.respond())).done
        assert done.reason is EndReason.POSITIONS
        assert 0 < done.frames < 256


def always_make(runner: Runner, frame: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every row make the same frame again and again."""

    def pick_frame(batch: int, waiting: int) -> torch.Tensor:
        runner.rows.undecoded[:batch, :, waiting] = codes = torch.tensor([frame] * batch)
        return codes

    monkeypatch.setattr(runner, "pick_frame", pick_frame)


@pytest.mark.usefixtures("either_way")
async def test_a_reply_ends_when_the_same_frame_comes_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with new_engine(repeat_stop_frames=5) as engine:
        runner = worker_of(engine).runner
        always_make(runner, list(range(1, 9)), monkeypatch)
        session = await engine.open_session(max_reply_s=60.0)
        done = (await read(session.respond())).done
        assert (done.reason, done.frames) == (EndReason.REPEATED, 5)


@pytest.mark.usefixtures("either_way")
async def test_speech_that_ends_at_once_is_an_empty_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    async with new_engine() as engine:
        runner = worker_of(engine).runner
        always_make(runner, [0] * 7 + [5], monkeypatch)  # the last codebook does not count
        session = await engine.open_session()
        reply = await read(session.respond())
        assert reply.done.reason is EndReason.END_OF_SPEECH
        assert (reply.text, reply.pcm, reply.done.frames, session.history) == ("", b"", 0, ())
        monkeypatch.undo()
        await session.aclose()


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    ("text", "last", "reason"),
    [
        ("one two three four five six", [0] * 8, EndReason.UNFINISHED),
        ("one two three four five six", [7] * 8, EndReason.UNFINISHED),
        ("a", [0] * 8, EndReason.END_OF_SPEECH),
        ("a", [7] * 8, EndReason.REPEATED),
    ],
)
async def test_a_model_that_stops_in_a_text_is_told_from_one_that_has_said_it(
    text: str, last: list[int], reason: EndReason, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with new_engine(repeat_stop_frames=2) as engine:
        runner = worker_of(engine).runner
        frames = [[5] * 8, [6] * 8, [5] * 8, [6] * 8]  # a text token comes with every second one

        def pick_frame(batch: int, waiting: int) -> torch.Tensor:
            codes = torch.tensor([frames.pop() if frames else last] * batch)
            runner.rows.undecoded[:batch, :, waiting] = codes
            return codes

        monkeypatch.setattr(runner, "pick_frame", pick_frame)
        session = await engine.open_session(max_reply_s=60.0)
        reply = await read(session.say(text))
        done, unread = reply.done, reason is EndReason.UNFINISHED
        assert done.reason is reason
        assert done.whole is (reason is EndReason.END_OF_SPEECH)
        assert text.startswith(done.text.strip()) and (done.text.strip() != text) is unread
        if done.text:
            assert session.history[-1].text == done.text


async def test_the_oldest_turns_are_forgotten_when_the_thinker_is_full() -> None:
    async with new_engine(thinker_positions=256) as engine:
        session = await engine.open_session(max_reply_s=SHORT_S, instructions="Be brief.")
        call = call_of(session)
        for turn in range(6):
            session.push_audio(speech(3.0, turn))  # 75 positions
            assert (await read(session.commit_turn())).done.frames
            assert call.dialogue.positions <= 256
        kinds = [e.kind for e in call.dialogue.entries]
        assert kinds[:2] == ["system", "user"] and kinds[-1] == "assistant"
        assert len(kinds) < 1 + 2 * 6


async def test_announcements_without_end_forget_the_oldest() -> None:
    async with new_engine(thinker_positions=128) as engine:
        session = await engine.open_session(max_reply_s=0.16, instructions="Be brief.")
        for _ in range(12):
            assert (await read(session.say("The train leaves now."))).done.frames


async def test_instructions_that_cannot_fit_are_refused() -> None:
    async with new_engine(thinker_positions=128) as engine:
        session = await engine.open_session(max_reply_s=SHORT_S, instructions="word " * 200)
        with pytest.raises(ConfigError, match="thinker_positions"):
            await read(session.respond())
        session.update(instructions="Be brief.")
        assert (await read(session.respond())).done.frames


async def test_a_generous_cap_leaves_room_for_the_conversation() -> None:
    """An hour's cap reserves no hour of text: the backbone would be full long before."""
    async with new_engine(max_reply_s=3600.0, thinker_positions=512) as engine:
        session = await engine.open_session(instructions="Be brief.")
        stream = session.respond()
        await read(stream, chunks=1)
        session.cancel()
        assert stream.delivered_ms


async def test_text_too_long_to_be_said_at_once_is_refused() -> None:
    async with new_engine() as engine:
        session = await engine.open_session()
        with pytest.raises(ConfigError, match="several pieces"):
            await read(session.say("word " * 2000))
        assert session.history == ()


async def test_a_voice_that_does_not_fit_is_refused() -> None:
    async with new_engine(backbone_positions=192) as engine:
        long = np.concatenate([Voice.default().samples] * 3)
        voice = Voice("long", Voice.default().transcript * 3, long)
        with pytest.raises(VoiceError, match="shorter clip"):
            await engine.open_session(voice=voice)


async def test_a_dead_engine_tells_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with new_engine() as engine:
        session = await engine.open_session(max_reply_s=60.0)
        stream = session.respond()
        await read(stream, chunks=1)

        def broken(*args: object, **kwargs: object) -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(worker_of(engine).runner, "step", broken)
        with pytest.raises(EngineFailed, match="out of memory"):
            await read(stream)
        with pytest.raises(EngineFailed):
            await read(session.respond())
        with pytest.raises(EngineFailed):
            await engine.open_session()
        with pytest.raises(EngineFailed):
            await engine.start()


async def test_a_broken_conversation_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with new_engine() as engine:
        bad = await engine.open_session(max_reply_s=SHORT_S)
        good = await engine.open_session(max_reply_s=SHORT_S)

        def broken(samples: object) -> None:
            raise RuntimeError("no ears")

        monkeypatch.setattr(call_of(bad), "hear", broken)
        bad.push_audio(speech(1.0, 1))
        good.push_audio(speech(1.0, 1))
        with pytest.raises(EngineError, match="no ears"):
            await read(bad.commit_turn())
        assert (await read(good.commit_turn())).done.frames


async def test_a_reply_that_cannot_be_made_ends_with_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with new_engine() as engine:
        session = await engine.open_session(max_reply_s=SHORT_S)

        def broken(text: str) -> None:
            raise RuntimeError("no words")

        monkeypatch.setattr(worker_of(engine), "_spell", broken)
        for _ in range(2):
            with pytest.raises(EngineError, match="no words"):
                await read(session.say("Good morning."))


async def test_a_voice_whose_making_fails_takes_nobody_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with new_engine() as engine:
        session = await engine.open_session(max_reply_s=SHORT_S)
        voice = Voice("other", "Other words.", Voice.default().samples)

        def broken(*args: object) -> None:
            raise RuntimeError("out of memory")

        with monkeypatch.context() as patch:
            patch.setattr(worker_of(engine).runner, "prepare_voice", broken)
            with pytest.raises(EngineError, match="out of memory"):
                await engine.open_session(voice=voice)
        assert engine.stats.sessions == 1
        assert (await read(session.respond())).done.frames


@pytest.mark.parametrize(
    "settings",
    [
        {"instructions": "half\ud800"},
        {"history": [Message("user", "half\ud800")]},
        {"voice": "bob"},
        {"sampling": {"temperature": 0.5}},
        {"max_reply_s": math.nan},
    ],
    ids=lambda settings: "".join(settings),
)
async def test_a_session_that_is_refused_takes_no_room(settings: dict[str, object]) -> None:
    async with new_engine(max_sessions=1, queue_timeout_s=0.2) as engine:
        with pytest.raises(ConfigError):
            await engine.open_session(**settings)  # type: ignore[arg-type]
        session = await engine.open_session(max_reply_s=SHORT_S)
        assert (await read(session.respond())).done.frames


async def test_an_engine_that_still_loads_says_so() -> None:
    engine = new_engine()
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0)
    with pytest.raises(EngineClosed, match="still loading"):
        await engine.open_session()
    with pytest.raises(EngineClosed, match="still loading"):
        _ = engine.stats
    await asyncio.gather(engine.close(), starting, return_exceptions=True)


async def test_what_is_asked_behind_the_closing_is_answered() -> None:
    for ended in (False, True):
        engine = new_engine()
        await engine.start()
        worker, session = worker_of(engine), await engine.open_session()
        entered, leave = threading.Event(), threading.Event()

        def hold(entered: threading.Event = entered, leave: threading.Event = leave) -> None:
            entered.set()
            leave.wait(30)

        worker.post(hold)
        entered.wait(30)
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0.1)
        opening = asyncio.create_task(engine.open_session())
        await asyncio.sleep(0)
        if ended:  # the call was let in, but the thread is gone when it is posted
            leave.set()
            await closing
        stream = session.respond()
        leave.set()
        with pytest.raises(EngineClosed):
            await asyncio.wait_for(opening, 30)
        with pytest.raises(EngineClosed):
            await read(stream)
        await closing


async def test_closing_ends_what_is_going_on() -> None:
    engine = new_engine()
    await engine.start()
    session = await engine.open_session(max_reply_s=60.0)
    stream = session.respond()
    await read(stream, chunks=1)
    await engine.close()
    await engine.close()
    with pytest.raises(EngineClosed):
        await read(stream)
    with pytest.raises(EngineClosed):
        await read(session.respond())
    with pytest.raises(EngineClosed):
        await engine.open_session()
    await session.aclose()


async def test_a_cancelled_wait_for_a_session_takes_no_room() -> None:
    async with new_engine(max_sessions=1, queue_timeout_s=30.0) as engine:
        first = await engine.open_session()
        waiting = asyncio.create_task(engine.open_session())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await first.aclose()
        again = await engine.open_session(max_reply_s=SHORT_S)
        assert (await read(again.respond())).done.frames


def test_sessions_of_a_closed_event_loop_leave_their_place() -> None:
    engine = new_engine(max_sessions=1, queue_timeout_s=0.2)

    async def walk_away() -> None:
        await engine.start()
        session = await engine.open_session(max_reply_s=60.0)
        await read(session.respond(), chunks=1)

    async def come_back() -> None:
        session = await engine.open_session(max_reply_s=SHORT_S)
        assert (await read(session.respond())).done.frames
        assert engine.stats.sessions == 1
        await engine.close()

    asyncio.run(walk_away())
    asyncio.run(come_back())


async def test_start_can_be_called_twice_and_fails_clearly(tmp_path: Path) -> None:
    async with new_engine() as engine:
        await engine.start()
    missing = Engine(EngineConfig(model=tmp_path))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        await missing.start()
    with pytest.raises(CheckpointError):
        await missing.start()
    with pytest.raises(EngineClosed, match="start"):
        await Engine().open_session()


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for CUDA where there is none")
async def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="doctor"):
        await Engine(EngineConfig(device="cuda")).start()


def test_a_device_is_one_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (find_device("auto"), find_device("cpu")) == ("cpu", "cpu")
    with pytest.raises(ConfigError, match=r"'cuda:0'.*no CUDA device.*cpu or auto.*doctor"):
        find_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [find_device(d) for d in ("auto", "cuda", "cuda:1")] == ["cuda", "cuda", "cuda:1"]
    for wrong in ("cuda:2", "cuda:", "cuda:-1", "cuda:one"):
        with pytest.raises(ConfigError, match="devices 0 to 1 only"):
            find_device(wrong)


@pytest.mark.usefixtures("either_way")
async def test_timings_add_up() -> None:
    async with new_engine() as engine:
        session = await engine.open_session(max_reply_s=SHORT_S)
        session.push_audio(speech(1.0, 1))
        events = [event async for event in session.commit_turn()]
    done = events[-1]
    assert isinstance(done, TurnDone)
    timings = done.timings
    parts = timings.thinker_ms + timings.backbone_ms + timings.depth_ms + timings.codec_ms
    assert 0 < parts < timings.total_ms
    assert 0 < timings.first_audio_ms <= timings.total_ms
    sizes = [len(e.pcm) // 3840 for e in events if isinstance(e, AudioChunk)]
    assert sizes[0] == 1 and sum(sizes) == done.frames


@pytest.mark.usefixtures("either_way")
async def test_every_step_can_be_observed() -> None:
    seen: list[StepTimes] = []
    async with new_engine() as engine:
        worker_of(engine).frames.observe = seen.append
        session = await engine.open_session(max_reply_s=SHORT_S)
        reply = await read(session.say("Good morning."))
    assert len(seen) >= reply.done.frames
    assert all(times.rows == 1 and times.ms > 0 for times in seen)
    assert seen[0].gap_ms is None
    assert all(times.gap_ms is not None and times.gap_ms >= 0 for times in seen[1:])


async def test_caches_that_do_not_fit_are_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("chroma_plugin.engine.runner.KVCache.empty", full)
    engine = new_engine(max_replies=2)
    with pytest.raises(ConfigError, match=r"2 replies and 8 conversations take 0.0 GB.*Lower"):
        await engine.start()
    await engine.close()
