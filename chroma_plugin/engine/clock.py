"""Where the time of a step went, part by part, without waiting for the device."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

Mark = torch.cuda.Event | float

STEP_BOUNDS_S = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.12, 0.16, 0.32, 0.64)
"""Around 80 ms: steps that take longer than their frame lasts cannot keep up."""


@dataclass(slots=True)
class PartClock:
    """Marks the beginning and end of parts; on CUDA by events in the stream."""

    cuda: bool
    _marks: list[tuple[str, Mark, Mark]] = field(default_factory=list)

    def _now(self) -> Mark:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times what is inside."""
        begin = self._now()
        yield
        self._marks.append((name, begin, self._now()))

    def read(self) -> dict[str, float]:
        """Milliseconds of each part; the device must have finished them."""
        parts: dict[str, float] = {}
        for name, begin, end in self._marks:
            parts[name] = parts.get(name, 0.0) + _between_ms(begin, end)
        return parts

    def gap_ms(self, before: PartClock) -> float:
        """Milliseconds in which nothing ran between the steps of two clocks."""
        return _between_ms(before._marks[-1][2], self._marks[0][1])

    @property
    def span_ms(self) -> float:
        """Milliseconds from its first mark to its last."""
        return _between_ms(self._marks[0][1], self._marks[-1][2]) if self._marks else 0.0


@dataclass(frozen=True, slots=True)
class StepTotals:
    """How long all steps took since the engine's start.

    Attributes:
        bounds_s: upper bounds of the counts but the last, in seconds.
        counts: steps that took at most as long as each bound and longer than the one before it;
            the last one counts those beyond all bounds.
        seconds: all steps together.
        parts_s: of each part, what the codec caught up with between steps included.
    """

    bounds_s: tuple[float, ...] = STEP_BOUNDS_S
    counts: tuple[int, ...] = (0,) * (len(STEP_BOUNDS_S) + 1)
    seconds: float = 0.0
    parts_s: dict[str, float] = field(default_factory=dict)


class StepTally:
    """Adds steps up, in as much memory as it begins with. May be read from other threads."""

    def __init__(self) -> None:
        self._counts = [0] * (len(STEP_BOUNDS_S) + 1)
        self._seconds = 0.0
        self._parts_s: dict[str, float] = {}

    def add(self, ms: float) -> None:
        """Counts a step."""
        self._counts[bisect_left(STEP_BOUNDS_S, ms / 1000)] += 1
        self._seconds += ms / 1000

    def spend(self, parts_ms: Mapping[str, float]) -> None:
        """Adds to what the parts took."""
        for part, part_ms in parts_ms.items():
            self._parts_s[part] = self._parts_s.get(part, 0.0) + part_ms / 1000

    def totals(self) -> StepTotals:
        """What was counted so far."""
        return StepTotals(STEP_BOUNDS_S, tuple(self._counts), self._seconds, self._parts_s.copy())


def _between_ms(begin: Mark, end: Mark) -> float:
    if isinstance(begin, float) and isinstance(end, float):
        return (end - begin) * 1000
    assert isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
    return begin.elapsed_time(end)
