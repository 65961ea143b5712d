"""A stream that one side fills and the other reads, and that can end at any moment."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Feed(Generic[T]):
    """An async iterator of what was put into it.

    Args:
        on_taken: is told when an item is taken.

    Attributes:
        read_since: when it was read from first, on the event loop's clock; None: not yet.
    """

    def __init__(self, on_taken: Callable[[], None] | None = None) -> None:
        self.read_since: float | None = None
        self._on_taken = on_taken
        self._items: deque[T] = deque()
        self._closed = False
        self._wake = asyncio.Event()
        self._watchers: list[asyncio.Event] = []

    @property
    def closed(self) -> bool:
        return self._closed

    def put(self, item: T) -> None:
        """Adds an item; one that comes after the end is dropped."""
        if not self._closed:
            self._items.append(item)
            self._wake.set()

    def close(self, *, drop: bool = False) -> None:
        """Nothing more comes; with `drop` nothing of what waits is read either. Idempotent."""
        self._closed = True
        if drop:
            self._items.clear()
        self._wake.set()
        self._tell()

    def watch(self, event: asyncio.Event) -> None:
        """Has an event set when somebody begins to read, or when the feed is closed."""
        self._watchers.append(event)

    def _tell(self) -> None:
        for event in self._watchers:
            event.set()

    def __aiter__(self) -> Feed[T]:
        return self

    async def __anext__(self) -> T:
        if self.read_since is None:
            self.read_since = asyncio.get_running_loop().time()
            self._tell()
        while not self._items:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        item = self._items.popleft()
        if self._on_taken is not None:
            self._on_taken()
        return item

    async def aclose(self) -> None:
        """The reader wants no more."""
        self.close(drop=True)
