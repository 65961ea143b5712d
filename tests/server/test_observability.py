"""docs/observability.md and the dashboard, held to what a server really exports."""

from __future__ import annotations

import asyncio
import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from starlette.websockets import WebSocket, WebSocketState
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from chroma_plugin.errors import EngineBusy
from chroma_plugin.server import events
from chroma_plugin.server.app import create_app
from chroma_plugin.server.connection import Connection, Ending
from chroma_plugin.server.metrics import Metrics
from chroma_plugin.server.pool import Pool
from chroma_plugin.server.settings import ApiKey, ServerConfig
from chroma_plugin.server.surroundings import Surroundings
from chroma_plugin.server.voicing import Voicing
from tests.fakes import FakeEngine
from tests.server.client import WAIT_S, Loudness, connected
from tests.server.scripted import Page, ScriptedEngine
from tests.server.serving import http, listening, serving
from tests.server.test_app import send, until

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
BOARD = json.loads((ROOT / "docs" / "grafana" / "chroma.json").read_text(encoding="utf-8"))
KEY = "k" * 32

Samples = dict[str, dict[str, set[str]]]


@pytest.fixture
async def exported(monkeypatch: pytest.MonkeyPatch) -> tuple[Page, Samples]:
    """A page on which every metric has been used; and its samples, with their labels' values."""
    engine = ScriptedEngine(monkeypatch)
    pool = Pool(engine, 4)
    await pool.start()
    metrics = Metrics(pool.as_dict, lambda: 1.0)
    for reason in ("full", "failed"):
        metrics.rejected.labels(reason).inc()
    metrics.requests.labels("/v1/models", "GET", "200").observe(0.1)
    metrics.session_s.labels("client").observe(1.0)
    async with connected(engine, observe=metrics.observe) as client:
        for number in (1, 2):
            await client.send("response.create")
            engine.speak(1)
            await client.until("response.output_audio.delta", number)
            if number == 1:
                engine.end(1)
            else:
                await client.send("response.cancel")
            await client.until("response.done", number)
    page = Page(metrics.page())
    samples: Samples = {}
    for sample in page.samples:
        labels = samples.setdefault(sample.name, {})
        for name, value in sample.labels.items():
            labels.setdefault(name, set()).add(value)
    return page, samples


def queries() -> list[str]:
    """Every query of the dashboard, and those of the document."""
    of_panels = [t["expr"] for panel in BOARD["panels"] for t in panel.get("targets", [])]
    alerts = DOCS.split("Worth waking somebody:")[1].split("\n## ")[0]
    return of_panels + re.findall(r"^\| [^|]+ \| `(.+)` \|$", alerts, re.MULTILINE)


def check(query: str, samples: Samples) -> None:
    """Holds a query to what is exported: its metrics, their labels and the values it names."""
    metrics = set(re.findall(r"\b((?:chroma|process)_\w+)", query))
    assert metrics, query
    assert metrics <= set(samples), f"{query}: {metrics - set(samples)} are not exported"
    for metric, selector in re.findall(r"(\w+)\{([^}]*)\}", query):
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', selector):
            if label != "instance":  # Prometheus' own
                assert value in samples[metric].get(label, ()), f"{metric}: {label}={value}"
    for group in re.findall(r"by \(([^)]*)\)", query):
        for label in group.split(", "):
            assert all(label in samples[metric] for metric in metrics), f"{query}: {label}"
    for metric in re.findall(r"(?:rate|increase)\((\w+)", query):
        assert metric.endswith(("_total", "_bucket", "_sum", "_count")), f"{metric} is no counter"


async def test_every_query_asks_for_what_there_is(exported: tuple[Page, Samples]) -> None:
    assert len(queries()) > 40
    for query in queries():
        check(query, exported[1])


@pytest.mark.parametrize(
    "wrong",
    [
        "sum(chroma_no_such)",
        'sum(rate(chroma_frame_step_seconds_bucket{le="0.081"}[5m]))',
        "sum by (who) (chroma_rows_free)",
        "rate(chroma_rows_free[5m])",
        "1 + 1",
    ],
)
async def test_a_wrong_query_would_be_found(wrong: str, exported: tuple[Page, Samples]) -> None:
    with pytest.raises(AssertionError):
        check(wrong, exported[1])


