"""How steps run on a device: as they are, or replayed as CUDA graphs that were captured once.

A step is a function of a few numbers (its shape) that reads and writes static buffers only. On a
GPU the thousand small kernels of a frame take longer to launch than to run; a captured graph
launches them all at once. Knows nothing of models, rows or time.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

log = logging.getLogger(__name__)

SMALL_PARAMETERS = 50_000_000
"""Below this size the threads of a CPU wait for each other longer than they work."""

Replay = Callable[[], Any]
Record = Callable[[Replay], Replay]
"""Turns a call into one that repeats its kernels on the same memory."""


@dataclass(frozen=True, slots=True)
class DeviceMode:
    """What suits a device.

    Attributes:
        record: captures a step; None runs every step as it is.
        few_shapes: round sizes up to a short ladder, so that few graphs cover all of them.
        lag: steps that are launched before the first of them is looked at. On a GPU one: the host
            hands out a frame while the device makes the next.
        codec_frames: frames that the codec makes at a time while nobody hurries.
    """

    record: Record | None = None
    few_shapes: bool = False
    lag: int = 0
    codec_frames: int = 8

    @classmethod
    def of(cls, device: torch.device, *, graphs: bool = True) -> DeviceMode:
        """The mode for a device.

        Args:
            device: where the model is.
            graphs: False never captures; shapes and results stay the same.
        """
        if device.type != "cuda":
            return cls()
        record = cuda_recorder() if graphs else None
        return cls(record=record, few_shapes=True, lag=1, codec_frames=1)


class Graphs:
    """Captured steps by name and shape. What was not captured runs as it is.

    Args:
        record: how a step is captured; None captures nothing.
    """

    def __init__(self, record: Record | None) -> None:
        self._record = record
        self._replays: dict[tuple[object, ...], Replay] = {}
        self.uncaptured = 0  # runs that had no graph though there are graphs

    def __len__(self) -> int:
        return len(self._replays)

    def capture(self, step: Callable[..., Any], *shape: int | bool) -> None:
        """Captures a step for a shape; it runs once for it, as a step that no row takes part in.

        Where a capture fails, no further one is tried: everything then runs as it is, slower.
        """
        if self._record is None:
            return
        step(*shape)  # what is made on first use is not to be captured
        try:
            self._replays[step.__name__, *shape] = self._record(lambda: step(*shape))
        except RuntimeError as error:
            log.warning(
                "No CUDA graphs: capturing %s%s failed (%s). The engine goes on without them and "
                "is several times slower; EngineConfig(cuda_graphs=False) silences this.",
                step.__name__, shape, error, exc_info=True,  # its end often hides what began it
            )  # fmt: skip
            self._record = None
            self._replays.clear()

    def run(self, step: Callable[..., Any], *shape: int | bool) -> Any:
        """Runs a step. What a captured one returns is overwritten by the next run of any step."""
        replay = self._replays.get((step.__name__, *shape))
        if replay is not None:
            return replay()
        self.uncaptured += self._record is not None
        return step(*shape)


def cuda_recorder() -> Record:
    """Captures CUDA graphs that share their scratch memory: they never run at the same time.

    What one returns lies in that memory, too, and lasts until any of them is replayed.
    """
    pool = torch.cuda.graph_pool_handle()

    def record(call: Replay) -> Replay:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        # what other threads of the process do on the device meanwhile is no business of a capture
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            result = call()

        def replay() -> Any:
            graph.replay()
            return result

        return replay

    return record


def set_threads(device: torch.device, parameters: int, wanted: int | None) -> None:
    """Says how many threads of the CPU torch uses.

    Args:
        device: where the model is.
        parameters: how large it is.
        wanted: so many; None is one for a small model on a CPU, and torch's choice otherwise.
    """
    if wanted is None and device.type == "cpu" and parameters < SMALL_PARAMETERS:
        wanted = 1
    if wanted is not None:
        torch.set_num_threads(wanted)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Everything inside runs on a stream of its own: the default stream waits for all others."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # the weights are there
    # cuDNN's attention refuses some of the shapes that it claims
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with torch.cuda.device(device), torch.cuda.stream(stream), sdpa_kernel(backends):
        yield
        stream.synchronize()


@dataclass(frozen=True, slots=True)
class Ladder:
    """Sizes that a shape is rounded up to.

    Attributes:
        sizes: in rising order.
    """

    sizes: tuple[int, ...]

    @classmethod
    def doubling(cls, first: int, last: int) -> Ladder:
        """`first`, twice that, and so on, and `last`."""
        sizes, size = [], first
        while size < last:
            sizes.append(size)
            size *= 2
        return cls((*sizes, last))

    @classmethod
    def even(cls, step: int, last: int) -> Ladder:
        """Multiples of `step`, and `last`."""
        return cls((*range(step, last, step), last))

    def fit(self, size: int) -> int:
        """The smallest size that holds so much; the largest if none does."""
        return self.sizes[min(bisect.bisect_left(self.sizes, size), len(self.sizes) - 1)]
