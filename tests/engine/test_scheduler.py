"""The scheduler by itself: no model, and a clock that the test moves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chroma_plugin.engine.scheduler import (
    FRAME_S,
    PIECES_PER_START,
    SPARE_S,
    STEPS_PER_PIECE,
    Move,
    Scheduler,
    Slot,
    Ticket,
)


def ticket(key: object, deadline_s: float = 10.0) -> Ticket:
    return Ticket(key, asked_s=0.0, deadline_s=deadline_s)


def always(_: Ticket) -> bool:
    return True


def test_the_lowest_rows_go_to_those_who_waited_longest() -> None:
    scheduler = Scheduler(rows=2)
    for key in "abc":
        scheduler.submit(ticket(key))
    given = scheduler.admit(always)
    assert [(s.row, s.ticket.key) for s in given] == [(0, "a"), (1, "b")]
    assert [t.key for t in scheduler.waiting] == ["c"]
    scheduler.release(given[0])
    assert [(s.row, s.ticket.key) for s in scheduler.admit(always)] == [(0, "c")]


def test_nothing_starts_on_an_odd_step() -> None:
    scheduler = Scheduler(rows=2)
    scheduler.submit(ticket("a"))
    scheduler.admit(always)
    scheduler.stepped()
    scheduler.submit(ticket("b"))
    assert scheduler.admit(always) == []
    scheduler.stepped()
    assert [s.ticket.key for s in scheduler.admit(always)] == ["b"]


def test_an_empty_batch_starts_on_an_even_step_again() -> None:
    scheduler = Scheduler(rows=1)
    scheduler.submit(ticket("a"))
    (slot,) = scheduler.admit(always)
    scheduler.stepped()
    scheduler.release(slot)
    scheduler.submit(ticket("b"))
    assert scheduler.admit(always)


def test_who_is_not_ready_is_passed_over_and_keeps_its_place() -> None:
    scheduler = Scheduler(rows=1)
    for key in "ab":
        scheduler.submit(ticket(key))
    assert [s.ticket.key for s in scheduler.admit(lambda t: t.key == "b")] == ["b"]
    assert [t.key for t in scheduler.waiting] == ["a"]


def test_deadlines_are_kept() -> None:
    scheduler = Scheduler(rows=1)
    scheduler.submit(ticket("speaks"))
    scheduler.admit(always)
    scheduler.submit(ticket("a", deadline_s=1.0))
    scheduler.submit(ticket("b", deadline_s=3.0))
    assert scheduler.expire(1.0) == []
    assert [t.key for t in scheduler.expire(2.0)] == ["a"]
    assert [t.key for t in scheduler.waiting] == ["b"]


def test_withdrawing_ends_waiting_and_speaking() -> None:
    scheduler = Scheduler(rows=1)
    for key in "ab":
        scheduler.submit(ticket(key))
    scheduler.admit(always)
    assert scheduler.withdraw("b") is None and not scheduler.waiting
    slot = scheduler.withdraw("a")
    assert slot is not None and slot.row == 0 and not scheduler.speaking
    assert scheduler.withdraw("nobody") is None


def test_what_became_of_replies_is_counted() -> None:
    scheduler = Scheduler(2)
    assert (scheduler.finished, scheduler.cancelled, scheduler.expired) == (0, 0, 0)
    for key in "abcd":
        scheduler.submit(ticket(key, deadline_s=5))
    a, _ = scheduler.admit(always)
    scheduler.withdraw("c")  # in line
    scheduler.withdraw("c")  # gone
    scheduler.expire(6)  # d
    scheduler.release(a)
    scheduler.withdraw("b")  # on its row
    assert (scheduler.finished, scheduler.cancelled, scheduler.expired) == (1, 2, 1)


def test_underruns_are_counted_beyond_the_end_of_a_reply() -> None:
    scheduler = Scheduler(2)
    a, b = speaking(scheduler, "a", "b")
    for slot, late_s in ((a, 1.0), (b, 0.05)):
        slot.sent(0.08, now_s=0)
        slot.sent(0.08, now_s=late_s)
    assert scheduler.underruns == 1
    scheduler.release(a)
    assert scheduler.underruns == 1
    b.sent(0.08, now_s=3)
    assert scheduler.underruns == 2
    scheduler.withdraw("b")
    assert scheduler.underruns == 2


def test_the_batch_covers_the_highest_row_in_a_power_of_two() -> None:
    scheduler = Scheduler(rows=6)
    sizes = []
    for key in range(6):
        scheduler.submit(ticket(key))
        scheduler.admit(always)
        scheduler.begin_beat(0.0)
        sizes.append(scheduler.batch)
    assert sizes == [1, 2, 4, 4, 6, 6]
    for key in (0, 1, 2, 3, 4):
        scheduler.withdraw(key)
    assert scheduler.batch == 6
    scheduler.withdraw(5)
    assert scheduler.batch == 0


def speaking(scheduler: Scheduler, *keys: str) -> list[Slot]:
    for key in keys:
        scheduler.submit(ticket(key))
    slots = scheduler.admit(always)
    scheduler.begin_beat(0.0)
    return slots


def test_a_stream_far_enough_ahead_pauses_for_whole_beats() -> None:
    scheduler = Scheduler(rows=2, run_ahead_s=1.0)
    first, second = speaking(scheduler, "a", "b")
    first.sent(1.2, now_s=0.0)
    second.sent(0.3, now_s=0.0)
    scheduler.stepped()
    scheduler.begin_beat(0.0)  # in the middle of a beat: nothing changes
    assert scheduler.acting == [first, second]
    scheduler.stepped()
    scheduler.begin_beat(0.0)
    assert scheduler.acting == [second]
    scheduler.begin_beat(0.3)  # its playback has caught up
    assert scheduler.acting == [first, second]


def test_a_stream_that_ran_dry_goes_on_from_there() -> None:
    """It is no longer in a hurry for ever, which would hold up everybody's prompts."""
    scheduler = Scheduler(rows=1)
    (slot,) = speaking(scheduler, "a")
    slot.sent(0.08, now_s=1.0)
    assert slot.underruns == 0 and slot.in_hand_s(1.0) == pytest.approx(0.08)
    slot.sent(0.32, now_s=5.0)
    assert slot.underruns == 1
    assert slot.in_hand_s(5.0) == pytest.approx(0.32)
    assert scheduler.next_move(5.0, unread=True) is Move.READ


