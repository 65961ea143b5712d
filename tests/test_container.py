"""Dockerfile and compose file: what they name is there, and is held to what they promise.

Nobody builds an image here; `.ci/run` has both checked by a linter and a schema.
"""

from __future__ import annotations

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from chroma_plugin.config import DEFAULT_MODEL, RELEASED_MODEL
from chroma_plugin.serve import app

ROOT = Path(__file__).parent.parent
if not (ROOT / "Dockerfile").exists():
    pytest.skip("not in this distribution", allow_module_level=True)
DOCKERFILE = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())


def lines(word: str) -> list[str]:
    return re.findall(rf"^{word} (.+)$", DOCKERFILE, re.MULTILINE)


def test_what_is_copied_is_there_and_let_in() -> None:
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = [name for line in lines("COPY") for name in line.split()[:-1] if "--" not in name]
    sources = [name for name in copied if not name.startswith("/")]
    assert len(sources) >= 6
    for name in sources:
        assert (ROOT / name).exists(), name
        assert any(fnmatch(name, pattern) for pattern in allowed), f".dockerignore hides {name}"


def test_it_runs_as_nobody_in_particular_and_says_how_it_is() -> None:
    assert lines("USER") == ["10001"] and "--uid 10001" in DOCKERFILE
    (check,) = lines("HEALTHCHECK")
    assert "/health" in check
    assert "mount=type=cache" in DOCKERFILE


def test_what_is_started_is_a_command_with_these_options() -> None:
    known = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    (entry,) = lines("ENTRYPOINT")
    commands = [service["command"] for service in COMPOSE["services"].values()]
    words = [word for command in (yaml.safe_load(entry), *commands) for word in command]
    assert words[:2] == ["chroma-plugin", "serve"]
    for word in words:
        assert not word.startswith("--") or word in known, word
    assert {RELEASED_MODEL, DEFAULT_MODEL} <= set(words)


@pytest.mark.parametrize("name", ["gpu", "cpu"])
def test_each_service_keeps_what_lasts_and_needs_a_key(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["profiles"] == [name]
    assert service["build"]["args"] == {"DEVICE": name}
    assert ("deploy" in service) == (name == "gpu")
    assert ":?" in service["environment"]["CHROMA_API_KEY"]  # refused without one
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    mounted = dict(volume.split(":") for volume in service["volumes"])
    assert set(mounted) == set(COMPOSE["volumes"])
    assert set(mounted.values()) == set(yaml.safe_load(lines("VOLUME")[0]))
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert shlex.split(lines("EXPOSE")[0]) == [service["ports"][0].rpartition(":")[2]]
