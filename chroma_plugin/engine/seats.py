"""Rows of the thinker's cache, lent to conversations; the idlest gives way when all are taken.

What a conversation loses with its row is only time: its dialogue is the truth, and the cache is
rebuilt from it.
"""

from __future__ import annotations

import itertools

from chroma_plugin.engine.call import Call


class Seats:
    """The rows and who has them.

    Args:
        rows: how many there are.
    """

    def __init__(self, rows: int) -> None:
        self._free = list(range(rows))
        self._taken: dict[Call, int] = {}  # when each was last used, on a clock of its own
        self._clock = itertools.count()
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, call: Call) -> bool:
        """Sees to it that a conversation has a row; False if there is none for it.

        A row is taken away only for a conversation that somebody speaks to or that is about to
        speak: from one of which neither is true, or else, for a reply, from one that listens.
        """
        if call.thinker_row is None and not self._free and call.engaged:
            self._evict(call)
        if call.thinker_row is None:
            if not self._free:
                return False
            call.thinker_row = self._free.pop(0)
            call.dialogue.cached = 0
        self._taken[call] = next(self._clock)
        return True

    def release(self, call: Call) -> None:
        """Takes the row back."""
        if call.thinker_row is not None:
            self._free.append(call.thinker_row)
            del self._taken[call]
            call.thinker_row = None
            call.dialogue.cached = 0

    def _evict(self, taker: Call) -> None:
        idle = [call for call in self._taken if not call.engaged]
        if not idle and taker.reply is not None:
            idle = [call for call in self._taken if call.reply is None]
        if idle:
            self.evictions += 1
            self.release(min(idle, key=self._taken.__getitem__))
