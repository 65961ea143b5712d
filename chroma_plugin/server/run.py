"""Listens: uvicorn around the routes."""

from __future__ import annotations

from typing import Any

import uvicorn
from prometheus_client import disable_created_metrics

from chroma_plugin.server.settings import ServerConfig

PING_S = 20.0
"""A client that answers no ping for so long is gone, whatever its socket says."""
DRAIN_S = 10


def uvicorn_config(app: Any, config: ServerConfig) -> uvicorn.Config:
    """How uvicorn listens: where, and within which limits. Nobody's words are in its log, which
    goes where all lines go; requests are logged by `access_log`."""
    return uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws_max_size=config.max_message_bytes,
        ws_ping_interval=PING_S,
        ws_ping_timeout=PING_S,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=DRAIN_S,
        lifespan="on",
    )


def serve(app: Any, config: ServerConfig) -> None:
    """Serves until it is told to stop (Ctrl+C, SIGTERM)."""
    # When each figure was first counted: a third of the page, of no use.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    uvicorn.Server(uvicorn_config(app, config)).run()
