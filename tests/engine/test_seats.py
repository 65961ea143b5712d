"""Rows of the thinker's cache, lent and taken back."""

from __future__ import annotations

from dataclasses import dataclass, field

from chroma_plugin.engine.dialogue import Dialogue
from chroma_plugin.engine.seats import Seats


@dataclass(eq=False)
class FakeCall:
    """What `Seats` looks at of a conversation."""

    listening: bool = False
    reply: object = None
    thinker_row: int | None = None
    dialogue: Dialogue = field(default_factory=lambda: Dialogue(embed=lambda ids: None))  # type: ignore[arg-type, return-value]

    @property
    def engaged(self) -> bool:
        return self.listening or self.reply is not None


def test_rows_are_lent_while_there_are_any() -> None:
    seats, calls = Seats(2), [FakeCall() for _ in range(3)]
    assert [seats.take(c) for c in calls] == [True, True, False]  # type: ignore[arg-type]
    assert [c.thinker_row for c in calls] == [0, 1, None]
    assert len(seats) == 2


def test_the_idlest_gives_way_to_one_that_is_spoken_to() -> None:
    seats, (a, b, c) = Seats(2), [FakeCall() for _ in range(3)]
    for call in (a, b, a):  # b was used longest ago
        seats.take(call)  # type: ignore[arg-type]
    b.dialogue.cached = 40
    c.listening = True
    assert seats.take(c)  # type: ignore[arg-type]
    assert (a.thinker_row, b.thinker_row, c.thinker_row) == (0, None, 1)
    assert b.dialogue.cached == 0
    assert seats.evictions == 1


def test_nobody_who_speaks_gives_way_and_a_listener_only_to_a_reply() -> None:
    seats = Seats(2)
    speaking, listening = FakeCall(reply="hello"), FakeCall(listening=True)
    other, asked = FakeCall(listening=True), FakeCall(reply="soon")
    seats.take(speaking), seats.take(listening)  # type: ignore[arg-type]
    assert not seats.take(other)  # type: ignore[arg-type]
    assert seats.take(asked)  # type: ignore[arg-type]
    assert listening.thinker_row is None and speaking.thinker_row == 0


def test_a_row_given_back_can_be_lent_again() -> None:
    seats, (a, b) = Seats(1), [FakeCall(), FakeCall()]
    seats.take(a)  # type: ignore[arg-type]
    seats.release(a)  # type: ignore[arg-type]
    seats.release(a)  # type: ignore[arg-type]
    assert seats.take(b) and b.thinker_row == 0  # type: ignore[arg-type]
