"""The article's latency table, from a line of `chroma-plugin bench latency`.

The article adds what each part takes until the first token: the Reasoner once, the Backbone and
the Decoder one frame each. Ours are put together in the same way, for a question heard while it is
spoken and for one that comes whole at its end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chroma_plugin.errors import ChromaError, ConfigError
from chroma_plugin.evaluation import article
from chroma_plugin.evaluation.outcome import Bars, Cell, Grid, Outcome, rounded

PARTS = {"reasoner_ms": "Reasoner", "backbone_ms": "Backbone", "decoder_ms": "Decoder"}
FACTS = ("device", "dtype", "size", "weights", "parameters", "commit", "torch_version", "threads")
RUN_S = 3600.0


def read_bench(path: Path) -> dict[str, Any]:
    """The line of JSON that a benchmark ended with: the last line of a file.

    Raises:
        ConfigError: the file cannot be read, or ends with no line of `bench latency`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from error
    return _line(text, str(path))


def run_bench(options: Sequence[str]) -> dict[str, Any]:
    """Runs `chroma-plugin bench latency` with these options in a process of its own.

    Raises:
        ChromaError: it failed; says what it said.
    """
    command = [sys.executable, "-m", "chroma_plugin.cli", "bench", "latency", *options, "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S)
    except subprocess.TimeoutExpired as error:
        raise ChromaError(f"bench latency took more than {RUN_S:g} s.") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise ChromaError(f"bench latency failed ({done.returncode}): {said[-1]}")
    return _line(done.stdout, "bench latency")


def latency_table(line: Mapping[str, Any]) -> Outcome:
    """The article's table with a benchmark's figures beside it.

    Args:
        line: of `read_bench` or `run_bench`.

    Raises:
        ConfigError: a figure is missing.
    """
    try:
        found = line["figures"]
        frame = {
            "backbone_ms": float(found["frame_backbone_ms"]),
            "decoder_ms": float(found["frame_depth_ms"]),
        }
        early = {"reasoner_ms": float(found["queued_ms"]["p50"])} | frame
        whole = {"reasoner_ms": float(found["at_once_queued_ms"]["p50"])} | frame
        rtf = float(found["rtf"]["p50"])
        first = [found[f"{kind}first_byte_ms"]["p50"] for kind in ("", "at_once_")]
        reply_s = float(line["settings"]["reply_s"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"The benchmark's line has no usable figure ({error!r}); make it with this version's "
            "chroma-plugin bench latency."
        ) from error
    totals = [sum(row[part] for part in PARTS) for row in (early, whole)]
    rows: list[list[Cell]] = [
        [f"{title}{' per frame' if part in frame else ''}, ms",
         article.LATENCY[part], early[part], whole[part]]
        for part, title in PARTS.items()
    ]  # fmt: skip
    rows += [
        ["total to the first token, ms", article.LATENCY["total_ms"], *totals],
        ["first audio out, ms", None, *first],
        ["RTF", article.LATENCY["rtf"], rtf, None],
        ["reply, s", article.REPLY_S, reply_s, reply_s],
    ]
    figures = {
        "article": dict(article.LATENCY),
        "heard_early": _rounded(early) | {"total_ms": rounded(totals[0], 3), "rtf": rtf},
        "at_once": _rounded(whole) | {"total_ms": rounded(totals[1], 3)},
        "first_byte_ms": {"heard_early": first[0], "at_once": first[1]},
        "rtf_ratio_article_to_here": rounded(article.LATENCY["rtf"] / rtf, 3) if rtf else None,
    }
    facts = {name: line.get(name) for name in FACTS}
    outcome = Outcome("latency", facts | {"bench": dict(line["settings"])}, figures)
    heads = ("", "article", "heard while spoken", "question at once")
    where = ", ".join(f"{k} {v}" for k, v in facts.items() if v is not None)
    outcome.grids = [Grid(f"One conversation: {where}", heads, rows)]
    outcome.notes = [
        "The article measured on one H200. The Reasoner is what passes from the end of the "
        "question until its first token can be made, the median; the Decoder is the depth decoder."
    ]
    names = [*PARTS.values(), "total"]
    for title, values in (
        ("article, one H200", [article.LATENCY[part] for part in (*PARTS, "total_ms")]),
        ("here, heard while spoken", [*early.values(), totals[0]]),
    ):
        outcome.bars.append(Bars(f"Time to the first token: {title}", "ms", names, values))
    return outcome


def _rounded(row: Mapping[str, float]) -> dict[str, float | None]:
    return {name: rounded(value, 3) for name, value in row.items()}


def _line(text: str, where: str) -> dict[str, Any]:
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        line = json.loads(lines[-1])
        if line["bench"] == "latency":
            return dict(line)
    except (IndexError, ValueError, KeyError, TypeError):
        pass
    raise ConfigError(
        f"{where}: does not end with a line of bench latency. Make one: "
        "chroma-plugin bench latency --json > FILE"
    )
