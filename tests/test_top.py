"""`chroma-plugin top`: what it makes of a server's answers, and of there being none."""

from __future__ import annotations

import asyncio
import io
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner
from websockets.asyncio.client import connect

from chroma_plugin import top
from chroma_plugin.cli import app as cli
from chroma_plugin.errors import ChromaError, ConfigError
from chroma_plugin.server.settings import ApiKey, ServerConfig
from chroma_plugin.top import Figure, Look, Server, follow, picture, quantile
from tests.fakes import FakeEngine
from tests.server.scripted import Stats
from tests.server.serving import serving
from tests.server.test_app import send, until

STEP = "chroma_frame_step_seconds"
KEY = "k" * 32


def histogram(name: str, buckets: dict[float, float]) -> tuple[Figure, ...]:
    return tuple(
        Figure(f"{name}_bucket", {"le": str(bound)}, count) for bound, count in buckets.items()
    )


def look(at_s: float = 0.0, *figures: Figure, sessions: list[Any] | None = None) -> Look:
    pool = {"status": "ready", "slots": 4, "used": 1, "sessions": sessions or []}
    return Look(at_s, pool, figures)


def shown(*looks: Look) -> str:
    console = Console(record=True, width=120, force_terminal=False, file=io.StringIO())
    console.print(picture("http://there:1", looks))
    return console.export_text()


# -- figures ---------------------------------------------------------------------------------


def test_a_quantile_lies_within_its_bucket() -> None:
    now = look(0.0, *histogram(STEP, {0.02: 10, 0.04: 30, 0.08: 40, math.inf: 40}))
    assert quantile(now, None, STEP, 0.5) == pytest.approx(0.03)
    assert quantile(now, None, STEP, 0.25) == pytest.approx(0.02)
    assert quantile(now, None, STEP, 1.0) == pytest.approx(0.08)
    assert quantile(now, None, STEP, 0.1) == pytest.approx(0.008)


def test_a_quantile_beyond_all_bounds_is_the_last_one() -> None:
    now = look(0.0, *histogram(STEP, {0.02: 1, 0.08: 2, math.inf: 10}))
    assert quantile(now, None, STEP, 0.95) == 0.08


def test_a_quantile_of_what_came_between_two_looks() -> None:
    before = look(0.0, *histogram(STEP, {0.02: 100, 0.04: 100, math.inf: 100}))
    now = look(9.0, *histogram(STEP, {0.02: 100, 0.04: 104, math.inf: 104}))
    assert quantile(now, before, STEP, 0.5) == pytest.approx(0.03)
    assert quantile(now, None, STEP, 0.5) == pytest.approx(0.0104)
    assert quantile(now, now, STEP, 0.5) is None
    assert quantile(now, None, "no_such", 0.5) is None


def test_lines_of_one_name_are_added_up() -> None:
    figures = [Figure("x", {"by": by}, value) for by, value in (("a", 1.0), ("b", 2.0))]
    assert look(0.0, *figures).total("x") == 3.0
    assert look(0.0, *figures).total("x", by="b") == 2.0
    assert look(0.0, *figures).total("y") is None


# -- the picture -----------------------------------------------------------------------------


def test_what_is_not_known_is_a_dash() -> None:
    text = shown(look())
    assert "http://there:1  ready" in text
    assert "p50 -" in text
    assert "Nobody talks." in text
    assert "none refused" in text


def test_calls_are_listed_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "MAX_CALLS", 2)
    call = {"seconds": 3725.0, "state": "speaking", "replies": 3, "interruptions": 1}
    calls = [call | {"id": f"sess_{i}", "first_audio_ms": 210.4} for i in range(3)]
    text = shown(look(sessions=calls))
    assert "sess_1" in text and "sess_2" not in text
    assert "1:02:05" in text and "speaking" in text and "210 ms" in text
    assert "and 1 more" in text


def test_a_server_that_was_started_again_begins_anew() -> None:
    started = "process_start_time_seconds"
    seen = histogram(STEP, {0.02: 5, math.inf: 5})
    old = look(0.0, *histogram(STEP, {0.02: 2, math.inf: 2}), Figure(started, {}, 100.0))
    same = look(30.0, *seen, Figure(started, {}, 100.0))
    new = look(30.0, *seen, Figure(started, {}, 200.0))
    assert "times of the last 30 s" in shown(old, same)
    assert "times since then" in shown(old, new)


