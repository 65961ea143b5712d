"""The architecture page names code: what it names is there."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
HOPS = re.findall(r"^\| (\d+) \| `(chroma_plugin[\w.]+)`", PAGE, re.MULTILINE)


def test_there_are_ten_hops() -> None:
    assert [int(number) for number, _ in HOPS] == list(range(1, 11))


@pytest.mark.parametrize("name", [name for _, name in HOPS])
def test_a_hop_is_in_the_code(name: str) -> None:
    parts = name.split(".")
    split = next(i for i, part in enumerate(parts) if part[0].isupper())
    thing: object = import_module(".".join(parts[:split]))
    for part in parts[split:]:
        thing = getattr(thing, part)
    assert callable(thing)


def test_every_module_of_the_table_exists() -> None:
    package = Path(__file__).parent.parent / "chroma_plugin"
    rows = re.findall(r"^\| ((?:`[\w/]+\.py`(?:, )?)+) \|", PAGE, re.MULTILINE)
    folder = ""
    for row in rows:
        for name in re.findall(r"`([\w/]+\.py)`", row):
            folder = name.rpartition("/")[0] or folder
            path = package / (name if "/" in name else f"{folder}/{name}")
            assert path.is_file() or (package / name).is_file(), name
    assert len(rows) > 10
