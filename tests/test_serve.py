"""`chroma-plugin serve`: what it makes of its options, without an engine."""

from __future__ import annotations

import importlib.util
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import chroma_plugin.engine.engine
import chroma_plugin.engine.parts
import chroma_plugin.server.app
import chroma_plugin.server.run
from chroma_plugin.errors import ChromaError, ConfigError
from chroma_plugin.serve import app
from chroma_plugin.server.settings import api_keys
from chroma_plugin.server.smart_turn import SmartTurn
from chroma_plugin.watermark import MarkedEngine
from tests.fakes import FakeEngine
from tests.kept_logging import kept_logging


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What the command sets up for its process ends with the test."""
    with kept_logging():
        yield


def test_keys_are_read_with_their_scopes() -> None:
    assert api_keys("") == ()
    one, two = api_keys(f"{'a' * 20}, {'b' * 20}:talk,")
    assert one.scopes == ("talk", "voices")
    assert two.scopes == ("talk",)
    for wrong in ("short", f"{'a' * 20}:sing"):
        with pytest.raises(ConfigError):
            api_keys(wrong)


def test_it_listens_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []
    loaded: list[bool] = []
    monkeypatch.setattr(chroma_plugin.engine.engine, "Engine", lambda config: FakeEngine())
    monkeypatch.setattr(
        chroma_plugin.server.run, "serve", lambda app, config: served.append(config)
    )
    monkeypatch.setattr(SmartTurn, "load", lambda self: loaded.append(not served))
    monkeypatch.setenv("CHROMA_API_KEY", "k" * 20)
    words = ["--host", "0.0.0.0", "--port", "9000", "--max-sessions", "3"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert loaded == [True]  # before anybody can speak
    (config,) = served
    assert (config.host, config.port, config.max_sessions) == ("0.0.0.0", 9000, 3)
    assert config.model == "chroma-tiny"
    assert config.api_keys[0].key == "k" * 20
    assert "in a browser: http://localhost:9000/" in done.output


def test_beyond_this_machine_it_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHROMA_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="api_keys"):
        CliRunner().invoke(app, ["--host", "0.0.0.0"], catch_exceptions=False)


@pytest.mark.parametrize("words", [[], ["--watermark", "perth"], ["--watermark", "off"]])
def test_replies_are_marked_unless_that_is_turned_off(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[Any] = []
    monkeypatch.setattr(chroma_plugin.engine.engine, "Engine", lambda config: FakeEngine())
    monkeypatch.setattr(chroma_plugin.server.run, "serve", lambda app, config: None)
    monkeypatch.setattr(
        chroma_plugin.server.app, "create_app", lambda engine, *_, **__: engines.append(engine)
    )
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    off = words[-1:] == ["off"]
    assert isinstance(engines[0], FakeEngine if off else MarkedEngine)
    assert ("not marked" in done.output) == off


def test_it_does_not_start_when_replies_cannot_be_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chroma_plugin.engine.engine, "Engine", lambda config: FakeEngine())
    monkeypatch.setattr(
        chroma_plugin.server.run, "serve", lambda app, config: pytest.fail("it started")
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ChromaError, match=r"pip install.*--watermark off"):
        CliRunner().invoke(app, [], catch_exceptions=False)


def test_what_cannot_be_served_is_told_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chroma_plugin.engine.engine, "Engine", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(ChromaError, match=r"Nobody can listen at .*another --port"):
            CliRunner().invoke(app, ["--port", port], catch_exceptions=False)
    with pytest.raises(ChromaError, match="nonsense"):
        words = ["--port", port, "--model", "./nonsense"]
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_a_device_that_is_not_there_is_told_before_it_says_that_it_serves(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chroma_plugin.engine.parts.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        chroma_plugin.server.run, "serve", lambda app, config: pytest.fail("it started")
    )
    with pytest.raises(ConfigError, match=r"no CUDA device.*doctor"):
        CliRunner().invoke(app, ["--device", "cuda"], catch_exceptions=False)
    assert "Serving" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("level", ["info", "error"])
def test_every_line_is_json_where_that_was_asked_for(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chroma_plugin.engine.engine, "Engine", lambda config: FakeEngine())
    monkeypatch.setattr(chroma_plugin.server.run, "serve", lambda app, config: None)
    words = ["--log-format", "json", "--log-level", level, "--watermark", "off"]
    done = CliRunner().invoke(app, [*words, "--port", "9000"], catch_exceptions=False)
    assert done.exit_code == 0
    lines = [json.loads(line) for line in done.output.splitlines()]
    if level == "error":
        assert lines == []
        failed = CliRunner().invoke(app, [*words, "--model", "./nonsense"], catch_exceptions=False)
        assert failed.exit_code == 1
        (line,) = map(json.loads, failed.output.splitlines())
        assert line["level"] == "error" and "nonsense" in line["message"]
        return
    assert [line["message"].split(" (")[0] for line in lines] == [
        "serving",
        "Replies are not marked as synthetic",
    ]
    assert lines[0]["model"] == "chroma-tiny"
    assert lines[0]["address"] == "ws://127.0.0.1:9000/v1/realtime"
    assert lines[0]["page"] == "http://127.0.0.1:9000/"


def test_voices_that_were_added_on_this_machine_are_served(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(chroma_plugin.engine.engine, "Engine", lambda config: FakeEngine())
    monkeypatch.setattr(
        chroma_plugin.server.run, "serve", lambda app, config: served.append(config.voices)
    )
    monkeypatch.delenv("CHROMA_VOICES", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    kept = tmp_path / "chroma-plugin" / "voices"
    for words in ([], ["--voices", str(tmp_path / "mine")]):
        CliRunner().invoke(app, words, catch_exceptions=False)
    kept.mkdir(parents=True)
    CliRunner().invoke(app, [], catch_exceptions=False)
    assert served == [None, tmp_path / "mine", kept]
