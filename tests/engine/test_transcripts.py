"""User turns written down: equal to the plain way, beside others who do not notice, and never
waited for by anybody who speaks."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

import chroma_plugin.training.ear as plain
from chroma_plugin.config import EngineConfig
from chroma_plugin.engine.call import Call
from chroma_plugin.engine.runner import ReadyVoice, Runner
from chroma_plugin.engine.scheduler import SPARE_S, Move, Scheduler
from chroma_plugin.engine.transcripts import (
    FEWEST_TOKENS,
    POSITIONS_PER_TOKEN,
    TRANSCRIPT_PIECE,
    Transcripts,
)
from chroma_plugin.errors import (
    AudioError,
    ChromaError,
    ConfigError,
    EngineClosed,
    EngineError,
    EngineFailed,
    SessionClosed,
)
from chroma_plugin.model.listener import Listener
from chroma_plugin.model.prompt import ChatPrompt
from chroma_plugin.session import Session
from chroma_plugin.voice import Voice
from tests.contract import MAX_REPLY_S, assert_same_speech, read
from tests.engine.test_engine import (
    SEEDED,
    SHORT_S,
    as_on_a_gpu,
    call_of,
    converse,
    either_way,
    new_engine,
    on_thread,
    shared_parts,
    speech,
    worker_of,
)
from tests.engine.test_runner import MODES, Speaker, run
from tests.host_reads import NoHostReads
from tests.miniature import MINIATURE

__all__ = ["as_on_a_gpu", "either_way"]  # fixtures

PARTS = shared_parts(EngineConfig(model=MINIATURE))
WAIT_S = 60.0  # a bound for a machine that does much else


class Ids(list[list[int]]):
    """The token ids of every transcript, whoever made it: each is spelt once, at its end."""


@pytest.fixture
def ids(monkeypatch: pytest.MonkeyPatch) -> Ids:
    seen, decode = Ids(), ChatPrompt.decode

    def watched(self: ChatPrompt, tokens: Any) -> str:
        seen.append(list(tokens))
        return decode(self, tokens)

    monkeypatch.setattr(ChatPrompt, "decode", watched)
    return seen


@pytest.fixture(scope="module", params=MODES.values(), ids=MODES.keys())
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    config = EngineConfig(
        max_replies=2, thinker_rows=3, thinker_positions=512, backbone_positions=512
    )
    runner = Runner(PARTS.model, PARTS.prompt, config, request.param)
    runner.capture()
    runner.thinker_cache.k.normal_(), runner.thinker_cache.v.normal_()  # somebody was here
    yield runner
    assert not runner.graphs.uncaptured, "a step was run in a shape that was not captured"


def heard(runner: Runner, *seconds: float) -> Call:
    """A conversation of so many user turns, numbered from 1."""
    call = Call(PARTS.prompt, PARTS.model.embed_tokens, lambda: Listener(PARTS.mel, runner.tower))
    call.set_system("You are brief.")
    for turn, length in enumerate(seconds, 1):
        call.hear(speech(length, turn))
        call.commit(turn)
    return call


def most_tokens(call: Call, turn: int = 1) -> int:
    entry = call.dialogue.heard(turn)
    assert entry is not None and entry.audio is not None
    return FEWEST_TOKENS + len(entry.audio) // POSITIONS_PER_TOKEN


@torch.inference_mode()
def written(transcripts: Transcripts, call: Call, turn: int = 1) -> Any:
    """What comes of it."""
    out: list[str | ChromaError] = []
    transcripts.ask(call, turn, out.append)
    while transcripts:
        assert not out
        transcripts.step()
    (it,) = out
    return it


def plainly(seconds: float, turn: int, most: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same turn in the plain way, with the same bound."""
    monkeypatch.setattr(plain, "MAX_TOKENS", most)
    ear = plain.Ear(PARTS.model, PARTS.prompt, PARTS.mel)  # type: ignore[arg-type]
    return ear.write_down(speech(seconds, turn))