def test_when_all_are_ahead_nothing_is_done_until_one_needs_more() -> None:
    scheduler = Scheduler(rows=1, run_ahead_s=1.0)
    (slot,) = speaking(scheduler, "a")
    assert scheduler.wakes_in_s(0.0) == 0.0  # nothing of it has left yet
    slot.sent(1.5, now_s=0.0)
    scheduler.begin_beat(0.0)
    assert scheduler.next_move(0.0, unread=False) is Move.REST
    assert scheduler.next_move(0.0, unread=True) is Move.READ
    assert scheduler.wakes_in_s(0.2) == pytest.approx(0.3)
    assert Scheduler(rows=1).wakes_in_s(0.0) is None


def test_prompts_wait_for_a_stream_that_runs_dry_but_not_for_ever() -> None:
    scheduler = Scheduler(rows=1)
    (slot,) = speaking(scheduler, "a")
    assert scheduler.next_move(0.0, unread=True) is Move.STEP  # its first audio is awaited
    slot.sent(1.0, now_s=0.0)
    assert scheduler.next_move(0.0, unread=True) is Move.READ
    assert scheduler.next_move(0.95, unread=True) is Move.STEP
    for _ in range(STEPS_PER_PIECE):
        assert scheduler.next_move(2.0, unread=True) is Move.STEP
        scheduler.stepped()
    assert scheduler.next_move(2.0, unread=True) is Move.READ
    scheduler.has_read()
    assert scheduler.next_move(2.0, unread=True) is Move.STEP


def test_replies_that_are_asked_for_together_begin_together() -> None:
    """Nobody who has begun runs dry for it, and whoever has a row does not wait for ever."""
    scheduler = Scheduler(rows=8)
    speaking(scheduler, "a")
    assert scheduler.has_room
    for _ in range(PIECES_PER_START):
        assert scheduler.next_move(0.0, unread=True, awaited=True) is Move.READ
        assert scheduler.next_move(0.0, unread=True) is Move.STEP  # a listener's prompt can wait
        scheduler.has_read()
    assert scheduler.next_move(0.0, unread=True, awaited=True) is Move.STEP
    scheduler.stepped()
    scheduler.stepped()
    (a,) = scheduler.acting
    a.sent(0.08, now_s=0.0)
    assert scheduler.next_move(0.0, unread=True, awaited=True) is Move.STEP


