"""OpenTelemetry spans of turns, made when a reply has ended, from its timeline.

A server without a `Traces` makes none and never imports OpenTelemetry.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from chroma_plugin.server.response import Outcome
from chroma_plugin.server.timeline import Moment, Timeline, now_s

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import TracerProvider

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SPANS: tuple[tuple[str, Moment, Moment], ...] = (
    ("chroma.endpointing", "speech_end", "commit"),
    ("chroma.first_audio", "asked", "first_audio"),
    ("chroma.speaking", "first_audio", "end"),
)
"""What is under the span of a turn: a name, where it begins and where it ends."""
EVENTS: tuple[Moment, ...] = ("first_text", "engine_audio", "interruption")


class Traces:
    """Makes the spans.

    Args:
        provider: of OpenTelemetry; where its spans go is its own affair.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace, self._provider = trace, provider
        self._tracer = provider.get_tracer("chroma_plugin")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def from_environment(cls, version: str = "") -> Traces | None:
        """Spans as OpenTelemetry's own variables want them.

        They go to the OTLP endpoint of `OTEL_EXPORTER_OTLP_ENDPOINT`, over HTTP, or to the provider
        that somebody (`opentelemetry-instrument`, say) has set before.

        Args:
            version: of the service.

        Returns:
            None if nothing is set, or OpenTelemetry is switched off or not installed; the last is
            logged.
        """
        if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return None
        if "opentelemetry.sdk.trace" in sys.modules:
            from opentelemetry import trace
            from opentelemetry.sdk.trace import TracerProvider as Provider

            if isinstance(there := trace.get_tracer_provider(), Provider):
                return cls(there)
        named = [name for name in ENDPOINTS if os.environ.get(name)]
        if not named or os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider as Provider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            log.warning(
                "%s is set, but there will be no spans (%s). "
                "Install what makes them: pip install 'chroma-plugin[otel]'",
                named[0],
                error,
            )
            return None
        about = {"service.name": "chroma-plugin", "service.version": version}
        if os.environ.get("OTEL_SERVICE_NAME"):
            del about["service.name"]
        provider = Provider(resource=Resource.create(about))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def parent(self, headers: Mapping[str, str]) -> Context:
        """What a request's `traceparent` header says it is a part of."""
        from opentelemetry.context import Context

        names = ("traceparent", "tracestate")
        carrier = {name: headers[name] for name in names if name in headers}
        return self._propagator.extract(carrier, context=Context())

    def turn(self, parent: Context, session: str | None, outcome: Outcome) -> None:
        """The spans of one turn and its reply.

        Args:
            parent: what they are a part of.
            session: its id.
            outcome: of the reply.
        """
        line, offset_ns = outcome.timeline, time.time_ns() - round(now_s() * 1e9)
        begin_ns = _ns(line, line.begin, offset_ns)
        end_ns = _ns(line, "end", offset_ns)
        if begin_ns is None or end_ns is None:
            return
        span = self._tracer.start_span(
            "chroma.turn",
            parent,
            self._trace.SpanKind.SERVER,
            attributes=attributes(session, outcome),
            start_time=begin_ns,
        )
        if span.is_recording():
            for moment in EVENTS:
                if (at_ns := _ns(line, moment, offset_ns)) is not None:
                    span.add_event(moment, timestamp=at_ns)
            if outcome.error is not None:
                kind = type(outcome.error).__name__  # its message may quote somebody
                span.set_status(self._trace.StatusCode.ERROR, kind)
            context = self._trace.set_span_in_context(span, parent)
            for name, begin, end in SPANS:
                from_ns, to_ns = _ns(line, begin, offset_ns), _ns(line, end, offset_ns)
                if from_ns is not None and to_ns is not None:
                    part = self._tracer.start_span(name, context, start_time=from_ns)
                    part.end(to_ns)
        span.end(end_ns)

    def close(self) -> None:
        """Sends what was not sent; takes as long as the exporter's timeout if nobody listens."""
        shutdown = getattr(self._provider, "shutdown", None)
        if shutdown is not None:
            shutdown()


def attributes(session: str | None, outcome: Outcome) -> dict[str, Any]:
    """What is said of a turn: ids and figures, no words and no sound."""
    done, line = outcome.done, outcome.timeline
    said: dict[str, Any] = {
        "chroma.session.id": session,
        "chroma.turn.id": line.turn,
        "chroma.response.id": outcome.id,
        "chroma.response.status": outcome.status,
        "chroma.response.cancelled_by": outcome.cancelled_by,
        "chroma.user_audio_ms": line.user_audio_ms,
    }
    if done is not None:
        said |= {
            "chroma.audio_ms": done.audio_ms,
            "chroma.frames": done.frames,
            "chroma.tokens": done.tokens,
        }
    if done is not None and done.timings.total_ms:  # a reply that was stopped has no account
        said |= {
            "chroma.engine.queued_ms": done.timings.queued_ms,
            "chroma.engine.prefill_ms": done.timings.prefill_ms,
            "chroma.engine.voice_ms": done.timings.voice_ms,
        }
    return {name: value for name, value in said.items() if value is not None}


def _ns(line: Timeline, moment: Moment, offset_ns: int) -> int | None:
    at_s = line.at(moment)
    return None if at_s is None else offset_ns + round(at_s * 1e9)