# -- beside the plain way --------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.1, 1.0, 4.7])
def test_a_transcript_equals_the_plain_one_token_by_token(
    runner: Runner, seconds: float, ids: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = heard(runner, seconds)
    text = written(Transcripts(runner), call)
    assert text == plainly(seconds, 1, most_tokens(call), monkeypatch)
    assert len(ids) == 2 and ids[0] == ids[1]
    assert len(ids[0]) == most_tokens(call)  # random weights never end


def test_a_transcript_ends_where_the_model_ends_it(
    runner: Runner, ids: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = heard(runner, 1.0)
    written(Transcripts(runner), call)
    first = {token: ids[0].index(token) for token in ids[0]}
    end, at = max(first.items(), key=lambda item: item[1])
    assert at > 0
    monkeypatch.setattr(PARTS.model, "config", dataclasses.replace(PARTS.model.config, im_end=end))
    text = written(Transcripts(runner), call)
    assert text == plainly(1.0, 1, 1000, monkeypatch)
    assert ids[1] == ids[2] == ids[0][:at]


def test_one_after_another_and_none_remembers_the_one_before(runner: Runner, ids: Ids) -> None:
    """Each is as if it were alone; who asked first is served first."""
    call, alone, transcripts = heard(runner, 4.0, 0.5, 2.0), [], Transcripts(runner)
    for turn in (3, 1, 2):
        alone.append(written(Transcripts(runner), call, turn))
    out: list[Any] = []
    for turn in (3, 1, 2):
        transcripts.ask(call, turn, out.append)
    assert len(transcripts) == 3
    with torch.inference_mode():
        while transcripts:
            transcripts.step()
    assert out == alone
    assert ids[:3] == ids[3:] and len({tuple(i) for i in ids}) == 3
    assert transcripts.made == 3


@pytest.mark.parametrize("seed", [1, 2])
def test_the_rows_that_speak_do_not_notice(
    runner: Runner, seed: int, ids: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece between any two frames: the same codes, tokens and samples, to the bit."""
    voice: ReadyVoice = runner.prepare_voice(Voice.default())
    call, frames, made = heard(runner, 1.5), 40, []
    alone = written(Transcripts(runner), call)
    for writing in (False, True):
        speakers = [Speaker(runner, voice, row, seed + row) for row in (0, 1)]
        transcripts, out = Transcripts(runner), list[Any]()
        for frame in range(frames):
            run(runner, speakers, 1, batch=2, first=frame)
            if writing:
                if not transcripts:
                    transcripts.ask(call, 1, out.append)
                with torch.inference_mode():
                    transcripts.step()
        assert (transcripts.made > 0) == writing and set(out) == ({alone} if writing else set())
        made.append(speakers)
        for row in (0, 1):
            runner.stop(row)
    for one, other in zip(*made, strict=True):
        assert torch.equal(torch.stack(one.codes), torch.stack(other.codes))
        assert one.tokens == other.tokens
        assert torch.equal(torch.cat(one.audio), torch.cat(other.audio))


def test_no_piece_waits_for_the_device(runner: Runner) -> None:
    """Only a token that was sent for in the piece before is waited for."""
    transcripts, call = Transcripts(runner), heard(runner, 4.0)
    transcripts.ask(call, 1, lambda it: None)
    dialogue = transcripts._line[0].log
    pieces = -(-dialogue.positions // TRANSCRIPT_PIECE)
    assert pieces > 2
    with torch.inference_mode():
        with NoHostReads():
            for _ in range(pieces):
                assert transcripts._line[0].newest is None
                transcripts.step()
        assert dialogue.cached == dialogue.positions and transcripts._line[0].newest is not None
        with pytest.raises(AssertionError, match="reads back"), NoHostReads():
            transcripts._ended(transcripts._line[0])


def test_it_changes_nothing_in_the_conversation(runner: Runner) -> None:
    call = heard(runner, 1.0, 1.0)
    call.dialogue.cached = 7
    before = [dataclasses.replace(entry) for entry in call.dialogue.entries]
    rows = runner.thinker_cache.k[:, :-1].clone()
    written(Transcripts(runner), call)
    assert call.dialogue.cached == 7
    assert [(e.kind, e.turn, e.before, e.tokens, e.after) for e in call.dialogue.entries] == [
        (e.kind, e.turn, e.before, e.tokens, e.after) for e in before
    ]
    assert torch.equal(runner.thinker_cache.k[:, :-1], rows)
    assert runner.thinker_cache.rows == runner.config.thinker_cache_rows + 1


# -- refused and withdrawn -------------------------------------------------------------------


@pytest.fixture
def plain_runner() -> Runner:
    config = EngineConfig(max_replies=1, thinker_rows=1, thinker_positions=192)
    return Runner(PARTS.model, PARTS.prompt, config)


def test_what_cannot_be_written_down_is_refused_at_once(plain_runner: Runner) -> None:
    transcripts, call = Transcripts(plain_runner), heard(plain_runner, 0.5, 8.0)
    call.add_text("user", "Hello")
    call.hear(speech(1.0, 9))
    for turn in (0, 3, -1):  # typed, still being spoken, never there
        assert "is forgotten" in str(error := written(transcripts, call, turn))
        assert isinstance(error, AudioError)
    error = written(transcripts, call, 2)
    assert isinstance(error, ConfigError)
    assert "of the thinker's 192 positions" in str(error)
    assert isinstance(written(transcripts, call, 1), str)


def test_the_text_is_bounded_by_what_is_left_of_the_row(plain_runner: Runner, ids: Ids) -> None:
    """It is cut before it would write beyond the row."""
    call = heard(plain_runner, 4.0)
    entry = call.dialogue.heard(1)
    assert entry is not None
    prompt = PARTS.prompt
    fixed = len(prompt.system(plain_runner.config.transcript_instructions)) + len(prompt.reply_open)
    room = 192 - fixed - entry.positions
    assert FEWEST_TOKENS <= room < most_tokens(call)
    assert isinstance(written(Transcripts(plain_runner), call), str)
    assert len(ids[0]) == room


def test_withdrawn_ones_leave_the_line(plain_runner: Runner) -> None:
    transcripts, out = Transcripts(plain_runner), list[Any]()
    one, other = heard(plain_runner, 0.5, 0.5), heard(plain_runner, 0.5)
    with torch.inference_mode():
        for call, turn in ((one, 1), (one, 2), (other, 1)):
            transcripts.ask(call, turn, lambda it, who=(call, turn): out.append(who))
        for _ in range(4):  # in work
            transcripts.step()
        transcripts.cancel(one, 1)
        transcripts.cancel(one, 7)
        assert len(transcripts) == 2
        transcripts.cancel(one)
        while transcripts:
            transcripts.step()
    assert out == [(other, 1)] and transcripts.made == 1


def test_one_that_fails_fails_alone(plain_runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    transcripts, call = Transcripts(plain_runner), heard(plain_runner, 0.5, 0.5)
    with monkeypatch.context() as patch:

        def broken(*_: object) -> None:
            raise RuntimeError("out of memory")

        patch.setattr(plain_runner, "prefill", broken)
        error = written(transcripts, call)
    assert isinstance(error, EngineError) and "Turn 1" in str(error)
    assert "RuntimeError: out of memory" in str(error)
    assert isinstance(written(transcripts, call, 2), str)
    assert transcripts.made == 1


# -- through an engine -----------------------------------------------------------------------


async def asked(session: Session, seconds: float, seed: int) -> int:
    session.push_audio(speech(seconds, seed))
    return session.commit_audio().number


async def text_of(session: Session, turn: int) -> str:
    async with asyncio.timeout(WAIT_S):
        return await session.transcribe(turn)


@pytest.mark.usefixtures("either_way")
async def test_a_turn_is_written_down_alone_and_beside_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with new_engine(max_replies=2) as engine:
        session = await engine.open_session()
        turn = await asked(session, 2.5, 1)
        alone = await text_of(session, turn)
        spoken = [await converse(engine, seed) for seed in (1, 2)]
        again = await engine.open_session()
        turn = await asked(again, 2.5, 1)
        busy = [asyncio.create_task(converse(engine, seed)) for seed in (1, 2)]
        beside = await text_of(again, turn)
        together = await asyncio.gather(*busy)
        most = await on_thread(worker_of(engine), lambda: most_tokens(call_of(again)))
    assert alone == beside == plainly(2.5, 1, most, monkeypatch)  # type: ignore[arg-type]
    for replies, others in zip(spoken, together, strict=True):
        assert replies[0].text == others[0].text
        assert_same_speech(replies[0], others[0])


@pytest.mark.usefixtures("either_way")
async def test_whoever_speaks_is_well_ahead_whenever_a_piece_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moves: list[tuple[Move, bool]] = []
    next_move = Scheduler.next_move

    def watched(self: Scheduler, now_s: float, **line: bool) -> Move:
        move = next_move(self, now_s, **line)
        if move is Move.WRITE:
            assert not line["unread"]
            assert all(s.in_hand_s(now_s) >= SPARE_S for s in self.speaking.values())
            assert not (self.acting and self.waiting)
        moves.append((move, bool(self.acting)))
        return move

    monkeypatch.setattr(Scheduler, "next_move", watched)
    async with new_engine(max_replies=2) as engine:
        session = await engine.open_session()
        turns = [await asked(session, 1.0 + i, i) for i in range(3)]
        busy = [asyncio.create_task(converse(engine, seed, turns=2)) for seed in (1, 2, 3)]
        for turn in turns:
            await text_of(session, turn)
        await asyncio.gather(*busy)
    assert sum(move is Move.WRITE for move, _ in moves) > 30
    for pair in pairwise(moves):  # whoever makes frames has made one between two pieces
        assert pair != ((Move.WRITE, True), (Move.WRITE, True))


async def test_a_reply_after_a_transcript_is_the_reply_without_one() -> None:
    """The model remembers the sound, not the text."""
    replies = []
    async with new_engine() as engine:
        for transcribe in (False, True):
            session = await engine.open_session(sampling=SEEDED, max_reply_s=SHORT_S)
            turn = await asked(session, 1.5, 1)
            if transcribe:
                await text_of(session, turn)
            session.push_audio(speech(1.0, 2))
            replies.append(await read(session.commit_turn()))
            assert [m.text is not None for m in session.history][:2] == [transcribe, False]
            await session.aclose()
    assert replies[0].text == replies[1].text
    assert_same_speech(*replies)


@pytest.fixture
def no_spare_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No transcript goes on."""
    monkeypatch.setattr(Scheduler, "_has_spare_time", lambda self, now_s: False)


@pytest.mark.usefixtures("no_spare_time")
async def test_what_is_given_up_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async with new_engine() as engine:
        session = await engine.open_session(max_reply_s=SHORT_S)
        turns = [await asked(session, 0.5, i) for i in range(2)]
        waiting = [asyncio.create_task(session.transcribe(turn)) for turn in turns]
        await asyncio.sleep(0)
        await on_thread(worker_of(engine), lambda: None)
        assert (engine.stats.transcripts, engine.stats.transcripts_waiting) == (0, 2)
        waiting[0].cancel()
        await asyncio.sleep(0)
        await on_thread(worker_of(engine), lambda: None)
        assert engine.stats.transcripts_waiting == 1
        monkeypatch.undo()
        await on_thread(worker_of(engine), lambda: None)  # it rests until it is asked
        assert isinstance(await asyncio.wait_for(waiting[1], WAIT_S), str)
        stats = engine.stats
        assert (stats.transcripts, stats.transcripts_waiting) == (1, 0)
        assert (stats.thinker_rows, stats.thinker_rows_taken) == (16, 1)
        assert waiting[0].cancelled()


@pytest.mark.usefixtures("no_spare_time")
async def test_a_closed_session_leaves_nothing_in_line() -> None:
    async with new_engine() as engine:
        session = await engine.open_session()
        waiting = asyncio.create_task(session.transcribe(await asked(session, 0.5, 1)))
        await asyncio.sleep(0)
        await session.aclose()
        with pytest.raises(SessionClosed):
            await waiting
        await on_thread(worker_of(engine), lambda: None)
        assert engine.stats.transcripts_waiting == 0


@pytest.mark.usefixtures("no_spare_time")
async def test_a_closed_engine_leaves_nobody_waiting() -> None:
    engine = new_engine()
    await engine.start()
    session = await engine.open_session()
    turns = [await asked(session, 0.5, i) for i in range(2)]
    waiting = asyncio.create_task(session.transcribe(turns[0]))
    await asyncio.sleep(0)
    await engine.close()
    for wait in (waiting, session.transcribe(turns[1])):
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(EngineClosed):
                await wait


@pytest.mark.usefixtures("no_spare_time")
async def test_a_dead_engine_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async with new_engine() as engine:
        session = await engine.open_session(max_reply_s=60.0)
        turns = [await asked(session, 0.5, i) for i in range(2)]
        waiting = asyncio.create_task(session.transcribe(turns[0]))
        stream = session.respond()
        await read(stream, chunks=1)

        def broken(*args: object, **kwargs: object) -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(worker_of(engine).runner, "step", broken)
        for wait in (waiting, session.transcribe(turns[1])):
            async with asyncio.timeout(WAIT_S):
                with pytest.raises(EngineFailed, match="out of memory"):
                    await wait


async def test_a_turn_that_is_forgotten_says_so() -> None:
    async with new_engine(thinker_positions=256) as engine:
        session = await engine.open_session(max_reply_s=SHORT_S, instructions="Be brief.")
        streams = []
        for seed in range(4):
            session.push_audio(speech(3.0, seed))
            streams.append(session.commit_turn())
            await read(streams[-1])
        with pytest.raises(AudioError, match="turn 1 is forgotten"):
            await text_of(session, 1)
        text = await text_of(session, streams[-1].turn)
        users = [m for m in session.history if m.role == "user"]
        assert [m.text for m in users] == [None, None, None, text]


async def test_a_full_house_is_answered_before_anything_is_written_down() -> None:
    """Two replies share one row while a transcript waits; all are made."""
    limits = {"max_replies": 1, "thinker_rows": 1, "run_ahead_s": 0.5, "queue_timeout_s": 60.0}
    async with new_engine(**limits) as engine:
        sessions = [await engine.open_session(max_reply_s=MAX_REPLY_S) for _ in range(2)]
        turn = await asked(sessions[0], 1.0, 1)
        replies = [asyncio.create_task(read(s.respond())) for s in sessions]
        text = asyncio.create_task(text_of(sessions[0], turn))
        assert all(reply.done.frames for reply in await asyncio.gather(*replies))
        assert isinstance(await text, str)
