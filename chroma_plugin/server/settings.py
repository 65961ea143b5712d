"""What a server takes on, whom it lets in, and where its limits are. Knows no socket."""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from chroma_plugin.addresses import is_loopback
from chroma_plugin.errors import ConfigError

Scope = Literal["talk", "voices"]
SCOPES: tuple[Scope, ...] = ("talk", "voices")
MIN_KEY_CHARS = 16
ANY_MODEL = "chroma"
"""The model of a server, whichever it is: clients need not know its name."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key, and what it opens: talking, or the voices too."""

    key: str = field(repr=False)
    scopes: tuple[Scope, ...] = SCOPES

    def __post_init__(self) -> None:
        if len(self.key) < MIN_KEY_CHARS:
            raise ConfigError(
                f"An API key has {len(self.key)} characters; at least {MIN_KEY_CHARS} are needed. "
                "Make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
        if unknown := sorted(set(self.scopes) - set(SCOPES)):
            raise ConfigError(f"API key scopes not known: {unknown}; use {', '.join(SCOPES)}.")


def api_keys(text: str) -> tuple[ApiKey, ...]:
    """Keys as they stand in the environment: `KEY,KEY:talk`.

    Raises:
        ConfigError: one is too short, or its scope is not known.
    """
    keys = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, _, scope = part.partition(":")
        keys.append(ApiKey(key, (scope,)) if scope else ApiKey(key))  # type: ignore[arg-type]
    return tuple(keys)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The settings of a server.

    Attributes:
        host: where it listens; anything but loopback needs an API key.
        port: the port.
        model: the name that it tells clients; see `model_name`.
        api_keys: who may come in; none means everyone, on loopback only.
        origins: pages that may talk to it from a browser, as `https://host[:port]`; pages of the
            server itself and of loopback may where it listens on loopback.
        voices: the folder of voices; None: the packaged voice only.
        inline_voices: clients may bring a voice along, with its consent, for one connection.
        max_sessions: connections that may talk at the same time.
        max_session_s: a connection is ended after so long.
        idle_s: a connection that says nothing for so long is ended.
        max_turn_s: what is said beyond it in one turn is not heard; at most the engine's.
        max_message_bytes: of one WebSocket message.
        max_upload_bytes: of one HTTP request.
        max_events_per_s: messages of one connection; ten seconds' worth may come at once.
        max_audio_rate: audio that one connection may send, in seconds a second; a minute's worth
            may come at once.
        max_unsent_bytes: what may wait for a client that reads slowly, before it is hung up.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model: str = ANY_MODEL
    api_keys: tuple[ApiKey, ...] = ()
    origins: tuple[str, ...] = ()
    voices: Path | None = None
    inline_voices: bool = True
    max_sessions: int = 64
    max_session_s: float = 7200.0
    idle_s: float = 600.0
    max_turn_s: float = 60.0
    max_message_bytes: int = 8 << 20
    max_upload_bytes: int = 16 << 20
    max_events_per_s: float = 200.0
    max_audio_rate: float = 4.0
    max_unsent_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        if not self.api_keys and not is_loopback(self.host):
            raise ConfigError(
                f"ServerConfig.host is {self.host!r}: whoever reaches it could talk and enrol "
                "voices. Give api_keys ($CHROMA_API_KEY), or listen on 127.0.0.1."
            )
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"ServerConfig.port is {self.port!r}; it must be 0 to 65535.")
        for name in (
            "max_sessions",
            "max_session_s",
            "idle_s",
            "max_turn_s",
            "max_message_bytes",
            "max_upload_bytes",
            "max_events_per_s",
            "max_audio_rate",
            "max_unsent_bytes",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"ServerConfig.{name} is {getattr(self, name)!r}; it must be more than 0."
                )

    @property
    def page_address(self) -> str:
        """Where a browser on this machine finds the page."""
        # Of every address of this machine a browser needs one.
        host = "localhost" if self.host in ("", "0.0.0.0", "::") else self.host
        return f"http://[{host}]:{self.port}/" if ":" in host else f"http://{host}:{self.port}/"

    def admits(self, key: str | None, scope: Scope) -> bool:
        """Whether a key opens something; takes as long for a wrong key as for a right one."""
        if not self.api_keys:
            return True
        given = hashlib.sha256((key or "").encode("utf-8", "replace")).digest()
        admitted = False
        for known in self.api_keys:
            same = hmac.compare_digest(given, hashlib.sha256(known.key.encode()).digest())
            admitted |= same and scope in known.scopes
        return admitted

    def welcomes(self, origin: str | None, host: str | None) -> bool:
        """Whether a request may come from where it comes.

        Without keys it must be meant for this machine by name: a name that somebody made point to
        127.0.0.1 is not let in, and neither is a page that did not come from here.

        Args:
            origin: of the page that asks; None: no page does.
            host: what it was asked for by, the `Host` header.
        """
        if not self.api_keys and host is not None and not is_loopback(host_name(host)):
            return False
        if origin is None or origin in self.origins:
            return True
        scheme, separator, place = origin.partition("://")
        if not separator or scheme not in ("http", "https"):
            return False
        if is_loopback(self.host) and is_loopback(host_name(place)):
            return True
        return bool(self.api_keys) and place == host


def model_name(model: str) -> str:
    """What clients are told of a checkpoint: the name of its folder, without the way there; or the
    hub id, or the name of the packaged one, as they are."""
    folder = Path(os.path.expanduser(model))
    return folder.resolve().name or ANY_MODEL if folder.is_dir() else model


def host_name(place: str) -> str:
    """The host of `host`, `host:port` or `[v6]:port`."""
    if place.startswith("["):
        return place[1:].partition("]")[0]
    return place.partition(":")[0]
