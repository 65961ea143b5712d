"""Addresses of servers: one for every spelling, and which of them are this machine."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from chroma_plugin.errors import ConfigError


def http_url(url: str) -> str:
    """A server's address as HTTP, without the paths of its protocol.

    Args:
        url: http(s) or ws(s), with or without `/v1` or `/v1/realtime`; HOST:PORT will do.

    Raises:
        ConfigError: it is none.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url!r} is no address of a server; try http://127.0.0.1:8000")
    path = parts.path.rstrip("/").removesuffix("/v1/realtime").removesuffix("/v1")
    return f"{scheme}://{parts.netloc}{path}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
