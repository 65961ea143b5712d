from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from chroma_plugin.errors import ChromaError
from chroma_plugin.evaluation import article
from chroma_plugin.evaluation.outcome import Bars, Grid, Outcome, _draw_bars, rounded, written


def outcome() -> Outcome:
    made = Outcome(
        "sim", {"model": "x"}, {"similarity": 0.5}, set_aside=[f"u{i}" for i in range(9)]
    )
    made.grids = [Grid("A table", ("name", "figure"), [("here", 0.51234), ("there", None)])]
    made.bars = [
        Bars(
            "A picture",
            "percent",
            ["a", "b", "c"],
            [20.0, None, 80.0],
            [(10.0, 30.0), None, None],
            [50.0, None, 90.0],
        )
    ]
    made.notes = ["A note."]
    return made


def test_a_line_of_json() -> None:
    line = json.loads(outcome().line())
    assert "\n" not in outcome().line()
    assert (line["eval"], line["figures"], len(line["set_aside"])) == (
        "sim",
        {"similarity": 0.5},
        9,
    )
    with pytest.raises(ValueError, match="JSON"):
        Outcome("sim", {}, {"similarity": float("nan")}).line()


def test_a_table() -> None:
    said = io.StringIO()
    outcome().show(Console(file=said, width=100, markup=False))
    for part in ("A table", "0.512", "there", "-", "set aside: u4", "... and 4 more", "A note."):
        assert part in said.getvalue()
    assert "u5" not in said.getvalue()
    assert [written(x) for x in (12.345, 3, None, "x")] == ["12.35", "3", "-", "x"]
    assert (rounded(1 / 3, 2), rounded(None)) == (0.33, None)


def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    outcome().draw(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ChromaError, match="cannot be written"):
        outcome().draw(tmp_path / "none" / "a.png")


def test_a_bar_that_is_wanted_is_drawn() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    _draw_bars(axes, outcome().bars[0])
    assert [list(line.get_ydata()) for line in axes.lines if line.get_linestyle() == "--"] == [
        [50.0, 50.0],
        [90.0, 90.0],
    ]


def test_the_articles_gain() -> None:
    gain = article.relative_gain(article.SIMILARITY, article.HUMAN_SIMILARITY)
    assert round(100 * gain, 2) == 10.96
    parts = article.LATENCY
    total = parts["reasoner_ms"] + parts["backbone_ms"] + parts["decoder_ms"]
    assert total == pytest.approx(parts["total_ms"])
    rtf = article.REPLY_TOOK_S / article.REPLY_S
    assert rtf == pytest.approx(parts["rtf"], abs=0.005)
