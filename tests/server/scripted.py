"""An engine that does what a test says, when it says so, under a clock that the test moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from chroma_plugin.errors import ChromaError
from chroma_plugin.reply import AudioChunk, EndReason, ReplyEvent, TextDelta, Timings, TurnDone
from chroma_plugin.server import timeline
from tests.fakes import FakeConversation, FakeEngine

SECRET = "swordfish"
"""What is said here, and must not be found anywhere else."""
FRAME = b"\x10\x20" * 1920
TIMES = Timings(
    queued_ms=120.0,
    voice_ms=20.0,
    prefill_ms=60.0,
    first_audio_ms=240.0,
    thinker_ms=20.0,
    backbone_ms=40.0,
    depth_ms=50.0,
    codec_ms=18.0,
    total_ms=900.0,
)


class Clock:
    """Stands where it is until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        there = SimpleNamespace(monotonic=lambda: self.now_s)
        monkeypatch.setattr(timeline, "time", there)

    def go(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class Steps:
    """As the engine's `StepTotals`."""

    bounds_s: tuple[float, ...] = (0.02, 0.08)
    counts: tuple[int, ...] = (2, 5, 1)
    seconds: float = 0.5
    parts_s: dict[str, float] = field(default_factory=lambda: {"thinker": 0.2, "codec": 0.1})


@dataclass
class Stats:
    """As the engine's `EngineStats`."""

    sessions: int = 5
    speaking: int = 3
    waiting: int = 2
    voices: int = 7
    evictions: int = 11
    rows_free: int = 1
    expired: int = 13
    underruns: int = 17
    thinker_rows: int = 19
    thinker_rows_taken: int = 6
    thinker_cache_bytes: int = 1000
    backbone_cache_bytes: int = 2000
    codec_state_bytes: int = 3000
    voice_bytes: int = 4000
    transcripts: int = 23
    transcripts_waiting: int = 4
    steps: Steps = field(default_factory=Steps)


class ScriptedEngine(FakeEngine):
    """Speaks what it is told to by `tell`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.stats = Stats()

        def start_reply(conversation: Any, request: Any, sink: Any) -> None:
            self._sink = sink

        monkeypatch.setattr(FakeConversation, "start_reply", start_reply)

    def tell(self, *events: ReplyEvent | ChromaError) -> None:
        for event in events:
            self._sink(event)

    def speak(self, frames: int = 1, start: int = 0, word: str = SECRET) -> None:
        if not start:
            self.tell(TextDelta(word, 0.0))
        self.tell(*(AudioChunk(FRAME, 80.0 * i) for i in range(start, start + frames)))

    def end(self, frames: int, timings: Timings = TIMES) -> None:
        self.tell(
            TurnDone(EndReason.END_OF_SPEECH, SECRET, frames * 80.0, 1, frames, 0, 0, timings)
        )


class Page:
    """A page of metrics, read."""

    def __init__(self, text: bytes | str) -> None:
        text = text.decode() if isinstance(text, bytes) else text
        self.families = list(text_string_to_metric_families(text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float | None:
        """The value of the one sample of that name and these labels; None if there is none."""
        found = [s for s in self.samples if s.name == name and _has(s.labels, labels)]
        assert len(found) < 2, f"{name}: {found}"
        return found[0].value if found else None

    def counts(self, name: str) -> list[float]:
        """What each bucket of a histogram counts alone."""
        seen = [sample.value for sample in self.samples if sample.name == f"{name}_bucket"]
        return [b - a for a, b in zip([0.0, *seen], seen, strict=False)]


def _has(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return wanted.items() <= labels.items()
