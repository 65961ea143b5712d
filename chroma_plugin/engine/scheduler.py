"""Who does what next: a line of waiting replies, the rows of the batch, and every stream's
deadline.

Rows go in lock step, two frames a beat. A beat begins on an even step, where every row's text pair
falls; replies start, pause and go on at the beginning of a beat only, so the thinker runs for all
rows at once, every second frame. Between frames there is room for pieces of prompts, as long as no
stream comes near its underrun. A stream far enough ahead of its playback pauses, which leaves the
device to others and wastes little when the user interrupts. What nobody hears, transcripts, is done
when there is no prompt to read and every stream has time to spare.

The scheduler knows nothing of tensors, audio or threads; its clock is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import Enum, auto

from chroma_plugin.audio import FRAME_MS

FRAME_S = FRAME_MS / 1000
BEAT_S = 2 * FRAME_S
URGENT_S = BEAT_S
"""A stream with less than this in hand goes before anybody's prompt."""
STEPS_PER_PIECE = 4
"""However urgent the streams are, one piece of a prompt is read in so many steps."""

SPARE_S = 2 * BEAT_S
"""A stream with so much in hand has time to spare: a piece of a transcript takes less."""

PIECES_PER_START = 8
"""Pieces of awaited prompts that are read before a reply that has its row makes its first frame."""


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


@dataclass(slots=True, eq=False)
class Slot:
    """One row of the batch and the reply that speaks on it.

    Attributes:
        row: the row.
        ticket: the reply.
        frames: frames made so far.
        position: the backbone position that comes next.
        texting: the thinker has not ended the text yet.
        sent_s: seconds of audio that have left.
        first_out_s: when the first of it left; None before that. Its playback is taken to have
            begun then.
        underruns: how often its playback ran dry.
        acts: it makes frames in this beat.
    """

    row: int
    ticket: Ticket
    frames: int = 0
    position: int = 0
    texting: bool = True
    sent_s: float = 0.0
    first_out_s: float | None = None
    underruns: int = 0
    acts: bool = False

    def in_hand_s(self, now_s: float) -> float:
        """Seconds until its playback runs dry; less than nothing before its first audio."""
        if self.first_out_s is None:
            return -math.inf
        return self.sent_s - (now_s - self.first_out_s)

    def sent(self, seconds: float, now_s: float) -> None:
        """So much more audio has left.

        A playback that had run dry stood still until now, so it is taken to go on from here.
        """
        if self.in_hand_s(now_s) < 0:
            self.underruns += self.first_out_s is not None
            self.first_out_s = now_s - self.sent_s
        self.sent_s += seconds


class Move(Enum):
    """What the worker does next."""

    STEP = auto()  # one frame for every row that acts
    READ = auto()  # a piece of somebody's prompt
    WRITE = auto()  # a piece of a transcript
    REST = auto()  # nothing, until something is asked or a stream needs more


