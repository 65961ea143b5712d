"""A server on a free port of this machine, in the test's own event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import uvicorn

from chroma_plugin.server.app import create_app
from chroma_plugin.server.run import uvicorn_config
from chroma_plugin.server.settings import ServerConfig
from chroma_plugin.session import SpeechEngine
from tests.fakes import FakeEngine
from tests.server.client import WAIT_S, Judge, Loudness


@asynccontextmanager
async def serving(
    engine: SpeechEngine | None = None, config: ServerConfig | None = None
) -> AsyncIterator[str]:
    """Serves; gives `127.0.0.1:PORT`."""
    config = config or ServerConfig()
    app = create_app(engine or FakeEngine(frames=8), config, new_vad=Loudness, judge=Judge())
    async with listening(app, config) as place:
        yield place


@asynccontextmanager
async def listening(app: Any, config: ServerConfig | None = None) -> AsyncIterator[str]:
    """Serves an app that is made already; gives `127.0.0.1:PORT`."""
    config = config or ServerConfig()
    server = uvicorn.Server(uvicorn_config(app, config))
    # With its protocol named asyncio sends small messages at once (TCP_NODELAY).
    with socket.socket(proto=socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        task = asyncio.create_task(server.serve([listening]))
        try:
            async with asyncio.timeout(WAIT_S):
                while not server.started:
                    await asyncio.sleep(0.001)
            yield f"127.0.0.1:{port}"
        finally:
            server.should_exit = server.force_exit = True
            with suppress(asyncio.CancelledError):
                await asyncio.wait_for(task, WAIT_S)


@asynccontextmanager
async def http(
    engine: SpeechEngine | None = None, config: ServerConfig | None = None, **client: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the routes, without a socket."""
    app = create_app(engine or FakeEngine(frames=8), config or ServerConfig(), new_vad=Loudness)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", **client) as requests,
    ):
        yield requests
