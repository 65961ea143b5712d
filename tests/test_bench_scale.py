"""The simulation of a fleet: against Erlang's formulas, and small cases worked by hand."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chroma_plugin import cli
from chroma_plugin.bench import scale
from chroma_plugin.bench.erlang import calls_for_rows, erlang_b, erlang_c, erlangs_for
from chroma_plugin.bench.fleets import how_full, routers, table, tables
from chroma_plugin.bench.scale import ScalePlan, simulate
from chroma_plugin.errors import ConfigError

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
ONE_HOUR = ScalePlan(places=2, hours=1.0, warm_up_h=0.0, lengths="fixed", call_s=600.0)


# -- formulas ----------------------------------------------------------------------------------


def test_erlang_b_by_hand() -> None:
    assert erlang_b(1.0, 1) == pytest.approx(1 / 2)  # a / (1 + a)
    assert erlang_b(2.0, 2) == pytest.approx(2 / 5)  # (a^2/2) / (1 + a + a^2/2)
    assert erlang_b(2.0, 3) == pytest.approx((8 / 6) / (1 + 2 + 2 + 8 / 6))
    assert erlang_b(5.0, 0) == 1.0


def test_erlang_c_by_hand() -> None:
    assert erlang_c(0.5, 1) == pytest.approx(0.5)  # one place: the share of time it is taken
    assert erlang_c(1.0, 2) == pytest.approx(1 / 3)
    assert erlang_c(3.0, 3) == 1.0


def test_the_load_for_a_blocking_is_the_inverse() -> None:
    for places in (1, 8, 128, 10_240):
        for blocking in (0.001, 0.01, 0.5):
            most = erlangs_for(places, blocking)
            assert erlang_b(most, places) == pytest.approx(blocking, rel=1e-6)


def test_calls_that_share_rows() -> None:
    # Two rows, three calls that speak half of the time: all three at once is 1/8 of it.
    assert calls_for_rows(2, 0.5, 0.124) == 2
    assert calls_for_rows(2, 0.5, 0.126) == 3
    assert calls_for_rows(2, 0.5, 5 / 16) == 4  # of four, three or four: 5/16
    assert calls_for_rows(8, 0.4, 0.0) == 8
    assert calls_for_rows(4, 1e-9, 0.5) == 400  # there is an end


# -- by hand -----------------------------------------------------------------------------------


class Dice:
    """Chance that is none: what was drawn, in order; then nothing for a long time."""

    def __init__(self, draws: list[float]) -> None:
        self.draws = draws

    def expovariate(self, rate: float) -> float:
        return self.draws.pop(0) if self.draws else math.inf

    def random(self) -> float:
        return 0.0


def drawn(monkeypatch: pytest.MonkeyPatch, plan: ScalePlan, *draws: float) -> scale.ScaleResult:
    monkeypatch.setattr(scale.random, "Random", lambda seed: Dice(list(draws)))
    return simulate(plan)


def test_a_third_call_is_refused_and_a_later_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    # At 100, 200, 300 (both places taken) and 750 (the first left at 700); each stays 600 s.
    found = drawn(monkeypatch, ONE_HOUR, 100, 100, 100, 450)
    assert (found.calls, found.refused, found.in_vain) == (4, 1, 0)
    assert found.call_hours == pytest.approx(3 * 600 / 3600)
    assert (found.gpu_hours, found.most_gpus) == (1.0, 1)
    figures = found.figures(places=2, price=4.0)
    assert figures["blocking"] == 0.25
    assert figures["utilisation"] == 0.25  # half an hour of two places for an hour
    assert figures["price_per_call_hour"] == 8.0


def test_what_lies_before_the_hours_that_count_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = replace(ONE_HOUR, warm_up_h=0.1)  # 360 s
    found = drawn(monkeypatch, plan, 100, 100, 100, 450)
    assert (found.calls, found.refused) == (1, 0)
    assert found.call_hours == pytest.approx((340 + 440 + 600) / 3600)
    assert found.gpu_hours == pytest.approx(1.0)


def test_a_replica_is_started_drained_and_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls fill the first replica. At 110 s the autoscaler sees them, at 120 it is sure; the
    second replica is warm at 180 and takes the call of 190. That one ends at 790, the others at
    700 and 705: seen at 710, sure at 750; it drains until its call has ended."""
    plan = replace(
        ONE_HOUR, max_replicas=2, target_load=0.5, upscale_delay_s=10, downscale_delay_s=40,
        start_s=60,
    )  # fmt: skip
    found = drawn(monkeypatch, plan, 100, 5, 45, 40)  # 100, 105, 150 (refused), 190
    assert (found.calls, found.refused, found.most_gpus) == (4, 1, 2)
    assert found.gpu_hours == pytest.approx((3600 + 790 - 120) / 3600)


