"""Steps added up."""

from __future__ import annotations

from chroma_plugin.engine.clock import STEP_BOUNDS_S, PartClock, StepTally


def test_steps_are_counted_by_their_bound() -> None:
    tally = StepTally()
    for ms in (1.0, 80.0, 80.1, 5000.0):
        tally.add(ms)
    tally.spend({"thinker": 2.0, "codec": 1.0})
    tally.spend({"codec": 3.0})
    totals = tally.totals()
    counts = dict(zip((*STEP_BOUNDS_S, None), totals.counts, strict=True))
    assert {bound: n for bound, n in counts.items() if n} == {0.01: 1, 0.08: 1, 0.09: 1, None: 1}
    assert totals.seconds == (1.0 + 80.0 + 80.1 + 5000.0) / 1000
    assert totals.parts_s == {"thinker": 0.002, "codec": 0.004}


def test_totals_stay_as_they_were() -> None:
    tally = StepTally()
    before = tally.totals()
    tally.add(20.0)
    tally.spend({"codec": 1.0})
    assert (sum(before.counts), before.parts_s) == (0, {})
    assert sum(tally.totals().counts) == 1


def test_a_clock_adds_up_a_part_that_comes_twice() -> None:
    clock = PartClock(cuda=False)
    for _ in range(2):
        with clock.part("depth"):
            pass
    with clock.part("codec"):
        pass
    parts = clock.read()
    assert set(parts) == {"depth", "codec"}
    assert 0 <= sum(parts.values()) <= clock.span_ms
