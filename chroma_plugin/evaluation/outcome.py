"""What an evaluation says: figures, tables, a picture, a line of JSON. Knows nothing of engines."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import chroma_plugin

SHOWN_ASIDE = 5
"""Reasons that are printed; all of them are in the JSON."""


Cell = str | float | int | None


@dataclass(frozen=True, slots=True)
class Grid:
    """A table.

    Attributes:
        title: what stands above it.
        columns: their heads.
        rows: cells; None is a figure that there is none of.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, slots=True)
class Bars:
    """A picture: bars side by side, each with its interval.

    Attributes:
        title: what stands above it.
        unit: what the height is.
        names: of the bars.
        values: their heights; None leaves a gap.
        intervals: low and high of each, or None; empty if there are none at all.
        wanted: the height that each should reach, or None; empty if there are none at all.
    """

    title: str
    unit: str
    names: Sequence[str]
    values: Sequence[float | None]
    intervals: Sequence[tuple[float, float] | None] = ()
    wanted: Sequence[float | None] = ()


@dataclass(slots=True)
class Outcome:
    """An evaluation's result.

    Attributes:
        name: which one.
        settings: what it was asked.
        figures: what it found; numbers, texts, lists and mappings of them.
        grids: the tables.
        bars: what is drawn.
        set_aside: what could not be judged, and why, one line each.
        notes: what a reader of the tables should know.
    """

    name: str
    settings: Mapping[str, Any]
    figures: dict[str, Any]
    grids: list[Grid] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def line(self) -> str:
        """All of it but tables and pictures, as one line of JSON."""
        return json.dumps(
            {
                "eval": self.name,
                "version": chroma_plugin.__version__,
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "python": platform.python_version(),
                "settings": dict(self.settings),
                "figures": self.figures,
                "set_aside": self.set_aside,
            },
            allow_nan=False,
        )

    def show(self, out: Console) -> None:
        """Prints the tables, what was set aside, and the notes."""
        for grid in self.grids:
            table = Table(*grid.columns, title=grid.title, title_justify="left")
            for row in grid.rows:
                table.add_row(*(written(cell) for cell in row))
            out.print(table)
        for reason in self.set_aside[:SHOWN_ASIDE]:
            out.print(f"set aside: {reason}", style="yellow")
        if len(self.set_aside) > SHOWN_ASIDE:
            out.print(f"... and {len(self.set_aside) - SHOWN_ASIDE} more", style="yellow")
        for note in self.notes:
            out.print(note)

    def draw(self, path: Path) -> None:
        """Writes the bars as a PNG.

        Raises:
            ChromaError: matplotlib is missing, or the picture cannot be written.
        """
        from chroma_plugin.plot import require_matplotlib, save_figure

        count = max(len(self.bars), 1)
        figure = require_matplotlib()(figsize=(9.0, 3.6 * count), layout="constrained")
        figure.suptitle(f"eval {self.name}")
        one_unit = len({bars.unit for bars in self.bars}) == 1  # then heights may be compared
        axes = figure.subplots(count, 1, squeeze=False, sharey=one_unit)[:, 0]
        for ax, bars in zip(axes, self.bars, strict=False):
            _draw_bars(ax, bars)
        save_figure(figure, path)


def written(cell: Cell) -> str:
    """A cell as it is printed: three digits of what is small, two behind the point of the rest."""
    if isinstance(cell, float):
        return f"{cell:.3f}" if abs(cell) < 10 else f"{cell:.2f}"
    return "-" if cell is None else str(cell)


def rounded(value: float | None, digits: int = 4) -> float | None:
    """To so many digits; None stays None."""
    return None if value is None else round(value, digits)


def _draw_bars(ax: Any, bars: Bars) -> None:
    intervals = bars.intervals or [None] * len(bars.names)
    for place, (value, interval) in enumerate(zip(bars.values, intervals, strict=True)):
        if value is None:
            continue
        ax.bar(place, value, width=0.6, color=f"C{place}")
        if interval is not None:
            below, above = max(value - interval[0], 0.0), max(interval[1] - value, 0.0)
            ax.errorbar(place, value, yerr=[[below], [above]], color="black", capsize=4)
    for place, wanted in enumerate(bars.wanted):
        if wanted is not None:
            ax.plot([place - 0.4, place + 0.4], [wanted, wanted], color="black", linestyle="--")
    ax.set_xticks(range(len(bars.names)), bars.names)
    ax.set(title=bars.title, ylabel=bars.unit)
