"""Who may come in, and how much they may send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chroma_plugin.addresses import is_loopback
from chroma_plugin.errors import ConfigError
from chroma_plugin.server.limits import Bucket
from chroma_plugin.server.settings import ApiKey, ServerConfig, host_name, model_name

KEY = "k" * 32


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_beyond_loopback_a_key_is_needed(host: str) -> None:
    with pytest.raises(ConfigError, match="api_keys"):
        ServerConfig(host=host)
    assert ServerConfig(host=host, api_keys=(ApiKey(KEY),)).host == host


def test_a_model_is_called_by_its_folder_or_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (str(tmp_path / "mine"), f"{tmp_path}/mine/", ".", "~/mine"):
        assert model_name(folder) == "mine"
    for name in ("chroma-tiny", "FlashLabs/Chroma-4B", "~nobody/there"):
        assert model_name(name) == name
    assert model_name("/") == ServerConfig().model == "chroma"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST"])
def test_on_loopback_none_is(host: str) -> None:
    assert ServerConfig(host=host).admits(None, "voices")


def test_keys_are_long_secret_and_scoped() -> None:
    with pytest.raises(ConfigError, match="16"):
        ApiKey("short")
    with pytest.raises(ConfigError, match="sing"):
        ApiKey(KEY, ("sing",))  # type: ignore[arg-type]
    talk = ApiKey("t" * 16, ("talk",))
    assert KEY not in repr(ServerConfig(api_keys=(ApiKey(KEY),)))
    config = ServerConfig(api_keys=(ApiKey(KEY), talk))
    assert config.admits(KEY, "talk") and config.admits(KEY, "voices")
    assert config.admits(talk.key, "talk") and not config.admits(talk.key, "voices")
    for wrong in (None, "", KEY[:-1], KEY + "k", "é" * 32, "\ud800"):
        assert not config.admits(wrong, "talk")


def test_a_page_of_a_public_server_is_of_that_server() -> None:
    config = ServerConfig(host="0.0.0.0", api_keys=(ApiKey(KEY),))
    assert config.welcomes("https://me.example", "me.example")
    assert not config.welcomes("https://other.example", "me.example")
    assert config.welcomes(None, "me.example")


def test_a_name_that_was_made_to_point_at_loopback_is_not_let_in() -> None:
    assert not ServerConfig().welcomes("http://evil.example:8000", "evil.example:8000")
    assert not ServerConfig().welcomes(None, "evil.example:8000")
    assert ServerConfig().welcomes("http://[::1]:8000", "[::1]:8000")
    behind_a_proxy = ServerConfig(api_keys=(ApiKey(KEY),))
    assert behind_a_proxy.welcomes(None, "me.example")
    assert behind_a_proxy.welcomes("https://me.example", "me.example")
    assert not behind_a_proxy.welcomes("https://evil.example", "me.example")


@pytest.mark.parametrize(
    ("change", "name"),
    [({"port": 70_000}, "port"), ({"max_sessions": 0}, "max_sessions"), ({"idle_s": -1}, "idle_s")],
)
def test_settings_out_of_range_are_named(change: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        ServerConfig(**change)


def test_hosts_are_read_from_places() -> None:
    assert [host_name(p) for p in ("a", "a:1", "[::1]:2")] == ["a", "a", "::1"]
    assert not is_loopback("127.0.0.1.evil.example")


def test_a_bucket_drains_as_fast_as_it_may() -> None:
    now = [0.0]
    bucket = Bucket(2.0, 10.0, lambda: now[0])
    assert bucket.take(10) and not bucket.take(0.1)
    now[0] = 1.0
    assert bucket.take(2) and not bucket.take(0.1)
    now[0] = 100.0
    assert bucket.take(10) and not bucket.take(1)