@dataclass(slots=True)
class Scheduler:
    """Gives rows to replies, first come, first served, and says who acts.

    Its counts may be read from other threads.

    Args:
        rows: how many replies can speak at once.
        run_ahead_s: how far a stream may be ahead of its playback.

    Attributes:
        waiting: the line.
        speaking: who is on which row.
        even: a beat can begin.
        finished: replies that came to their end.
        cancelled: replies that were withdrawn, from the line or from a row.
        expired: replies that no row became free for in time.
    """

    rows: int
    run_ahead_s: float = math.inf
    waiting: list[Ticket] = field(default_factory=list)
    speaking: dict[int, Slot] = field(default_factory=dict)
    even: bool = True
    finished: int = 0
    cancelled: int = 0
    expired: int = 0
    _steps_since_read: int = 0
    _reads_in_a_row: int = 0
    _written: bool = False  # a piece of a transcript since the last step
    _past_underruns: int = 0  # of the replies that have left their rows

    # -- the line ----------------------------------------------------------------------------

    def submit(self, ticket: Ticket) -> None:
        """Puts a reply in line."""
        self.waiting.append(ticket)

    def expire(self, now_s: float) -> list[Ticket]:
        """Takes those out of the line that have waited for a row beyond their deadline.

        While a row is free nobody waits for one, but for its own prompt to be read.
        """
        if len(self.speaking) < self.rows:
            return []
        late = [t for t in self.waiting if now_s > t.deadline_s]
        self.waiting = [t for t in self.waiting if now_s <= t.deadline_s]
        self.expired += len(late)
        return late

    def admit(self, is_ready: Callable[[Ticket], bool]) -> list[Slot]:
        """Gives free rows to the replies that are ready, the longest waiting first.

        Nothing is given in the middle of a beat. The lowest rows go first, so that the batch
        stays small.
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

    def withdraw(self, key: Hashable) -> Slot | None:
        """Takes a reply out of the line or off its row; the row, if it had one."""
        staying = [t for t in self.waiting if t.key != key]
        self.cancelled += len(self.waiting) - len(staying)
        self.waiting = staying
        for slot in list(self.speaking.values()):
            if slot.ticket.key == key:
                self.cancelled += 1
                self._free(slot)
                return slot
        return None

    def release(self, slot: Slot) -> None:
        """Frees the row of a reply that has ended."""
        self.finished += 1
        self._free(slot)

    @property
    def underruns(self) -> int:
        """How often a playback ran dry so far."""
        return self._past_underruns + sum(s.underruns for s in list(self.speaking.values()))

    def _free(self, slot: Slot) -> None:
        del self.speaking[slot.row]
        self._past_underruns += slot.underruns
        if not self.acting:
            self.even = True

    @property
    def has_room(self) -> bool:
        """A row is free."""
        return len(self.speaking) < self.rows

    # -- the beat ----------------------------------------------------------------------------

    @property
    def acting(self) -> list[Slot]:
        """The rows that make frames in this beat."""
        return [slot for slot in self.speaking.values() if slot.acts]

    @property
    def batch(self) -> int:
        """How many rows a step must cover: a power of two from the lowest row on, or all."""
        highest = max((slot.row for slot in self.acting), default=-1) + 1
        return min(1 << max(highest - 1, 0).bit_length(), self.rows) if highest else 0

    def begin_beat(self, now_s: float) -> None:
        """Decides who acts in the next two frames; does nothing in the middle of a beat."""
        if self.even:
            for slot in self.speaking.values():
                slot.acts = slot.in_hand_s(now_s) < self.run_ahead_s

    def next_move(
        self, now_s: float, *, unread: bool, awaited: bool = False, unwritten: bool = False
    ) -> Move:
        """What comes next.

        Args:
            now_s: the time.
            unread: somebody's prompt has not been read to its end.
            awaited: the next of them is all that a reply waits for: it could have a row.
            unwritten: there are transcripts to make.
        """
        acting = self.acting
        if unwritten and not unread and self._has_spare_time(now_s):
            return Move.WRITE
        if not acting:
            return Move.READ if unread else Move.REST
        begun = [slot.in_hand_s(now_s) for slot in acting if slot.first_out_s is not None]
        if not unread:
            return Move.STEP
        if self._steps_since_read >= STEPS_PER_PIECE:
            return Move.READ
        if min(begun, default=math.inf) < URGENT_S:
            return Move.STEP
        if len(begun) == len(acting):
            return Move.READ
        # replies that are asked for together begin together: all of them wait for their first audio
        return Move.READ if awaited and self._reads_in_a_row < PIECES_PER_START else Move.STEP

    def _has_spare_time(self, now_s: float) -> bool:
        """A piece of a transcript makes nobody late: every reply on a row, begun or not, has so
        much in hand that it needs no frame now. At most one piece falls between two frames, and
        none while somebody waits for a row.

        There is no exception for a transcript that has waited long: where streams never get ahead,
        it waits until they end.
        """
        if self.acting and (self._written or self.waiting):
            return False
        return all(slot.in_hand_s(now_s) >= SPARE_S for slot in self.speaking.values())

    def stepped(self) -> None:
        """One frame was made for every row that acts."""
        self._written = False
        self.even = not self.even
        self._steps_since_read += 1
        self._reads_in_a_row = 0

    def has_read(self) -> None:
        """A piece of a prompt was read."""
        self._steps_since_read = 0
        self._reads_in_a_row += 1

    def has_written(self) -> None:
        """A piece of a transcript was made."""
        self._written = True

    def wakes_in_s(self, now_s: float) -> float | None:
        """How long all streams can rest; None if nobody speaks."""
        in_hand = [slot.in_hand_s(now_s) for slot in self.speaking.values()]
        return max(min(in_hand) - self.run_ahead_s, 0.0) if in_hand else None