@given(
    streams=st.integers(1, 8),
    step_ms=st.floats(1.0, 30.0),
    piece_ms=st.floats(1.0, 40.0),
    pieces=st.integers(0, 60),
)
def test_a_long_prompt_makes_nobody_stutter(
    streams: int, step_ms: float, piece_ms: float, pieces: int
) -> None:
    """As long as a device can do eight frames and a piece in eight frames' time, no stream runs
    dry, and the prompt is read to its end."""
    scheduler = Scheduler(rows=streams, run_ahead_s=2.0)
    slots = speaking(scheduler, *map(str, range(streams)))
    now_s = 0.0
    for _ in range(2000):
        scheduler.begin_beat(now_s)
        move = scheduler.next_move(now_s, unread=pieces > 0)
        if move is Move.READ:
            pieces -= 1
            now_s += piece_ms / 1000
            scheduler.has_read()
        elif move is Move.STEP:
            now_s += step_ms / 1000
            for slot in scheduler.acting:
                slot.sent(FRAME_S, now_s)
            scheduler.stepped()
        else:
            now_s += max(scheduler.wakes_in_s(now_s) or 0.0, 0.001)
        assert all(slot.in_hand_s(now_s) > -1e-9 for slot in slots if slot.first_out_s is not None)
    assert pieces == 0


# -- transcripts -----------------------------------------------------------------------------


def test_a_transcript_waits_for_every_prompt_and_for_nobody_else_while_nobody_speaks() -> None:
    scheduler = Scheduler(rows=1)
    assert scheduler.next_move(0.0, unread=False, unwritten=True) is Move.WRITE
    assert scheduler.next_move(0.0, unread=True, unwritten=True) is Move.READ
    for _ in range(3):  # nobody makes frames: one after another
        scheduler.has_written()
        assert scheduler.next_move(0.0, unread=False, unwritten=True) is Move.WRITE
    assert scheduler.next_move(0.0, unread=False) is Move.REST


def test_a_piece_of_a_transcript_needs_every_stream_well_ahead() -> None:
    scheduler = Scheduler(rows=2, run_ahead_s=1.0)
    first, second = speaking(scheduler, "a", "b")

    def move(now_s: float) -> Move:
        return scheduler.next_move(now_s, unread=False, unwritten=True)

    assert move(0.0) is Move.STEP
    first.sent(2.0, now_s=0.0)
    assert move(0.0) is Move.STEP  # the other one waits for its first audio
    second.sent(SPARE_S + 0.05, now_s=0.0)
    assert move(0.04) is Move.WRITE
    assert move(0.06) is Move.STEP
    assert move(5.0) is Move.STEP  # both ran dry


def test_at_most_one_piece_of_a_transcript_falls_between_two_frames() -> None:
    scheduler = Scheduler(rows=1)
    (slot,) = speaking(scheduler, "a")
    slot.sent(100.0, now_s=0.0)
    for _ in range(5):
        assert scheduler.next_move(0.0, unread=False, unwritten=True) is Move.WRITE
        scheduler.has_written()
        assert scheduler.next_move(0.0, unread=False, unwritten=True) is Move.STEP
        scheduler.stepped()


def test_a_reply_in_line_goes_before_any_transcript() -> None:
    scheduler = Scheduler(rows=1, run_ahead_s=1.0)
    (slot,) = speaking(scheduler, "a")
    scheduler.submit(ticket("b"))
    slot.sent(0.9, now_s=0.0)
    assert scheduler.next_move(0.0, unread=False, unwritten=True) is Move.STEP
    slot.sent(0.9, now_s=0.0)
    scheduler.begin_beat(0.0)  # it pauses: the device would do nothing
    assert scheduler.next_move(0.0, unread=False, unwritten=True) is Move.WRITE


@given(
    streams=st.integers(1, 8),
    step_ms=st.floats(1.0, 35.0),
    piece_ms=st.floats(1.0, 280.0),
    pieces=st.integers(0, 60),
    run_ahead_s=st.sampled_from([0.5, 2.0, math.inf]),
)
def test_transcripts_make_nobody_stutter_and_are_made(
    streams: int, step_ms: float, piece_ms: float, pieces: int, run_ahead_s: float
) -> None:
    """As long as a step takes half a frame's time and a piece less than what is spare."""
    scheduler = Scheduler(rows=streams, run_ahead_s=run_ahead_s)
    slots = speaking(scheduler, *map(str, range(streams)))
    now_s = 0.0
    for _ in range(2000):
        scheduler.begin_beat(now_s)
        move = scheduler.next_move(now_s, unread=False, unwritten=pieces > 0)
        if move is Move.WRITE:
            assert all(slot.in_hand_s(now_s) >= SPARE_S for slot in slots)
            pieces -= 1
            now_s += piece_ms / 1000
            scheduler.has_written()
        elif move is Move.STEP:
            now_s += step_ms / 1000
            for slot in scheduler.acting:
                slot.sent(FRAME_S, now_s)
            scheduler.stepped()
        else:
            assert not pieces
            now_s += max(scheduler.wakes_in_s(now_s) or 0.0, 0.001)
        assert all(slot.in_hand_s(now_s) > -1e-9 for slot in slots if slot.first_out_s is not None)
    assert pieces == 0