# -- a server --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        "there:80",
        "http://there:80/",
        "ws://there:80/v1/realtime",
        "http://there:80/v1",
    ],
)
def test_an_address_may_be_a_clients(given: str) -> None:
    assert Server(given).url == "http://there:80"


def test_an_address_that_is_none_is_named() -> None:
    for wrong in ("ftp://there", "file:///etc/passwd", "http://"):
        with pytest.raises(ConfigError, match="no address"):
            Server(wrong)


async def test_one_picture_of_a_server() -> None:
    engine = FakeEngine(frames=4)
    engine.stats = Stats()  # type: ignore[attr-defined]
    config = ServerConfig(max_sessions=5, api_keys=(ApiKey(KEY),))
    headers = {"authorization": f"Bearer {KEY}"}
    async with (
        serving(engine, config) as place,
        connect(f"ws://{place}/v1/realtime", additional_headers=headers) as socket,
    ):
        created = await until(socket, "session.created")
        await send(socket, "response.create")
        await until(socket, "response.done")
        words = ["top", f"http://{place}", "--once", "--key", f"{KEY}:talk,other"]
        done = await asyncio.to_thread(CliRunner().invoke, cli, words, env={"COLUMNS": "120"})
        assert done.exit_code == 0, done.output
        lines = {line.split("  ")[0]: " ".join(line.split()) for line in done.output.splitlines()}
        assert lines["calls"] == "calls 1 of 5 none refused"
        assert lines["rows"] == "rows 3 taken, 1 free 2 waiting 13 given up"
        assert lines["step"] == "step p50 44 ms p95 80 ms of 80 ms; 17 underruns"
        assert lines["replies"] == "replies 1 0 stopped 0 failed".replace("0 stopped", "- stopped")
        assert lines["voices"] == "voices 7 ready"
        call = lines[created["session"]["id"]]
        assert "waiting 1 0" in call and call.endswith("ms")

        wrong = await asyncio.to_thread(
            CliRunner().invoke, cli, ["top", place, "--once"], env={"CHROMA_API_KEY": "x" * 32}
        )
        assert wrong.exit_code == 1
        assert "does not let this key in (401)" in wrong.stderr


async def test_it_goes_on_when_the_server_goes() -> None:
    console = Console(width=120, file=io.StringIO(), force_terminal=True)
    naps: list[float] = []
    async with serving() as place:
        server = Server(f"http://{place}")
        looked = server.look

        def sometimes() -> Look:
            if len(naps) == 1:
                raise ChromaError("Nobody answers.")
            return looked()

        server.look = sometimes  # type: ignore[method-assign]
        await asyncio.to_thread(follow, server, console, 0.5, looks=3, sleep=naps.append)
    assert naps == [0.5, 0.5]
    assert isinstance(console.file, io.StringIO)
    first, told, again = console.file.getvalue().split("Nobody talks.")[:3]
    assert "ready" in first and "Nobody answers." not in first
    assert "Nobody answers." in told + again
    assert "Trying again." not in console.file.getvalue().split("Nobody talks.")[-1]


def test_nobody_there_is_told() -> None:
    done = CliRunner().invoke(cli, ["top", "http://127.0.0.1:9", "--once"])
    assert done.exit_code == 1
    assert "Nobody answers at http://127.0.0.1:9" in done.stderr
    assert "chroma-plugin serve" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "answers",
    [
        {"/v1/pool": "[]", "/metrics": ""},
        {"/v1/pool": "<html>", "/metrics": ""},
        {"/v1/pool": json.dumps({"slots": 1}), "/metrics": "not { a metric"},
    ],
)
def test_another_kind_of_server_is_told(answers: dict[str, str]) -> None:
    server = Server("http://there")
    get: Callable[[str], bytes] = lambda path: answers[path].encode()  # noqa: E731
    server._get = get  # type: ignore[method-assign]
    with pytest.raises(ChromaError, match="no chroma-plugin server"):
        server.look()