async def test_every_metric_is_in_the_table(exported: tuple[Page, Samples]) -> None:
    table = DOCS.split("## Metrics")[1].split("\n## ")[0]
    row = r"^\| (`chroma[^|]+) \| ([^|]+) \|([^|]*)\| .+ \| `(test_\w+)` \|$"
    rows = re.findall(row, table, re.MULTILINE)
    told: dict[str, tuple[str, set[str]]] = {}
    for names, kinds, labels, _ in rows:
        found = re.findall(r"`(\w+)`", names)
        kind_of = kinds.split(", ") * (1 if ", " in kinds else len(found))
        for name, kind in zip(found, kind_of, strict=True):
            told[name] = (kind, set(re.findall(r"`(\w+)`", labels)))
    page, _ = exported
    real = {}
    for family in page.families:
        if family.name.startswith("chroma_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            used = {label for sample in family.samples for label in sample.labels} - {"le"}
            if not name.endswith("_created"):
                real[name] = (family.type, used)
    assert told == real


def test_every_row_names_a_test() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests" / "server").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)` \|$", DOCS, re.MULTILINE)
    assert len(named) > 20
    assert not [name for name in named if f"def {name}(" not in tests]


def test_the_dashboard_can_be_loaded() -> None:
    """What Grafana asks of a board: ids, places that do not overlap, data sources that exist."""
    panels: list[dict[str, Any]] = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {v["name"] for v in BOARD["templating"]["list"]} == {"datasource", "instance"}
    assert BOARD["uid"] and BOARD["title"]
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        if panel["type"] != "row":
            assert panel["description"] and panel["targets"], panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}"
    for one, other in combinations(panels, 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, f"{one['title']} and {other['title']} overlap"


# -- sessions, over a socket -----------------------------------------------------------------


async def figures(place: str) -> tuple[Page, dict[str, Any]]:
    import httpx

    async with httpx.AsyncClient(base_url=f"http://{place}") as requests:
        page = Page((await requests.get("/metrics")).text)
        return page, (await requests.get("/v1/pool")).json()


async def test_sessions_come_and_go() -> None:
    async with serving(FakeEngine(frames=4)) as place:
        url = f"ws://{place}/v1/realtime"
        async with connect(url) as one, connect(url) as other:
            first = await until(one, "session.created")
            await until(other, "session.created")
            await send(one, "response.create")
            done = await until(one, "response.done")
            page, pool = await figures(place)
            assert page("chroma_active_sessions") == page("chroma_slots_taken") == 2
            session, _ = pool["sessions"]
            assert session["id"] == first["session"]["id"]
            assert (session["state"], session["replies"]) == ("waiting", 1)
            assert session["first_audio_ms"] == done["chroma"]["latency_ms"]["ask_to_first_audio"]
        while (found := await figures(place))[1]["used"]:
            pass
        page, pool = found
        assert pool["sessions"] == []
        assert page("chroma_active_sessions") == 0
        assert page("chroma_session_seconds_count", ended_by="client") == 2


async def test_who_ends_a_session_is_told() -> None:
    for limit, code in (("idle_s", "session_idle"), ("max_session_s", "session_expired")):
        config = ServerConfig(**{limit: 0.05})  # type: ignore[arg-type]
        async with serving(config=config) as place:
            async with connect(f"ws://{place}/v1/realtime") as socket:
                await socket.wait_closed()
            while (found := await figures(place))[1]["used"]:
                pass
            assert found[0]("chroma_session_seconds_count", ended_by=code) == 1


@pytest.mark.parametrize("speaks", [False, True])
async def test_a_server_that_stops_says_that_it_ended_its_sessions(
    speaks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "chroma_plugin.server.watch")
    async with serving(FakeEngine(frames=100_000, frame_s=0.001)) as place:
        url = f"ws://{place}/v1/realtime"
        async with connect(url) as gone:
            await until(gone, "session.created")
        socket = await connect(url)
        await until(socket, "session.created")
        if speaks:
            await send(socket, "response.create")
            await until(socket, "response.output_audio.delta")
    await socket.close()

    def ended() -> list[str]:
        told = (r for r in caplog.records if r.message == "session ended")
        return sorted(r.fields["by"] for r in told)  # type: ignore[attr-defined]

    async with asyncio.timeout(WAIT_S):
        while len(ended()) < 2:
            await asyncio.sleep(0)
    assert ended() == ["client", "server_shutdown"]


async def test_a_connection_that_the_server_cannot_wait_for_was_ended_by_it() -> None:
    waits = asyncio.Event()

    async def receive() -> dict[str, str]:
        if socket.client_state is WebSocketState.CONNECTING:
            return {"type": "websocket.connect"}
        waits.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        pass

    socket = WebSocket({"type": "websocket", "headers": []}, receive, send)
    engine = FakeEngine()
    await engine.start()
    await socket.accept()
    connection = Connection(
        socket, ServerConfig(), Surroundings(engine, "chroma", Voicing(), Loudness)
    )
    task = asyncio.create_task(connection.run())
    await waits.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert connection.ended_by == "server_shutdown"


def test_who_does_not_read_is_called_a_slow_reader() -> None:
    assert Ending(1008, None).why == "slow_reader"
    assert Ending(1001, events.error("session_idle", "Reconnect.")).why == "session_idle"


async def test_spoken_texts_are_replies_as_well() -> None:
    engine = FakeEngine(frames=4)
    async with http(engine) as requests:
        said = {"input": "Hello there", "response_format": "pcm"}
        assert len((await requests.post("/v1/audio/speech", json=said)).content) == 4 * 3840
        page = Page((await requests.get("/metrics")).text)
        assert page("chroma_responses_total", status="completed") == 1
        assert page("chroma_time_to_first_audio_seconds_count") == 1
        assert page("chroma_spoken_seconds_total") == pytest.approx(0.32)
        assert page("chroma_speech_end_to_first_audio_seconds_count") == 0

        async def busy(**settings: Any) -> Any:
            raise EngineBusy("no room")

        engine.open_session = busy  # type: ignore[method-assign]
        assert (await requests.post("/v1/audio/speech", json=said)).status_code == 503
        page = Page((await requests.get("/metrics")).text)
        assert page("chroma_responses_total", status="failed") == 1
        assert page("chroma_responses_total", status="completed") == 1


async def test_who_is_refused_is_counted() -> None:
    config = ServerConfig(max_sessions=1, api_keys=(ApiKey(KEY),))
    headers = {"authorization": f"Bearer {KEY}"}
    engine = FakeEngine()
    app = create_app(engine, config)
    async with listening(app, config) as place:
        url = f"ws://{place}/v1/realtime"
        async with connect(url, additional_headers=headers) as socket:
            await until(socket, "session.created")
            async with connect(url, additional_headers=headers) as second:
                await until(second, "error")
            with pytest.raises(InvalidStatus):
                await connect(url)

        async def busy(**settings: Any) -> Any:
            raise EngineBusy("no room")

        engine.open_session = busy  # type: ignore[method-assign]
        async with connect(url, additional_headers=headers) as third:
            while (await until(third, "error"))["error"]["message"] != "no room":
                pass
            await third.wait_closed()
        import httpx

        async with httpx.AsyncClient(base_url=f"http://{place}", headers=headers) as requests:
            page = Page((await requests.get("/metrics")).text)
    for reason in ("full", "invalid_api_key", "engine"):
        assert page("chroma_session_rejected_total", reason=reason) == 1, reason


async def test_a_page_of_another_origin_is_counted_as_refused() -> None:
    async with serving() as place:
        with pytest.raises(InvalidStatus):
            await connect(f"ws://{place}/v1/realtime", origin="https://evil.example")  # type: ignore[arg-type]
        page, _ = await figures(place)
        assert page("chroma_session_rejected_total", reason="origin_refused") == 1


async def test_what_a_session_does_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(monkeypatch)
    async with connected(engine) as client:
        assert client.realtime.state() == "waiting"
        await client.say(0.3)
        assert client.realtime.state() == "hearing"
        await client.say(0.8, loud=False)
        assert client.realtime.state() == "speaking"
        engine.speak(1)
        engine.end(1)
        await client.until("response.done")
    async with http() as requests:
        assert (await requests.get("/v1/pool")).json()["sessions"] == []
