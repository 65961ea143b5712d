"""How much a client may send: a bucket that drains as fast as it may."""

from __future__ import annotations

import time
from collections.abc import Callable


class Bucket:
    """So much a second, and so much at once.

    Args:
        rate: refilled a second.
        size: what it holds.
        clock: seconds, from anywhere.
    """

    def __init__(
        self, rate: float, size: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._size, self._clock = rate, size, clock
        self._left, self._seen_s = size, clock()

    def take(self, amount: float) -> bool:
        """Takes that much out; False, and nothing is taken, if it is not there."""
        now_s = self._clock()
        self._left = min(self._size, self._left + (now_s - self._seen_s) * self._rate)
        self._seen_s = now_s
        if amount > self._left:
            return False
        self._left -= amount
        return True
