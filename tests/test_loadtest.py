"""Callers of a server: what they count, what they find, and the commands around them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from chroma_plugin import cli
from chroma_plugin.audio import Samples
from chroma_plugin.bench.caller import Answer, Caller, CallFailed, alike
from chroma_plugin.bench.remote import other_process
from chroma_plugin.bench.remote_load import RemoteLoad, RemotePlan, RemoteTally
from chroma_plugin.bench.report import resident_mb
from chroma_plugin.conversation import ReplyRequest
from chroma_plugin.errors import AudioError, ConfigError, EngineBusy
from chroma_plugin.loadtest import between, packaged_question, read_question
from chroma_plugin.reply import Sink
from chroma_plugin.server.settings import ApiKey, ServerConfig
from chroma_plugin.session import Session
from tests.client.test_remote_real import started
from tests.fakes import FakeConversation, FakeEngine
from tests.server.serving import serving

SHORT = RemotePlan(
    users=3,
    seconds=3600.0,
    calls=2,
    turns_per_call=(1, 1),
    pause_s=(0.0, 0.1),
    away_s=(0.0, 0.05),
    interrupted=0.0,
    patience_s=20.0,
)


def tone(seconds: float = 0.4) -> Samples:
    """A question for a VAD that listens for what is loud."""
    time = np.arange(round(seconds * 24_000)) / 24_000
    return (0.3 * np.sin(2 * np.pi * 300 * time)).astype(np.float32)


async def called(engine: Any, plan: RemotePlan, query: str = "") -> RemoteTally:
    async with serving(engine) as place:
        load = RemoteLoad(f"ws://{place}/v1/realtime{query}", plan, [tone()])
        return await load.run()


class Talking(FakeEngine):
    """Conversations of a class of their own."""

    kind: type[FakeConversation] = FakeConversation

    async def open_session(self, **settings: Any) -> Session:
        session = await super().open_session(**settings)
        self.conversations[-1].__class__ = self.kind
        return session


# -- whole runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", ["server", "client"])
async def test_users_call_ask_and_hang_up(turns: Any) -> None:
    engine = FakeEngine(frames=3)
    tally = await called(engine, replace(SHORT, turns=turns))
    figures = tally.figures()
    assert tally.violations(SHORT) == []
    assert figures["lost"] == figures["mixed_up"] == 0
    assert figures["calls"] == len(engine.conversations) == 6
    assert figures["replies"] == figures["turns"] == 12
    assert figures["first_audio_ms"]["count"] == 6
    assert figures["markers"] == 3
    assert figures["least_alike"] == 1.0
    vad_ms = 500 if turns == "server" else 0
    assert min(tally.first_ms) >= vad_ms


async def test_users_break_in() -> None:
    plan = replace(SHORT, users=1, calls=1, interrupted=1.0, markers=False)
    engine = FakeEngine(frames=36, frame_s=0.08)
    tally = await called(engine, plan)
    assert not tally.lost
    assert tally.interruptions == len(tally.stopped_ms) == 1
    assert tally.turns == len(tally.answers) == 2
    kept = [c for c in engine.conversations[0].calls if c[0] == "keep_reply"]
    assert kept


async def test_on_a_real_engine_everyone_is_greeted_as_before() -> None:
    async with started(max_replies=2) as engine:
        plan = replace(SHORT, users=2, turns="client")
        tally = await called(engine, plan, "?max_reply_s=0.4")
    assert tally.violations(plan) == []
    assert tally.markers == 2
    assert tally.least_alike > 0.99


# -- what they find --------------------------------------------------------------------------


async def test_a_reply_for_somebody_else_is_found() -> None:
    class Swapped(FakeConversation):
        def start_reply(self, request: ReplyRequest, sink: Sink) -> None:
            super().start_reply(replace(request, say="This is somebody else."), sink)

    engine = Talking(frames=8)
    engine.kind = Swapped
    tally = await called(engine, replace(SHORT, users=1, calls=1))
    assert "mixed up: user 0 was greeted as somebody else" in tally.violations(SHORT)


async def test_ids_of_others_are_found() -> None:
    owners: dict[str, int] = {}
    one, other = (
        Caller("ws://h", claim=lambda i, user=user: owners.setdefault(i, user) == user)  # type: ignore[misc]
        for user in range(2)
    )
    created = {"type": "response.created", "response": {"id": "resp_1"}}
    added = {"type": "response.output_item.added", "response_id": "resp_1", "item": {"id": "i"}}
    for event in (created, added):
        one._take(event, 0.0)
    assert one.strangers == []
    other._take(added, 0.0)
    other._take(created, 0.0)
    assert other.strangers == ["resp_1", "resp_1"]


async def test_what_is_lost_is_told_by_its_reason() -> None:
    class Busy(FakeConversation):
        def start_reply(self, request: ReplyRequest, sink: Sink) -> None:
            sink(EngineBusy("no row"))

    engine = Talking()
    engine.kind = Busy
    tally = await called(engine, replace(SHORT, users=1, calls=1))
    assert list(tally.lost) == ["reply failed: server_overloaded"]
    engine = Talking()
    engine.kind = type("Mute", (FakeConversation,), {"start_reply": lambda *args: None})
    tally = await called(engine, replace(SHORT, users=1, calls=1, patience_s=0.1))
    assert tally.lost == {"never came: a reply": 1}
    load = RemoteLoad("ws://127.0.0.1:9/v1/realtime", replace(SHORT, users=1, calls=1), [])
    assert list((await load.run()).lost) == ["not connected: ConnectionRefusedError"]
    assert "nobody was answered" in load.tally.violations(SHORT)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("x" * 32, "the server turned the key away (401)"),
        (None, "the server wants a key, and none was given (401)"),
    ],
)
async def test_a_key_that_is_turned_away_is_told_and_not_tried_again(
    key: str | None, why: str
) -> None:
    async with serving(FakeEngine(), ServerConfig(api_keys=(ApiKey("k" * 32),))) as place:
        plan = replace(SHORT, users=2, calls=None)  # for an hour, were it not for the key
        load = RemoteLoad(f"ws://{place}/v1/realtime", plan, [tone()], key=key)
        tally = await load.run()
        nowhere = RemoteLoad(f"ws://{place}/v1/nowhere", replace(SHORT, users=1, calls=1), [tone()])
        assert list((await nowhere.run()).lost) == ["not connected: the server answers 403"]
    ((told, count),) = tally.lost.items()
    assert told.startswith(why) and "CHROMA_API_KEY" in told
    assert (count, tally.calls) == (2, 2)


async def test_errors_and_hanging_up_break_a_call() -> None:
    caller = Caller("ws://h")
    caller._take({"type": "error", "error": {"code": "response_cancel_not_active"}}, 0.0)
    assert not caller.broken
    caller._take({"type": "error", "error": {"code": "invalid_value"}}, 0.0)
    with pytest.raises(CallFailed, match="error: invalid_value"):
        await caller.until(lambda: False, 1.0, "anything")


# -- arithmetic ------------------------------------------------------------------------------


def test_likeness() -> None:
    dice = np.random.default_rng(0)
    one, other = (dice.standard_normal(4800).astype(np.float32) for _ in range(2))
    assert alike(one, one) == pytest.approx(1.0)
    assert alike(one, 0.5 * one[:4600] + 0.01) > 0.9
    assert abs(alike(one, other)) < 0.1
    assert alike(one, one[:4000]) == alike(one, one[:0]) == alike(0 * one, one) == 0.0


def test_bars() -> None:
    tally = RemoteTally()
    for i in range(20):
        answer = Answer(f"r{i}", asked_s=0.0, committed_s=0.5)
        answer.playback.feed(np.zeros(24_000, np.float32), 1.0 + 0.1 * i)
        if i < 2:
            answer.playback.feed(np.zeros(24_000, np.float32), 3.0 + 0.1 * i)
        tally.answers.append(answer)
    tally.memory_mb = [(float(i), 100.0 + i) for i in range(40)]
    assert tally.growth_mb == 20.0
    assert tally.violations(RemotePlan()) == []
    strict = RemotePlan(max_first_ms=2_000, max_underruns=0.05, max_growth_mb=10)
    found = tally.violations(strict)
    assert [v.split()[0] for v in found] == ["first", "10.0%", "the"]
    kind = RemotePlan(max_first_ms=5_000, max_underruns=0.1, max_growth_mb=20)
    assert tally.violations(kind) == []
    figures = tally.figures()
    assert figures["first_audio_after_commit_ms"]["p50"] == pytest.approx(1450.0)
    assert (figures["underruns"], figures["underrun_longest_ms"]) == (2, 1000.0)


def test_pauses_are_two_numbers() -> None:
    assert between("0.5-3", "--pause") == (0.5, 3.0)
    assert between("2", "--pause") == (2.0, 2.0)
    for wrong in ("", "3-1", "a-b", "-1", "1-2-3", "nan", "1-inf"):
        with pytest.raises(ConfigError, match="--pause"):
            between(wrong, "--pause")


def test_questions_are_speech(tmp_path: Path) -> None:
    assert 1.5 < len(packaged_question()) / 24_000 < 3.0
    with pytest.raises(AudioError, match="no such file"):
        read_question(tmp_path / "none.wav")


def test_memory_of_another_process() -> None:
    assert resident_mb(2**22 + 1) == 0.0


# -- the commands ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def instant() -> Iterator[str]:
    with other_process() as url:
        yield url


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def test_the_command_calls_a_server(instant: str, tmp_path: Path) -> None:
    short = ("--users", 2, "--seconds", 0.5, "--pause", 0, "--away", 0, "--turns", "client")
    picture = tmp_path / "run.png"
    words = ("loadtest", instant, *short, "--no-markers", "--interrupted", 0, "--plot", picture)
    done = run(*words, "--turns-per-call", 1, "--json")
    assert done.exit_code == 0, done.output
    line = json.loads(done.stdout)
    assert line["bench"] == "loadtest"
    assert line["server"].startswith(instant)
    assert line["settings"]["users"] == 2
    assert line["figures"]["replies"] == line["figures"]["turns"] >= 2
    assert line["violations"] == []
    assert picture.read_bytes().startswith(b"\x89PNG")
    done = run("loadtest", instant, *short, "--seconds", 0.1)  # it greets nobody by his name
    assert done.exit_code == 1
    assert "greeted as somebody else" in done.output


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    assert run("loadtest", "nowhere").exit_code == 2
    assert run("loadtest", "--pause", "3-1").exit_code == 2
    assert run("loadtest", "--question", tmp_path / "none.wav").exit_code == 1
    assert run("loadtest", "--plot", tmp_path).exit_code == 1


def test_what_a_wire_adds_is_measured() -> None:
    done = run("bench", "remote", "--turns", 5, "--max-added-ms", 1e9, "--json")
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)["figures"]
    assert figures["added_ms"]["count"] == figures["here_ms"]["count"] == 5
    assert figures["there_ms"]["p50"] > figures["added_ms"]["p50"]
    done = run("bench", "remote", "--turns", 1, "--max-added-ms", 0)
    assert done.exit_code == 1
    assert "the wire adds" in done.output
