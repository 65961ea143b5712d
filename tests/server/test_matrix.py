"""The matrix of docs/server.md: true to the code, with a test in every row."""

from __future__ import annotations

import re
from pathlib import Path

from chroma_plugin.server.realtime import HANDLERS

ROOT = Path(__file__).parents[2]
MATRIX = (ROOT / "docs" / "server.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its first two lines."""
    section = MATRIX.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_event_that_is_served_has_a_row_with_a_test() -> None:
    tests = set(re.findall(r"async def (test_\w+)|def (test_\w+)", _all_tests()))
    known = {name for pair in tests for name in pair if name}
    client, server = rows("Client events"), rows("Server events")
    for event, _, test in client + server:
        if "not sent" not in " ".join((event, _)):
            assert test.strip("`") in known, f"{event}: {test!r} is no test"
    assert {row[0].strip("`") for row in client} >= set(HANDLERS)


def test_every_server_event_that_is_sent_has_a_row() -> None:
    source = (ROOT / "chroma_plugin" / "server" / "events.py").read_text()
    sent = {kind for kind in re.findall(r'"([a-z_.]+)"', source) if "." in kind or kind == "error"}
    assert len(sent) > 25
    named = set()
    for cell, about, _ in rows("Server events"):
        if about.startswith("not sent"):
            continue
        last = ""
        for name in re.findall(r"`([a-z_.]+)`", cell):
            last = name if not name.startswith(".") else last.rsplit(".", 1)[0] + name
            named.add(last)
    assert named == sent


def _all_tests() -> str:
    return "\n".join(path.read_text() for path in (ROOT / "tests" / "server").glob("test_*.py"))
