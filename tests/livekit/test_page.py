"""The page about LiveKit names a test in every row of its tables: they are there."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "livekit.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]


def test_every_test_that_the_page_names_exists() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in HERE.glob("test_*.py"))
    there = set(re.findall(r"^(?:async )?def (test_\w+)", code, re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 60 and not named - there


def test_every_row_names_one() -> None:
    table: list[str] = []
    for row in ROWS:
        if "| test |" in row:
            table = []
        elif row.startswith("| `RealtimeModel(...)`"):  # settings: no behaviour, no test
            table = ["settings"]
        elif table != ["settings"]:
            assert "`test_" in row, row
