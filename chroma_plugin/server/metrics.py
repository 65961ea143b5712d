"""What a server counts and times, for Prometheus.

No label holds what a client sent: every one of them takes a few values that stand in this code.
docs/observability.md has the list.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from chroma_plugin.reply import EndReason, TurnDone
from chroma_plugin.server.response import Outcome

CONTENT_TYPE = CONTENT_TYPE_LATEST
FIRST_AUDIO_S = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 2.0, 4.0, 8.0)
RTF = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 2.0)
SESSION_S = (10, 30, 60, 180, 300, 600, 1200, 1800, 3600, 7200)
REQUEST_S = (0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30)
METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS")

ENGINE: tuple[tuple[str, str, Literal["gauge", "counter"], str], ...] = (
    ("sessions", "chroma_engine_sessions", "gauge", "Conversations that the engine holds."),
    ("speaking", "chroma_rows_taken", "gauge", "Rows of the batch that a reply is on."),
    ("rows_free", "chroma_rows_free", "gauge", "Rows of the batch that no reply is on."),
    ("waiting", "chroma_replies_waiting", "gauge", "Replies in line for a row."),
    ("expired", "chroma_replies_expired", "counter", "Replies that found no row in time."),
    ("underruns", "chroma_underruns", "counter", "How often the playback of a reply ran dry."),
    ("thinker_rows", "chroma_thinker_rows", "gauge", "Rows of the thinker's cache."),
    ("thinker_rows_taken", "chroma_thinker_rows_taken", "gauge", "Those lent to conversations."),
    ("evictions", "chroma_evictions", "counter", "Conversations whose cache had to give way."),
    ("voices", "chroma_voices_ready", "gauge", "Voices that are ready to speak."),
    ("transcripts", "chroma_transcripts", "counter", "User turns that were written down."),
    ("transcripts_waiting", "chroma_transcripts_waiting", "gauge", "Turns in line for that."),
)
"""Of the engine's `stats`: the field, the metric, its kind and what it means."""

BYTES = {
    "thinker_cache_bytes": "thinker_cache",
    "backbone_cache_bytes": "backbone_cache",
    "codec_state_bytes": "codec_state",
    "voice_bytes": "voices",
}
"""Fields of the engine's `stats` that are bytes, and what of."""


