"""The scheduler by itself: no model, and a clock that the test moves."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chroma_plugin.engine.scheduler import Scheduler, Ticket


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


def test_the_batch_covers_the_highest_row_in_a_power_of_two() -> None:
    scheduler = Scheduler(rows=6)
    sizes = []
    for key in range(6):
        scheduler.submit(ticket(key))
        scheduler.admit(always)
        sizes.append(scheduler.batch)
    assert sizes == [1, 2, 4, 4, 6, 6]
    for key in (0, 1, 2, 3, 4):
        scheduler.withdraw(key)
    assert scheduler.batch == 6
    scheduler.withdraw(5)
    assert scheduler.batch == 0


class AnyOrder(RuleBasedStateMachine):
    """Replies come, start, end and are cancelled in any order."""

    @initialize(rows=st.integers(1, 5))
    def begin(self, rows: int) -> None:
        self.scheduler = Scheduler(rows)
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

    @rule()
    def step(self) -> None:
        if self.scheduler.speaking:
            self.scheduler.stepped()

    @rule(seconds=st.floats(0.0, 3.0))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        late = {t.key for t in self.scheduler.expire(self.now_s)}
        waiting = {t.key for t in self.scheduler.waiting}
        assert all(self.alive[key] < self.now_s for key in late)
        assert all(self.alive[key] >= self.now_s for key in waiting)
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
        covered = self.scheduler.batch
        assert all(row < covered for row in self.scheduler.speaking)


TestAnyOrder = AnyOrder.TestCase
