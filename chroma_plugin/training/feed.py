"""Batches on their way to the loop: made ahead by threads, moved to the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor


@contextmanager
def batches(make: Callable[[int], Any], first: int, threads: int = 0) -> Iterator[Iterator[Any]]:
    """Batches in order, without an end.

    Args:
        make: batch of a number; called from several threads at once if there are any.
        first: number of the first one.
        threads: how many make them ahead; 0: each is made when it is asked for.
    """
    if not threads:
        yield map(make, count(first))
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="batch")

    def ahead() -> Iterator[Any]:
        waiting: list[Future[Any]] = []
        for number in count(first):
            waiting.append(pool.submit(make, number))
            if len(waiting) > 2 * threads:
                yield waiting.pop(0).result()

    try:
        yield ahead()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on a device; looks into tuples, lists and dicts."""
    if device.type == "cpu":
        return batch
    if isinstance(batch, Tensor):
        pinned = batch.pin_memory() if device.type == "cuda" else batch
        return pinned.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        values: Iterable[Any] = (moved(value, device) for value in batch)
        if hasattr(batch, "_fields"):  # a NamedTuple takes its fields one by one
            return type(batch)(*values)
        return type(batch)(values)
    return batch