class PoolFigures(Collector):
    """The places of the server and what its engine says of itself, read when Prometheus asks.

    Args:
        read: gives them as `Pool.as_dict` does; figures that the engine does not have are left out.
    """

    def __init__(self, read: Callable[[], Mapping[str, Any]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """The figures of this moment."""
        pool = self._read()
        yield GaugeMetricFamily("chroma_slots", "Conversations there may be.", pool["slots"])
        yield GaugeMetricFamily("chroma_slots_taken", "Conversations there are.", pool["used"])
        ready = float(pool["status"] == "ready")
        yield GaugeMetricFamily("chroma_ready", "1 while there is room for another.", ready)
        stats: Mapping[str, Any] = pool["engine"]
        for field, name, kind, about in ENGINE:
            if field in stats:
                family = GaugeMetricFamily if kind == "gauge" else CounterMetricFamily
                yield family(name, about, stats[field])
        yield from self._bytes(stats)
        if "steps" in stats:
            yield from self._steps(stats["steps"])

    def _bytes(self, stats: Mapping[str, Any]) -> Iterator[Metric]:
        held = GaugeMetricFamily(
            "chroma_engine_bytes", "What the engine's caches take.", labels=["of"]
        )
        for field, of in BYTES.items():
            if field in stats:
                held.add_metric([of], stats[field])
        if held.samples:
            yield held

    def _steps(self, steps: Mapping[str, Any]) -> Iterator[Metric]:
        seen, buckets = 0, list[tuple[str, float]]()
        for bound, count in zip((*steps["bounds_s"], "+Inf"), steps["counts"], strict=True):
            seen += count
            buckets.append((str(bound), seen))
        about = "What one step took: a frame of 80 ms for every row that speaks."
        yield HistogramMetricFamily(
            "chroma_frame_step_seconds", about, buckets=buckets, sum_value=steps["seconds"]
        )
        parts = CounterMetricFamily(
            "chroma_step_part_seconds", "Of that, by the part of the model.", labels=["part"]
        )
        for part, seconds in steps["parts_s"].items():
            parts.add_metric([part], seconds)
        yield parts


class Metrics:
    """The figures of one server.

    Args:
        pool: its places and the engine's own figures, as `Pool.as_dict` gives them; without it
            there are none of these.
        gpu_bytes: what the model takes on its device; None where nobody can tell.
        version: of the server.
    """

    def __init__(
        self,
        pool: Callable[[], Mapping[str, Any]] | None = None,
        gpu_bytes: Callable[[], float] | None = None,
        version: str = "",
    ) -> None:
        self._registry = CollectorRegistry()
        if pool is not None:
            self._registry.register(PoolFigures(pool))
        ProcessCollector(registry=self._registry)
        self._gauge("chroma_build_info", "Always 1.", ["version"]).labels(version).set(1)
        self.sessions = self._gauge("chroma_active_sessions", "Connections that talk.")
        self.session_s = self._histogram(
            "chroma_session_seconds",
            "How long they lasted, those that ended.",
            SESSION_S,
            ["ended_by"],
        )
        self.rejected = self._counter(
            "chroma_session_rejected", "Connections that were refused.", ["reason"]
        )
        self.responses = self._counter("chroma_responses", "Replies, by their end.", ["status"])
        self.interruptions = self._counter(
            "chroma_interruptions", "Replies that somebody stopped.", ["by"]
        )
        self.heard = self._counter(
            "chroma_heard_seconds", "Turns of users, those that were answered."
        )
        self.spoken = self._counter("chroma_spoken_seconds", "Speech made for them.")
        self.first_audio = self._histogram(
            "chroma_time_to_first_audio_seconds",
            "From the request for a reply to its first audio.",
            FIRST_AUDIO_S,
        )
        self.response_gap = self._histogram(
            "chroma_speech_end_to_first_audio_seconds",
            "From the end of the user's voice to the first audio of the reply.",
            FIRST_AUDIO_S,
        )
        self.wait = self._histogram(
            "chroma_reply_wait_seconds",
            "What a reply waited for before its first audio.",
            FIRST_AUDIO_S,
            ["part"],
        )
        self.rtf = self._histogram(
            "chroma_rtf", "Time that a reply's steps took per time spoken.", RTF
        )
        self.requests = self._histogram(
            "chroma_http_request_seconds",
            "HTTP requests, by route.",
            REQUEST_S,
            ["route", "method", "status"],
        )
        if gpu_bytes is not None:
            gauge = self._gauge("chroma_gpu_memory_bytes", "What the model takes on its GPU.")
            gauge.set_function(gpu_bytes)

    def observe(self, outcome: Outcome) -> None:
        """Counts a reply that has ended."""
        timeline = outcome.timeline
        self.responses.labels(outcome.status).inc()
        self.heard.inc(timeline.user_audio_ms / 1000)
        if timeline.at("interruption") is not None:
            by = "server" if outcome.cancelled_by == "turn_detected" else "client"
            self.interruptions.labels(by).inc()
        if (waited_s := timeline.between_s("asked", "first_audio")) is not None:
            self.first_audio.observe(waited_s)
        if (gap_s := timeline.speech_end_to_first_audio_s) is not None:
            self.response_gap.observe(gap_s)
        if outcome.done is not None:
            self._account(outcome.done)

    def _account(self, done: TurnDone) -> None:
        self.spoken.inc(done.audio_ms / 1000)
        if done.reason is EndReason.CANCELLED:  # by the session, that knows of no times
            return
        times = done.timings
        if times.total_ms:
            for part in ("queued", "voice", "prefill"):
                self.wait.labels(part).observe(getattr(times, f"{part}_ms") / 1000)
        steps_ms = times.thinker_ms + times.codec_ms + times.frame_ms
        steps_ms += times.backbone_ms + times.depth_ms
        if steps_ms and done.audio_ms:
            self.rtf.observe(steps_ms / done.audio_ms)

    def page(self) -> bytes:
        """The figures in Prometheus' text format."""
        text: bytes = generate_latest(self._registry)
        return text

    def _gauge(self, name: str, about: str, labels: list[str] | None = None) -> Any:
        return Gauge(name, about, labels or [], registry=self._registry)

    def _counter(self, name: str, about: str, labels: list[str] | None = None) -> Any:
        return Counter(name, about, labels or [], registry=self._registry)

    def _histogram(
        self,
        name: str,
        about: str,
        buckets: tuple[float, ...],
        labels: list[str] | None = None,
    ) -> Any:
        return Histogram(name, about, labels or [], buckets=buckets, registry=self._registry)


def gpu_bytes() -> float:
    """What torch has allocated on its GPU; 0 without one, and where nobody imported torch."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0.0
    return float(torch.cuda.memory_allocated())