def test_who_loses_its_node_is_taken_up_elsewhere_or_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two replicas of two places fail at 1,000 s and never. Three calls from 900 on are spread two
    and one: the two that are cut find one place."""
    plan = replace(ONE_HOUR, min_replicas=2, max_replicas=2, node_mtbf_h=1.0, start_s=60)
    found = drawn(monkeypatch, plan, 1000, math.inf, 900, 10, 10)
    assert (found.calls, found.refused, found.cut, found.lost) == (3, 0, 2, 1)
    assert found.failures == 1
    assert found.call_hours == pytest.approx((600 + 600 + 80) / 3600)  # 920 to 1,000 was lost last
    assert found.gpu_hours == pytest.approx(2.0)  # another one started at once


def test_replicas_of_a_node_fail_together(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(
        ONE_HOUR, min_replicas=2, max_replicas=2, node_replicas=2, node_mtbf_h=1.0, start_s=60
    )
    found = drawn(monkeypatch, plan, 1000, math.inf, 900, 10)
    assert (found.cut, found.lost, found.failures) == (2, 2, 1)


# -- by chance ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("erlangs", "gpus"), [(6.0, 1), (13.0, 2)])
@pytest.mark.parametrize("lengths", ["exponential", "fixed"])
def test_a_fixed_fleet_is_erlang_b(erlangs: float, gpus: int, lengths: Any) -> None:
    """Whatever the lengths are, and as if all places were of one machine."""
    plan = ScalePlan(
        erlangs, places=8, min_replicas=gpus, max_replicas=gpus, lengths=lengths, hours=300
    )
    found = simulate(plan)
    assert found.blocking == pytest.approx(erlang_b(erlangs, 8 * gpus), rel=0.08)
    carried = erlangs * (1 - erlang_b(erlangs, 8 * gpus))
    assert found.call_hours / 300 == pytest.approx(carried, rel=0.02)
    assert found.in_vain == 0


def test_the_same_seed_gives_the_same_result() -> None:
    plan = ScalePlan(12.0, places=4, min_replicas=2, max_replicas=6, node_mtbf_h=5.0)
    assert simulate(plan) == simulate(plan)
    assert simulate(plan) != simulate(replace(plan, seed=1))


def test_drawing_two_refuses_in_vain() -> None:
    plan = ScalePlan(56.0, places=8, min_replicas=10, max_replicas=10, hours=12, router="two")
    found = simulate(plan)
    assert found.in_vain > 20
    assert simulate(replace(plan, router="fewest")).refused < found.refused / 5


def test_an_autoscaler_follows_the_day() -> None:
    fixed = ScalePlan(60.0, peak=1.9, places=8, min_replicas=16, max_replicas=16)
    scaled = replace(fixed, min_replicas=1, max_replicas=32)
    both = simulate(fixed), simulate(scaled)
    assert both[1].gpu_hours < 0.75 * both[0].gpu_hours
    assert both[1].most_gpus > 12
    assert both[1].blocking < 0.01


def test_a_slow_start_and_a_full_target_refuse_more() -> None:
    plan = ScalePlan(60.0, peak=1.9, places=8, min_replicas=1, max_replicas=32, target_load=0.9)
    at_once, slow = simulate(replace(plan, start_s=0)), simulate(replace(plan, start_s=900))
    assert slow.blocking > 1.2 * at_once.blocking
    assert slow.blocking > 5 * simulate(replace(plan, start_s=900, target_load=0.6)).blocking


def test_a_target_of_all_places_never_grows() -> None:
    """Calls beyond all places are refused, so no more than all places are ever seen."""
    plan = ScalePlan(30.0, places=8, max_replicas=8, target_load=1.0, hours=2)
    assert simulate(plan).most_gpus == 1
    assert simulate(replace(plan, target_load=0.95)).most_gpus > 4


def test_the_share_of_cut_calls_is_that_of_the_failing_nodes() -> None:
    plan = ScalePlan(
        40.0, places=8, min_replicas=8, max_replicas=8, node_replicas=2, node_mtbf_h=4.0,
        start_s=60.0, hours=200, seed=1,
    )  # fmt: skip
    found = simulate(plan)
    assert found.failures == pytest.approx(4 * 200 / 4.0, rel=0.2)
    assert found.cut == pytest.approx(found.failures * 40 / 4, rel=0.1)
    assert 0 < found.lost < 0.2 * found.cut


@pytest.mark.parametrize(
    "wrong",
    [
        {"erlangs": 0}, {"places": 0}, {"peak": 3.0}, {"min_replicas": 2}, {"target_load": 0.0},
        {"start_s": -1.0}, {"hours": math.nan},
    ],
)  # fmt: skip
def test_plans_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ScalePlan(**wrong)


# -- told --------------------------------------------------------------------------------------


def run(*arguments: object) -> str:
    done = CliRunner().invoke(cli.app, ["bench", "scale", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_prints_a_table_and_a_line() -> None:
    words = run("--calls", 6, "--places", 8, "--hours", 20, "--price", 2)
    line = json.loads(words.splitlines()[-1])
    assert line["bench"] == "scale"
    figures = line["figures"]
    assert figures["erlang_b"] == pytest.approx(0.121876)
    assert figures["gpu_hours"] == 20
    assert figures["price_per_call_hour"] == pytest.approx(40 / figures["call_hours"], rel=1e-3)
    assert line["settings"]["node_mtbf_h"] is None
    assert "price_per_call_hour" in words
    alone = run("--calls", 6, "--places", 8, "--hours", 20, "--most", 3, "--json")
    assert "erlang_b" not in json.loads(alone)["figures"]


def test_the_command_refuses_what_makes_no_sense() -> None:
    done = CliRunner().invoke(cli.app, ["bench", "scale", "--replicas", "3", "--most", "2"])
    assert done.exit_code == 2


def rows(text: str) -> set[str]:
    return set(re.findall(r"^\|.*\|$", text, re.MULTILINE))


def test_the_page_shows_what_is_simulated() -> None:
    """One row of the page; the next test has all of them."""
    assert rows(routers((0.6,))) <= rows(PAGE.read_text(encoding="utf-8"))
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.slow
@pytest.mark.timeout(900)  # 1.8 million calls: most of a minute, more on a busy machine
def test_the_page_shows_all_that_is_simulated() -> None:
    """`chroma-plugin bench scale --tables`, as its readers would run it."""
    assert rows(tables()) <= rows(PAGE.read_text(encoding="utf-8"))


def test_one_number_changes_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chroma_plugin.bench.fleets.SIMULATED_CALLS", 500)
    few, many = how_full(4, (1,)), how_full(64, (1,))
    assert "| 1 | 4 |" in few and "| 1 | 64 |" in many
