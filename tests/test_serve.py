"""`chroma-plugin serve`: what it makes of its options, without an engine."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

import chroma_plugin.engine.engine
import chroma_plugin.server.run
from chroma_plugin.errors import ConfigError
from chroma_plugin.serve import api_keys, app
from tests.fakes import FakeEngine


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
    monkeypatch.setattr(chroma_plugin.engine.engine, "Engine", lambda config: FakeEngine())
    monkeypatch.setattr(
        chroma_plugin.server.run, "serve", lambda app, config: served.append(config)
    )
    monkeypatch.setenv("CHROMA_API_KEY", "k" * 20)
    words = ["--host", "0.0.0.0", "--port", "9000", "--max-sessions", "3"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    (config,) = served
    assert (config.host, config.port, config.max_sessions) == ("0.0.0.0", 9000, 3)
    assert config.api_keys[0].key == "k" * 20


def test_beyond_this_machine_it_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHROMA_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="api_keys"):
        CliRunner().invoke(app, ["--host", "0.0.0.0"], catch_exceptions=False)
