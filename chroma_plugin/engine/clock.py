"""Where the time of a step went, part by part, without waiting for the device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

Mark = torch.cuda.Event | float


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


def _between_ms(begin: Mark, end: Mark) -> float:
    if isinstance(begin, float) and isinstance(end, float):
        return (end - begin) * 1000
    assert isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
    return begin.elapsed_time(end)