@given(streams=st.integers(1, 4), step_ms=st.floats(80.0, 200.0))
def test_where_nobody_gets_ahead_a_transcript_waits_until_they_end(
    streams: int, step_ms: float
) -> None:
    scheduler = Scheduler(rows=streams)
    slots = speaking(scheduler, *map(str, range(streams)))
    now_s = 0.0
    for _ in range(200):
        scheduler.begin_beat(now_s)
        assert scheduler.next_move(now_s, unread=False, unwritten=True) is Move.STEP
        now_s += step_ms / 1000
        for slot in slots:
            slot.sent(FRAME_S, now_s)
        scheduler.stepped()
    for slot in slots:
        scheduler.release(slot)
    assert scheduler.next_move(now_s, unread=False, unwritten=True) is Move.WRITE


class AnyOrder(RuleBasedStateMachine):
    """Replies come, start, end and are cancelled in any order."""

    @initialize(rows=st.integers(1, 5))
    def begin(self, rows: int) -> None:
        self.scheduler = Scheduler(rows, run_ahead_s=0.5)
        self.next_key, self.now_s = 0, 0.0
        self.alive: dict[int, float] = {}  # submitted and not ended: its deadline

    @rule(patience_s=st.floats(0.0, 5.0))
    def submit(self, patience_s: float) -> None:
        self.alive[self.next_key] = self.now_s + patience_s
        self.scheduler.submit(Ticket(self.next_key, self.now_s, self.now_s + patience_s))
        self.next_key += 1

    @rule()
    def admit(self) -> None:
        line = [t.key for t in self.scheduler.waiting]
        free = self.scheduler.rows - len(self.scheduler.speaking)
        given = [s.ticket.key for s in self.scheduler.admit(always)]
        wanted = line[:free] if self.scheduler.even else []
        assert given == wanted  # first come, first served: nobody is overtaken

    @rule(sent=st.integers(0, 4))
    def step(self, sent: int) -> None:
        was = self.scheduler.acting
        self.scheduler.begin_beat(self.now_s)
        if not self.scheduler.even:
            assert self.scheduler.acting == was  # nobody joins in the middle of a beat
        for slot in self.scheduler.acting:
            slot.sent(sent * 0.08, self.now_s)
        if self.scheduler.acting:
            self.scheduler.stepped()

    @rule(seconds=st.floats(0.0, 3.0))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        full = len(self.scheduler.speaking) == self.scheduler.rows
        late = {t.key for t in self.scheduler.expire(self.now_s)}
        waiting = {t.key for t in self.scheduler.waiting}
        assert all(self.alive[key] < self.now_s for key in late)
        assert all(self.alive[key] >= self.now_s for key in waiting) if full else not late
        for key in late:
            del self.alive[key]

    @rule(which=st.integers(0, 40))
    def cancel(self, which: int) -> None:
        slot = self.scheduler.withdraw(which)
        assert slot is None or slot.ticket.key == which
        self.alive.pop(which, None)

    @rule(row=st.integers(0, 4))
    def end(self, row: int) -> None:
        slot = self.scheduler.speaking.get(row)
        if slot is not None:
            self.scheduler.release(slot)
            del self.alive[slot.ticket.key]

    @invariant()
    def everyone_is_in_one_place_and_no_row_has_two(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        waiting = [t.key for t in self.scheduler.waiting]
        speaking = [s.ticket.key for s in self.scheduler.speaking.values()]
        assert sorted(waiting + speaking) == sorted(self.alive)
        assert all(0 <= row < self.scheduler.rows for row in self.scheduler.speaking)
        assert all(slot.row == row for row, slot in self.scheduler.speaking.items())
        assert all(slot.row < self.scheduler.batch for slot in self.scheduler.acting)


TestAnyOrder = AnyOrder.TestCase
