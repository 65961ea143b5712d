"""What is measured of a reply: metrics, spans, and how errors are told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

pytest.importorskip("pipecat")
pytest.importorskip("opentelemetry.sdk")

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pipecat.frames.frames import LLMRunFrame, TTSSpeakFrame
from pipecat.metrics.metrics import TTFBMetricsData
from pipecat.observers.user_bot_latency_observer import UserBotLatencyObserver
from pipecat.utils.errors import ErrorCategory

from chroma_plugin.audio import INPUT_RATE_HZ
from chroma_plugin.conversation import ReplyRequest
from chroma_plugin.errors import (
    AudioError,
    ChromaError,
    EngineBusy,
    EngineClosed,
    EngineFailed,
    SessionClosed,
)
from chroma_plugin.reply import Sink
from tests.fakes import FakeEngine
from tests.pipecat.pipeline import conversation
from tests.pipecat.recordings import capital, tone


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    await engine.start()
    yield engine


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name]


async def test_a_reply_is_a_span(engine: FakeEngine, spans: InMemorySpanExporter) -> None:
    async with conversation(engine, vad=False, metrics=True, tracing=True) as call:
        await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
        await call.replies(1)
    [span] = named(spans, "llm")
    told = dict(span.attributes or {})
    assert told["output"] == "one two three four"
    assert told["gen_ai.request.model"] == "chroma"
    assert told["gen_ai.usage.output_tokens"] == 24 + 4
    assert told["gen_ai.request.temperature"] == 1.0
    assert span.parent is not None  # the turn's


async def test_a_reply_that_is_cut_ends_its_span(
    engine: FakeEngine, spans: InMemorySpanExporter
) -> None:
    engine.frames, engine.frame_s = 1000, 0.002
    async with conversation(engine, vad=False, metrics=True, tracing=True) as call:
        call.speaker.play_to(0.4)
        await call.send(LLMRunFrame())
        await call.until(lambda: call.speaker.played_s >= 0.4 - 1e-6, "0.4 s played")
        engine.frames, engine.frame_s = 24, 0.0
        await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
        call.speaker.play_to(float("inf"))
        await call.until(lambda: len(call.requests()) == 2, "the answer")
        await call.until(lambda: "one two three four" in call.turns, "the reply")
    assert len(named(spans, "llm")) == 2  # and the first one's wrapper is not left behind


async def test_words_to_say_are_no_span_of_a_language_model(
    engine: FakeEngine, spans: InMemorySpanExporter
) -> None:
    async with conversation(engine, vad=False, tracing=True) as call:
        await call.send(TTSSpeakFrame("Hello."))
        await call.replies(1)
    assert named(spans, "llm") == []


async def test_no_wait_is_reported_as_nothing() -> None:
    """An interrupted wait is no measurement; only the one that ended is."""
    engine = FakeEngine(frame_s=3600)
    await engine.start()
    async with conversation(engine, vad=False, metrics=True) as call:
        await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
        await call.until(lambda: call.requests(), "a request")
        engine.frame_s = 0.0
        await call.say_by_hand(tone(0.5), INPUT_RATE_HZ)
        await call.until(lambda: "one two three four" in call.turns, "the reply")
        await call.reached()
        waits = [m.value for m in call.tap.metrics if isinstance(m, TTFBMetricsData) and m.value]
        assert len(waits) == 1


async def test_the_first_audio_counts_from_the_end_of_the_turn() -> None:
    """TTFB and the observer's latency tell of the same wait: none lies about the other."""
    engine = FakeEngine(frame_s=0.05)
    await engine.start()
    latencies: list[float] = []
    observer = UserBotLatencyObserver()

    async def measured(_: Any, seconds: float) -> None:
        latencies.append(seconds)

    observer.add_event_handler("on_latency_measured", measured)
    async with conversation(engine, observers=[observer], metrics=True) as call:
        await call.say(capital())
        await call.until(lambda: latencies, "a latency")
        [ttfb] = [m.value for m in call.tap.metrics if isinstance(m, TTFBMetricsData) and m.value]
        assert 0.05 <= ttfb <= latencies[0]


@pytest.mark.parametrize(
    ("error", "category", "usable"),
    [
        (EngineBusy("Full."), ErrorCategory.RATE_LIMIT, True),
        (AudioError("Odd."), ErrorCategory.UNKNOWN, True),
        (EngineFailed("Dead."), ErrorCategory.UNKNOWN, False),
        (EngineClosed("Shut."), ErrorCategory.UNKNOWN, False),
        (SessionClosed("Gone."), ErrorCategory.UNKNOWN, False),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_errors_say_whether_they_pass(
    engine: FakeEngine, error: ChromaError, category: ErrorCategory, usable: bool
) -> None:
    def fail(request: ReplyRequest, sink: Sink) -> None:
        sink(error)

    async with conversation(engine, vad=False) as call:
        call.conversation.start_reply = fail  # type: ignore[method-assign]
        await call.send(LLMRunFrame())
        await call.until(lambda: call.errors, "an error")
        [told] = call.errors
        assert (told.exception, told.category, told.error) == (error, category, str(error))
        assert call.chroma.is_usable is usable
