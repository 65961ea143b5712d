"""Every spelling of a server's address."""

from __future__ import annotations

import pytest

from chroma_plugin.addresses import http_url, is_loopback
from chroma_plugin.errors import ConfigError


@pytest.mark.parametrize(
    "spelling",
    [
        "gpu:8000",
        "ws://gpu:8000",
        "http://gpu:8000/",
        "ws://gpu:8000/v1/realtime",
        "http://gpu:8000/v1",
    ],
)
def test_one_address_for_every_spelling(spelling: str) -> None:
    assert http_url(spelling) == "http://gpu:8000"


def test_a_path_before_the_protocols_stays() -> None:
    assert http_url("wss://gpu/voice/v1/realtime") == "https://gpu/voice"


@pytest.mark.parametrize("wrong", ["ftp://gpu", "http://", ""])
def test_what_is_no_address_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="no address of a server"):
        http_url(wrong)


def test_names_that_only_look_like_this_machine_are_not() -> None:
    assert all(map(is_loopback, ("localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("127.0.0.1.evil.example", "10.0.0.1", "gpu", "")))
