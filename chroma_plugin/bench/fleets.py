"""The tables of docs/scale.md: how full fleets may be, what days cost, what routers refuse.

One number, the places of a GPU, changes all of them. Every row says how many calls were simulated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace

from rich.console import Console
from rich.table import Table

import chroma_plugin
from chroma_plugin.bench.erlang import erlang_b, erlangs_for
from chroma_plugin.bench.scale import ScalePlan, simulate

FLEETS = (1, 2, 8, 80)
"""GPUs of the first table."""
SIMULATED_CALLS = 200_000
"""In each row of the first table."""


def report(plan: ScalePlan, price: float, out: Console) -> str:
    """Simulates a plan, shows its figures, and gives them as a line of JSON.

    Args:
        plan: the fleet and its callers.
        price: of an hour of one GPU.
        out: where the table goes.
    """
    figures = simulate(plan).figures(plan.places, price)
    if plan.min_replicas == plan.max_replicas and plan.peak == 1:
        total = plan.places * plan.min_replicas
        figures["erlang_b"] = round(erlang_b(plan.erlangs, total), 6)
    shown = Table("figure", "value")
    for name, value in figures.items():
        shown.add_row(name, "-" if value is None else f"{value:,}")
    out.print(shown)
    settings = asdict(plan)
    if math.isinf(plan.node_mtbf_h):
        settings["node_mtbf_h"] = None  # JSON knows no infinity
    about = {"bench": "scale", "version": chroma_plugin.__version__, "seed": plan.seed}
    return json.dumps(about | {"settings": settings, "figures": figures})


def tables(places: int = 128, price: float = 3.0, *, seed: int = 0) -> str:
    """All tables, as Markdown.

    Args:
        places: calls that one GPU takes.
        price: of an hour of one GPU.
        seed: of all chance.
    """
    return "\n\n".join(
        (how_full(places, seed=seed), days(places, price, seed=seed), routers(seed=seed))
    )


def how_full(places: int, fleets: Sequence[int] = FLEETS, *, seed: int = 0) -> str:
    """Calls that a fixed number of GPUs may carry, by Erlang-B; and the same simulated."""
    rows = []
    for gpus in fleets:
        total = gpus * places
        most = erlangs_for(total, 0.001)
        at_most = erlangs_for(total, 0.01)
        hours = SIMULATED_CALLS / at_most * 300 / 3600
        plan = ScalePlan(
            at_most,
            places=places,
            min_replicas=gpus,
            max_replicas=gpus,
            hours=hours,
            seed=seed,
        )
        found = simulate(plan)
        rows.append(
            (
                f"{gpus:,}",
                f"{total:,}",
                f"{most:,.0f} ({most / total:.0%})",
                f"{at_most:,.0f} ({at_most / total:.0%})",
                f"{found.blocking:.2%} of {found.calls:,}",
                f"{erlang_b(total, total):.1%}",
            )
        )
    titles = (
        "GPUs",
        "places",
        "calls at once, 0.1 % refused",
        "calls at once, 1 % refused",
        "the latter, simulated",
        "refused if as many are wanted as there are places",
    )
    return table(titles, rows)


def days(places: int, price: float, *, calls: int = 1000, seed: int = 0) -> str:
    """A day with a wave of calls: a fixed fleet and the autoscaler, one fault at a time."""
    wave = ScalePlan(calls, peak=1.8, call_s=600.0, places=places, seed=seed)
    most = -(-int(calls * wave.peak * 1.1) // places)  # its highest, and a tenth
    fixed = replace(wave, min_replicas=most, max_replicas=most)
    scaled = replace(wave, min_replicas=2, max_replicas=2 * most)
    nodes = replace(scaled, node_replicas=8, node_mtbf_h=12.0)
    plans = {
        f"fixed, {most} GPUs": fixed,
        "scaled at 80 %": scaled,
        "scaled at 95 %": replace(scaled, target_load=0.95),
        "scaled at 80 %, warm after 10 min": replace(scaled, start_s=600.0),
        "scaled at 95 %, warm after 10 min": replace(scaled, start_s=600.0, target_load=0.95),
        "scaled at 80 %, nodes of 8 fail every 12 h": nodes,
    }
    rows = []
    for name, plan in plans.items():
        found = simulate(plan)
        figures = found.figures(places, price)
        rows.append(
            (
                name,
                f"{found.blocking:.3%}",
                f"{found.cut:,} ({found.lost:,})",
                f"{figures['utilisation']:.0%}",
                f"{found.most_gpus}",
                f"{found.gpu_hours:,.0f}",
                f"{figures['price_per_call_hour']:.3f}",
            )
        )
    titles = (
        f"{calls:,} calls on average, {calls * wave.peak:,.0f} at noon",
        "refused",
        "cut (and not taken up)",
        "places talked in",
        "most GPUs",
        "GPU hours a day",
        f"price of an hour of call, at {price:.2f} a GPU hour",
    )
    return table(titles, rows)


def routers(shares: Sequence[float] = (0.6, 0.7, 0.8), *, seed: int = 0) -> str:
    """What is refused in vain if not all replicas are looked at; ten of eight places each."""
    rows = []
    for share in shares:
        plan = ScalePlan(
            80 * share, places=8, min_replicas=10, max_replicas=10, hours=72, seed=seed
        )
        fewest, two = simulate(plan), simulate(replace(plan, router="two"))
        rows.append(
            (
                f"{share:.0%}",
                f"{erlang_b(80 * share, 80):.3%}",
                f"{fewest.blocking:.3%}",
                f"{two.blocking:.3%}",
                f"{two.in_vain:,} of {two.refused:,}",
            )
        )
    titles = (
        "calls by places",
        "refused, Erlang-B",
        "fewest calls first",
        "the emptier of two",
        "in vain",
    )
    return table(titles, rows)


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
