"""Spans of turns: what they say, whose part they are, and that there are none unasked."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
from websockets.asyncio.client import connect

from chroma_plugin.errors import EngineBusy
from chroma_plugin.server.app import create_app
from chroma_plugin.server.metrics import Metrics
from chroma_plugin.server.tracing import SPANS, Traces
from chroma_plugin.server.watch import Watch
from tests.fakes import FakeEngine
from tests.server.client import connected
from tests.server.scripted import SECRET, Clock, ScriptedEngine
from tests.server.serving import listening
from tests.server.test_app import send, until

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider, StatusCode

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}


class Collector:
    """Keeps the spans."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.traces = Traces(provider)

    def spans(self) -> dict[str, ReadableSpan]:
        spans = self._kept.get_finished_spans()
        named = {span.name: span for span in spans}
        assert len(named) == len(spans)
        return named


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None and span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


async def test_a_turn_in_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, engine, kept = Clock(monkeypatch), ScriptedEngine(monkeypatch), Collector()
    with Watch(Metrics(), kept.traces).session(PARENT) as session:
        session.id = "sess_1"
        async with connected(engine, observe=session.observe) as client:
            await client.say(0.5)
            await client.say(0.6, loud=False)
            clock.go(0.25)
            engine.speak(2)
            await client.until("response.output_audio.delta", 2)
            clock.go(0.5)
            engine.end(2)
            done = await client.until("response.done")
    spans = kept.spans()
    assert set(spans) == {"chroma.turn", *(name for name, _, _ in SPANS)}
    turn = spans["chroma.turn"]
    assert seconds(turn) == pytest.approx(1.262, abs=1e-6)
    assert seconds(spans["chroma.endpointing"]) == pytest.approx(0.512, abs=1e-6)
    assert seconds(spans["chroma.first_audio"]) == pytest.approx(0.25, abs=1e-6)
    assert seconds(spans["chroma.speaking"]) == pytest.approx(0.5, abs=1e-6)
    assert [event.name for event in turn.events] == ["first_text", "engine_audio"]
    assert turn.parent is not None
    assert f"{turn.parent.trace_id:032x}-{turn.parent.span_id:016x}" == f"{TRACE}-{SPAN}"
    for name, _, _ in SPANS:
        assert spans[name].parent == turn.context
    said = dict(turn.attributes or {})
    assert said["chroma.session.id"] == "sess_1"
    assert said["chroma.turn.id"] == client.of("input_audio_buffer.committed")[0]["item_id"]
    assert said["chroma.response.id"] == done["response"]["id"]
    assert said["chroma.response.status"] == "completed"
    assert (said["chroma.audio_ms"], said["chroma.frames"]) == (160.0, 2)
    assert said["chroma.engine.queued_ms"] == 120.0
    assert "chroma.response.cancelled_by" not in said
    assert not [span for span in spans.values() if SECRET in span.to_json()]


async def test_what_was_stopped_and_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, kept = ScriptedEngine(monkeypatch), Collector()
    with Watch(Metrics(), kept.traces).session({}) as session:
        async with connected(engine, observe=session.observe) as client:
            await client.send("response.create")
            engine.speak(1)
            await client.until("response.output_audio.delta")
            await client.send("response.cancel")
            await client.until("response.done")
            stopped = kept.spans()["chroma.turn"]
            await client.send("response.create")
            engine.tell(EngineBusy(SECRET))
            await client.until("response.done", 2)
    names = [event.name for event in stopped.events]
    assert names == ["first_text", "engine_audio", "interruption"]
    assert stopped.attributes is not None
    assert stopped.attributes["chroma.response.cancelled_by"] == "client_cancelled"
    assert "chroma.engine.queued_ms" not in stopped.attributes
    assert stopped.parent is None  # nobody said what it is a part of
    failed = kept._kept.get_finished_spans()[-1]
    assert (failed.name, failed.status.status_code) == ("chroma.turn", StatusCode.ERROR)
    assert failed.status.description == "EngineBusy"
    assert SECRET not in failed.to_json()


async def test_the_header_of_the_connection_is_the_parent() -> None:
    kept = Collector()
    app = create_app(FakeEngine(frames=2), traces=kept.traces)
    async with (
        listening(app) as place,
        connect(f"ws://{place}/v1/realtime", additional_headers=PARENT) as socket,
    ):
        await send(socket, "response.create")
        await until(socket, "response.done")
        turn = kept.spans()["chroma.turn"]
        assert turn.context is not None and f"{turn.context.trace_id:032x}" == TRACE


@pytest.mark.parametrize(
    "headers", [{"traceparent": "nonsense"}, {"traceparent": f"00-{'0' * 32}-{SPAN}-01"}]
)
def test_a_header_that_is_none_is_no_parent(headers: dict[str, str]) -> None:
    from opentelemetry.trace import get_current_span

    parent = Collector().traces.parent(headers)
    assert not get_current_span(parent).get_span_context().is_valid


async def test_who_collects_nothing_is_given_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(monkeypatch)
    with Watch(Metrics(), Traces(NoOpTracerProvider())).session({}) as session:
        async with connected(engine, observe=session.observe) as client:
            await client.send("response.create")
            engine.speak(1)
            await client.until("response.output_audio.delta")
            engine.end(1)
            await client.until("response.done")


# -- what the environment says ---------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    return monkeypatch


def test_nothing_set_up_is_no_spans(bare: pytest.MonkeyPatch) -> None:
    assert Traces.from_environment() is None


def test_without_spans_nothing_of_opentelemetry_is_imported() -> None:
    from tests.test_package import fresh

    code = (
        "import sys, chroma_plugin.server.watch\n"  # FastAPI may import it for itself
        "from chroma_plugin.server.tracing import Traces\n"
        "assert Traces.from_environment() is None\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert fresh(code).strip() == "[]"


def test_the_framework_tells_nobody_of_paths_and_queries() -> None:
    from tests.test_package import fresh

    code = """
import asyncio, httpx
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
kept = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(provider)
from chroma_plugin.server.app import create_app
from tests.fakes import FakeEngine
transport = httpx.ASGITransport(create_app(FakeEngine()))
async def ask():
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as requests:
        return (await requests.get("/v1/models/swordfish?word=swordfish")).status_code
print(asyncio.run(ask()), len(kept.get_finished_spans()))
"""
    assert fresh(code).strip() == "404 0"


def test_an_endpoint_is_enough(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    traces = Traces.from_environment("1.2.3")
    assert traces is not None
    provider: Any = traces._provider
    about = provider.resource.attributes
    assert (about["service.name"], about["service.version"]) == ("chroma-plugin", "1.2.3")
    traces.close()
    bare.setenv("OTEL_SERVICE_NAME", "voices")
    named: Any = Traces.from_environment()
    assert named._provider.resource.attributes["service.name"] == "voices"
    named.close()


@pytest.mark.parametrize("name", ["OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"])
def test_it_can_be_switched_off(bare: pytest.MonkeyPatch, name: str) -> None:
    bare.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    bare.setenv(name, "true" if name == "OTEL_SDK_DISABLED" else "none")
    assert Traces.from_environment() is None


def test_what_is_missing_is_told(
    bare: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bare.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    bare.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert Traces.from_environment() is None
    assert "chroma-plugin[otel]" in caplog.text
