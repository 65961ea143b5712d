"""What a server counts and times, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from chroma_plugin.reply import EndReason
from chroma_plugin.server.response import Outcome

CONTENT_TYPE = CONTENT_TYPE_LATEST
FIRST_AUDIO_S = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 2.0, 4.0, 8.0)
STEP_S = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.12, 0.16, 0.32)
"""Around 80 ms: a step that takes longer than its frame lasts cannot keep up."""


class Metrics:
    """The figures of one server.

    Args:
        gpu_bytes: what the model takes on its device; None where nobody can tell.
    """

    def __init__(self, gpu_bytes: Callable[[], float] | None = None) -> None:
        self._registry = CollectorRegistry()
        self.sessions = self._gauge("chroma_active_sessions", "Connections that talk.")
        self.rejected = Counter(
            "chroma_session_rejected",
            "Connections that were refused.",
            ["reason"],
            registry=self._registry,
        )
        self.responses = Counter(
            "chroma_responses", "Replies, by how they ended.", ["status"], registry=self._registry
        )
        self.interruptions = Counter(
            "chroma_interruptions", "Replies cut off by the user.", registry=self._registry
        )
        self.spoken = Counter(
            "chroma_spoken_seconds", "Speech made, in seconds.", registry=self._registry
        )
        self._first_audio = Histogram(
            "chroma_time_to_first_audio_seconds",
            "From the request for a reply to its first audio.",
            buckets=FIRST_AUDIO_S,
            registry=self._registry,
        )
        self._step = Histogram(
            "chroma_frame_step_seconds",
            "What an 80 ms frame took, on average over a reply.",
            buckets=STEP_S,
            registry=self._registry,
        )
        self._rtf = Histogram(
            "chroma_rtf",
            "Time taken per time spoken, of a reply.",
            buckets=(0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0, 1.2, 2.0),
            registry=self._registry,
        )
        if gpu_bytes is not None:
            gauge = self._gauge("chroma_gpu_memory_bytes", "What the model takes on its device.")
            gauge.set_function(gpu_bytes)

    def observe(self, outcome: Outcome) -> None:
        """Counts a reply that has ended."""
        self.responses.labels(outcome.status).inc()
        if outcome.interrupted:
            self.interruptions.inc()
        if outcome.first_audio_s is not None:
            self._first_audio.observe(outcome.first_audio_s)
        done = outcome.done
        if done is None or not done.frames:
            return
        self.spoken.inc(done.audio_ms / 1000)
        if done.reason is EndReason.CANCELLED:
            return
        times = done.timings
        parts = (times.thinker_ms, times.backbone_ms, times.depth_ms, times.codec_ms)
        if (made_ms := max(sum(parts), times.frame_ms + times.thinker_ms + times.codec_ms)) > 0:
            self._step.observe(made_ms / done.frames / 1000)
        self._rtf.observe(outcome.total_s * 1000 / done.audio_ms)

    def page(self) -> bytes:
        """The figures in Prometheus' text format."""
        text: bytes = generate_latest(self._registry)
        return text

    def _gauge(self, name: str, about: str) -> Any:
        return Gauge(name, about, registry=self._registry)
