from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chroma_plugin.errors import ChromaError, ConfigError
from chroma_plugin.evaluation.latency import latency_table, read_bench, run_bench
from tests.evaluation.conftest import evaluate, refused

LINE: dict[str, Any] = {
    "bench": "latency",
    "device": "a processor",
    "size": "small",
    "settings": {"turns": 4, "reply_s": 2.0},
    "figures": {
        "first_byte_ms": {"p50": 70.0},
        "at_once_first_byte_ms": {"p50": 300.0},
        "queued_ms": {"p50": 40.0},
        "at_once_queued_ms": {"p50": 250.0},
        "frame_backbone_ms": 12.0,
        "frame_depth_ms": 16.0,
        "rtf": {"p50": 0.5},
    },
}


def test_the_articles_table() -> None:
    outcome = latency_table(LINE)
    figures = outcome.figures
    assert figures["article"]["total_ms"] == 146.87
    assert figures["heard_early"] == {
        "reasoner_ms": 40.0, "backbone_ms": 12.0, "decoder_ms": 16.0, "total_ms": 68.0, "rtf": 0.5,
    }  # fmt: skip
    assert figures["at_once"]["total_ms"] == 278.0
    assert figures["rtf_ratio_article_to_here"] == 0.86
    rows = {str(row[0]): list(row[1:]) for row in outcome.grids[0].rows}
    assert rows["Reasoner, ms"] == [119.12, 40.0, 250.0]
    assert rows["Decoder per frame, ms"] == [19.27, 16.0, 16.0]
    assert rows["first audio out, ms"] == [None, 70.0, 300.0]
    assert "a processor" in outcome.grids[0].title


def test_a_file_with_tables_before_its_line(tmp_path: Path) -> None:
    path = tmp_path / "run.txt"
    path.write_text(f"a table\n{json.dumps(LINE)}\n\n")
    assert read_bench(path) == LINE
    line = evaluate("latency", "--from", path, "--plot", tmp_path / "l.png")
    assert line["figures"]["heard_early"]["total_ms"] == 68.0
    assert (tmp_path / "l.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"bench": "load"}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match="does not end with a line of bench latency"):
        read_bench(path)
    assert "nothing to run" in refused("latency", "--from", path, "--size", "tiny")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_bench(tmp_path / "none")


def test_a_line_without_its_figures_is_refused() -> None:
    broken = LINE | {"figures": {k: v for k, v in LINE["figures"].items() if k != "rtf"}}
    with pytest.raises(ConfigError, match=r"no usable figure \(KeyError\('rtf'\)\)"):
        latency_table(broken)


def test_it_runs_the_benchmark_itself() -> None:
    line = evaluate(
        "latency", "--size", "tiny", "--device", "cpu", "--threads", 1, "--turns", 1,
        "--speech", 0.2, "--reply", 0.4, "--plain-turns", 1, "--json",
    )  # fmt: skip
    early = line["figures"]["heard_early"]
    assert early["total_ms"] > early["backbone_ms"] > 0 and early["rtf"] > 0
    assert line["settings"]["size"] == "tiny"


def test_a_benchmark_that_fails_says_why() -> None:
    with pytest.raises(ChromaError, match=r"failed \(2\).*"):
        run_bench(["--size", "huge"])
