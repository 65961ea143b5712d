"""What replies are wanted for, in the order in which they were asked for."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto


class Wish(Enum):
    """Something that a reply of the model's own is wanted for."""

    ANSWER = auto()  # the user's turn is over
    RUN = auto()  # the application asked for a reply


@dataclass(frozen=True, slots=True)
class Say:
    """Words to be spoken as they are.

    Attributes:
        text: the words.
        append_to_context: whether they become part of the conversation.
        interruptible: whether the user can cut them off.
    """

    text: str
    append_to_context: bool = True
    interruptible: bool = True


class Agenda:
    """Wishes that wait: one reply answers all of the model's own, words are spoken one by one."""

    def __init__(self) -> None:
        self._items: deque[Wish | Say] = deque()

    def __bool__(self) -> bool:
        return bool(self._items)

    def __contains__(self, item: Wish | Say) -> bool:
        return item in self._items

    def add(self, item: Wish | Say) -> None:
        """Puts it at the end; a wish that waits already is not wished twice."""
        if isinstance(item, Say) or item not in self._items:
            self._items.append(item)

    def take(self) -> Say | frozenset[Wish]:
        """The next words, or all wishes that one reply will answer."""
        first = self._items.popleft()
        if isinstance(first, Say):
            return first
        wishes = {first, *(item for item in self._items if isinstance(item, Wish))}
        self.drop(*wishes)
        return frozenset(wishes)

    def drop(self, *wishes: Wish) -> None:
        """Takes wishes back."""
        self._items = deque(item for item in self._items if item not in wishes)

    def hush(self) -> None:
        """Takes words back, but for those that must be spoken."""
        self._items = deque(
            item for item in self._items if isinstance(item, Wish) or not item.interruptible
        )

    def clear(self) -> None:
        """Takes everything back."""
        self._items.clear()
