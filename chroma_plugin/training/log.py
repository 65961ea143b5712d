"""The figures of a run: one JSON object a line, and a picture of their curves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOT_DRAWN = {"step", "minutes", "fraction", "rate"}


class Log:
    """The file that a run writes its figures to.

    Args:
        path: `log.jsonl`; the picture lies beside it as a `.png` of the same name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def clear(self) -> None:
        """Empties it, for a run that begins."""
        self.path.write_text("", encoding="utf-8")

    def cut(self, step: int) -> None:
        """Drops lines after a step, and one that was cut short, for a run that goes on from it."""
        kept = [entry for entry in self.entries() if entry["step"] <= step]
        self.path.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")

    def write(self, entry: Mapping[str, Any]) -> None:
        """Appends a line: `step`, `minutes`, `fraction` and figures, or `eval` with figures."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def entries(self) -> list[dict[str, Any]]:
        """Every whole line."""
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self._exists() else []:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and "step" in entry:
                found.append(entry)
        return found

    def curves(self) -> dict[str, tuple[list[int], list[float]]]:
        """Steps and values of each figure by its name; those of evaluations as `eval name`."""
        curves: dict[str, tuple[list[int], list[float]]] = {}
        for entry in self.entries():
            figures = {name: entry[name] for name in entry.keys() - NOT_DRAWN - {"eval"}}
            figures |= {f"eval {name}": value for name, value in entry.get("eval", {}).items()}
            for name, value in figures.items():
                steps, values = curves.setdefault(name, ([], []))
                steps.append(entry["step"])
                values.append(value)
        return dict(sorted(curves.items()))

    def draw(self) -> bool:
        """Draws the curves as a PNG beside the log.

        Returns:
            Whether there is a picture: matplotlib may be missing, or the log empty.
        """
        curves = self.curves()
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return False
        if not curves:
            return False
        rows = -(-len(curves) // 4)
        figure = Figure(figsize=(14.0, 2.4 * rows), layout="constrained")
        axes = list(figure.subplots(rows, 4, squeeze=False).flat)
        for axis, (name, (steps, values)) in zip(axes, curves.items(), strict=False):
            axis.plot(steps, values, marker="." if name.startswith("eval") else None)
            axis.set_title(name, fontsize=9)
            axis.tick_params(labelsize=7)
        for axis in axes[len(curves) :]:
            axis.set_axis_off()
        figure.savefig(self.path.with_suffix(".png"), dpi=90)
        return True

    def _exists(self) -> bool:
        return self.path.exists()
