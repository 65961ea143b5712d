"""Who speaks: a line of waiting replies, and the rows of the batch that they are given.

Rows go in lock step. A reply starts on an even step only, so that every row's text pair falls on
the same steps and the thinker runs for all of them at once, every second frame. The scheduler
knows nothing of tensors, audio or threads; its clock is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Ticket:
    """A reply that waits in line.

    Attributes:
        key: whose it is; unique among those that wait or speak.
        asked_s: when it was asked for.
        deadline_s: until when it waits for a row.
    """

    key: Hashable
    asked_s: float
    deadline_s: float


@dataclass(slots=True)
class Slot:
    """One row of the batch and the reply that speaks on it.

    Attributes:
        row: the row.
        ticket: the reply.
        frames: frames made so far.
        position: the backbone position that comes next.
        texting: the thinker has not ended the text yet.
    """

    row: int
    ticket: Ticket
    frames: int = 0
    position: int = 0
    texting: bool = True


@dataclass(slots=True)
class Scheduler:
    """Gives rows to replies, first come, first served.

    Args:
        rows: how many replies can speak at once.
    """

    rows: int
    waiting: list[Ticket] = field(default_factory=list)
    speaking: dict[int, Slot] = field(default_factory=dict)
    even: bool = True

    def submit(self, ticket: Ticket) -> None:
        """Puts a reply in line."""
        self.waiting.append(ticket)

    def expire(self, now_s: float) -> list[Ticket]:
        """Takes those out of the line that have waited beyond their deadline."""
        late = [t for t in self.waiting if now_s > t.deadline_s]
        self.waiting = [t for t in self.waiting if now_s <= t.deadline_s]
        return late

    def admit(self, is_ready: Callable[[Ticket], bool]) -> list[Slot]:
        """Gives free rows to the replies that are ready, the longest waiting first.

        Nothing is given on an odd step. The lowest rows go first, so that the batch stays small.
        """
        if not self.even:
            return []
        free = [row for row in range(self.rows) if row not in self.speaking]
        given = []
        for ticket in [t for t in self.waiting if is_ready(t)][: len(free)]:
            self.waiting.remove(ticket)
            slot = Slot(free.pop(0), ticket)
            self.speaking[slot.row] = slot
            given.append(slot)
        return given

    def stepped(self) -> None:
        """One frame was made for every row that speaks."""
        self.even = not self.even

    def withdraw(self, key: Hashable) -> Slot | None:
        """Takes a reply out of the line or off its row; the row, if it had one."""
        self.waiting = [t for t in self.waiting if t.key != key]
        for slot in list(self.speaking.values()):
            if slot.ticket.key == key:
                self.release(slot)
                return slot
        return None

    def release(self, slot: Slot) -> None:
        """Frees the row of a reply that has ended."""
        del self.speaking[slot.row]
        if not self.speaking:
            self.even = True

    @property
    def batch(self) -> int:
        """How many rows a step must cover: a power of two from the lowest row on, or all."""
        highest = max(self.speaking, default=-1) + 1
        return min(1 << max(highest - 1, 0).bit_length(), self.rows) if highest else 0
