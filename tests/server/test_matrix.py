"""The tables of docs/server.md: complete, true to the code, with a test in every row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from chroma_plugin.server.app import create_app
from chroma_plugin.server.realtime import HANDLERS
from tests.fakes import FakeEngine
from tests.server.client import models

ROOT = Path(__file__).parents[2]
MATRIX = (ROOT / "docs" / "server.md").read_text()
TABLES = ("Stock clients", "Client events", "Server events", "Settings of a session", "HTTP")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its first two lines."""
    section = MATRIX.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def named(cell: str) -> list[str]:
    """The events of a cell: `a.b`, `.c` is a.b and a.c."""
    names: list[str] = []
    for name in re.findall(r"`([a-z_.]+)`", cell):
        names.append(name if name[0] != "." else names[-1].rsplit(".", 1)[0] + name)
    return names


def known_tests() -> set[str]:
    sources = (path.read_text() for path in (ROOT / "tests" / "server").glob("test_*.py"))
    return {name for source in sources for name in re.findall(r"def (test_\w+)", source)}


def sent() -> set[str]:
    """Every event that the server can send."""
    source = (ROOT / "chroma_plugin" / "server" / "events.py").read_text()
    return {kind for kind in re.findall(r'"([a-z_.]+)"', source) if "." in kind or kind == "error"}


@pytest.mark.parametrize("table", TABLES)
def test_every_row_names_a_test(table: str) -> None:
    known = known_tests()
    for first, *cells in rows(table):
        tests = re.findall(r"`(test_\w+)`", " ".join(cells))
        assert tests, f"{first}: no test"
        assert not set(tests) - known, f"{first}: {sorted(set(tests) - known)} are no tests"


def test_every_client_event_has_a_row() -> None:
    listed = [row[0].strip("`") for row in rows("Client events")]
    assert len(listed) == len(set(listed))
    differ = {row[0].strip("`"): row[1] for row in rows("Client events")}
    not_served = {event for event, what in differ.items() if what.startswith("not served")}
    assert set(listed) - not_served == set(HANDLERS)
    assert set(listed) == client_events()


def client_events() -> set[str]:
    """Every client event of the `openai` package."""
    known = pytest.importorskip("openai.types.realtime.realtime_client_event")
    union = get_args(known.RealtimeClientEvent)[0]
    return {get_args(model.model_fields["type"].annotation)[0] for model in get_args(union)}


def test_every_server_event_has_a_row() -> None:
    table = rows("Server events")
    listed = [event for row in table for event in named(row[0])]
    assert len(listed) == len(set(listed))
    served = {e for row in table if not row[1].startswith("not sent") for e in named(row[0])}
    assert served == sent()
    if known := models():
        assert set(listed) == set(known)


def test_what_is_not_sent_is_nowhere_in_the_code() -> None:
    missing = {
        event
        for row in rows("Server events")
        if row[1].startswith("not sent")
        for event in named(row[0])
    }
    assert len(missing) > 15
    for path in (ROOT / "chroma_plugin" / "server").glob("*.py"):
        code = path.read_text()
        assert not [event for event in missing if f'"{event}"' in code], path


def test_every_route_has_a_row_with_a_test() -> None:
    listed, missing = set[str](), set[str]()
    for route, what, _ in rows("HTTP"):
        found = re.findall(r"`([A-Z]+ /[^`]*)`", route)
        (missing if what.startswith("not served") else listed).update(found)
    app: Any = create_app(FakeEngine())
    paths = app.openapi()["paths"].items()
    served = {f"{method.upper()} {path}" for path, methods in paths for method in methods}
    assert listed == served | {"GET /v1/realtime", "GET /"}
    assert not missing & served


def test_every_scenario_of_a_stock_client_has_a_row() -> None:
    listed = " ".join(" ".join(row) for row in rows("Stock clients"))
    for path in (ROOT / "tests" / "server").glob("test_stock_*.py"):
        for name in re.findall(r"^async def (test_\w+)", path.read_text(), re.MULTILINE):
            assert f"`{name}`" in listed, name
