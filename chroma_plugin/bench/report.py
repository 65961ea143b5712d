"""What a benchmark says: figures, the facts beside them, a table, a picture, a line of JSON.

Knows nothing of engines.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

import chroma_plugin

if TYPE_CHECKING:
    import torch

PERCENTILES = (50, 95, 99)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The value below which so many percent lie, straight lines between neighbours; None of none.

    With few values the high percentiles are close to the largest one.
    """
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """p50, p95 and p99 of a figure, its largest value and how many there are."""
    figures = {f"p{percent}": rounded(percentile(values, percent)) for percent in PERCENTILES}
    return figures | {"max": rounded(max(values, default=None)), "count": len(values)}


def rounded(value: float | None, digits: int = 3) -> float | None:
    """To so many digits; None stays None."""
    return None if value is None else round(value, digits)


def ratio(above: float | None, below: float | None) -> float | None:
    """One figure by another; None if one of them is missing."""
    return round(above / below, 3) if above is not None and below else None


# -- facts -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Facts:
    """What a figure means nothing without."""

    commit: str | None
    version: str
    date: str
    device: str
    threads: int
    torch_version: str
    python: str
    dtype: str
    size: str
    weights: str
    parameters: int
    seed: int

    @classmethod
    def gather(cls, *, device: torch.device, **given: Any) -> Facts:
        """Looks at this machine and this working tree."""
        import torch

        cuda = device.type == "cuda"
        return cls(
            commit=_commit(),
            version=chroma_plugin.__version__,
            date=_now(),
            device=torch.cuda.get_device_name(device) if cuda else _processor(),
            threads=torch.get_num_threads(),
            torch_version=str(torch.__version__),
            python=platform.python_version(),
            **given,
        )


@dataclass(frozen=True, slots=True)
class ClientFacts:
    """The same of a run whose engine is in another process: what runs there is that one's to say.

    Attributes:
        server: its address.
    """

    commit: str | None
    version: str
    date: str
    device: str
    python: str
    server: str
    seed: int

    @classmethod
    def gather(cls, server: str, seed: int) -> ClientFacts:
        """Looks at this machine and this working tree."""
        python = platform.python_version()
        version = chroma_plugin.__version__
        return cls(_commit(), version, _now(), _processor(), python, server, seed)

    @property
    def size(self) -> str:
        """What is measured, in a picture's title."""
        return self.server


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _commit() -> str | None:
    """The commit of the package's sources, with a + if they were changed; None outside git."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        tracked = git("ls-files", "--", "../config.py")  # not a repository that only surrounds it
        changed = git("status", "--porcelain", "--", "..")
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(changed) if tracked else None
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# -- memory ----------------------------------------------------------------------------------


def resident_mb(pid: int | None = None) -> float:
    """Memory of a process now, in MB: this one's, and its peak where the system does not say, if
    none is named; 0 for another one that is gone."""
    try:
        pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, ValueError):
        return 0.0 if pid else peak_resident_mb()


def peak_resident_mb() -> float:
    """The most memory that this process ever had, in MB; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def memory(device: torch.device) -> dict[str, float]:
    """What this process holds, in MB."""
    held = {"rss_mb": round(resident_mb(), 1), "rss_peak_mb": round(peak_resident_mb(), 1)}
    if device.type == "cuda":
        import torch

        held["cuda_mb"] = round(torch.cuda.memory_allocated(device) / 1e6, 1)
        held["cuda_peak_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return held


def megabytes_free(device: torch.device) -> float:
    """What a device has left, in MB; infinity where the system does not say."""
    if device.type == "cuda":
        import torch

        return float(torch.cuda.mem_get_info(device)[0] / 1e6)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        return int(kilobytes) * 1024 / 1e6
    except (OSError, StopIteration, ValueError):
        return float("inf")


# -- the report ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a picture."""

    title: str
    x: Sequence[float]
    y: Sequence[float]

    @classmethod
    def of(cls, title: str, values: Sequence[float]) -> Curve:
        """A curve over 1, 2, 3, ..."""
        return cls(title, range(1, len(values) + 1), values)


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of a report."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    limit: float | None = None


@dataclass(slots=True)
class Report:
    """A benchmark's result.

    Attributes:
        bench: which one.
        facts: what it ran on.
        settings: what it was asked.
        figures: what it measured; a mapping with a p50 in it is a row of percentiles.
        memory: what the process held.
        violations: what should not have been.
        panels: what is drawn.
    """

    bench: str
    facts: Facts | ClientFacts
    settings: Mapping[str, Any]
    figures: dict[str, Any]
    memory: Mapping[str, float]
    violations: list[str] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)

    def line(self) -> str:
        """All of it but the pictures, as one line of JSON."""
        return json.dumps(
            {
                "bench": self.bench,
                **asdict(self.facts),
                "settings": dict(self.settings),
                "figures": self.figures,
                "memory": dict(self.memory),
                "violations": self.violations,
            }
        )

    def show(self, out: Console) -> None:
        """Prints facts and figures."""
        facts = asdict(self.facts)
        out.print(f"bench {self.bench}: " + ", ".join(f"{k} {v}" for k, v in facts.items()))
        spreads = {k: v for k, v in self.figures.items() if isinstance(v, dict) and "p50" in v}
        if spreads:
            table = Table("", *(f"p{p}" for p in PERCENTILES), "max", "count")
            for name, values in spreads.items():
                table.add_row(name, *(_written(value) for value in values.values()))
            out.print(table)
        table = Table("figure", "value")
        for name, value in {**self.figures, **self.memory}.items():
            if name not in spreads:
                table.add_row(name, _written(value))
        out.print(table)
        for violation in self.violations:
            out.print(f"violated: {violation}", style="red")

    def draw(self, path: Path) -> None:
        """Writes the panels as a PNG.

        Raises:
            ChromaError: matplotlib is missing, or the picture cannot be written.
        """
        from chroma_plugin.plot import require_matplotlib, save_figure

        count = max(len(self.panels), 1)
        figure = require_matplotlib()(figsize=(10.0, 3.2 * count), layout="constrained")
        figure.suptitle(f"{self.bench}, {self.facts.size}, {self.facts.device}")
        axes = figure.subplots(count, 1, squeeze=False)[:, 0]
        for ax, panel in zip(axes, self.panels, strict=False):
            for curve in panel.curves:
                ax.plot(curve.x, curve.y, marker=".", label=curve.title)
            if panel.limit is not None:
                ax.axhline(panel.limit, color="grey", linestyle="--", linewidth=1)
            ax.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
            ax.set_ylim(bottom=0)
            if any(curve.title for curve in panel.curves):
                ax.legend()
        save_figure(figure, path)


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_written(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "\n".join(_written(item) for item in value)
    return "-" if value is None else str(value)
