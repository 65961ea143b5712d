"""A conversation that comes back names itself, so that it may come back to the same replica."""

from __future__ import annotations

import asyncio
import json

import pytest
from websockets.asyncio.server import ServerConnection, serve

from chroma_plugin.client.line import HOME_HEADER, Line


async def test_a_line_has_the_same_name_on_every_connection() -> None:
    names: list[str] = []
    twice = asyncio.Event()

    async def greet_and_hang_up(socket: ServerConnection) -> None:
        assert socket.request is not None
        names.append(socket.request.headers[HOME_HEADER])
        if len(names) == 3:
            twice.set()
        await socket.send(json.dumps({"type": "session.created"}))

    async with serve(greet_and_hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        line, other = (Line(f"ws://127.0.0.1:{port}", None, 30.0) for _ in range(2))
        await other.open()
        await other.close()
        names.clear()
        await line.open()
        async with asyncio.timeout(30):
            await twice.wait()
        await line.close()
    assert len(set(names)) == 1
    assert names[0] and names[0] != other._headers[HOME_HEADER]


def test_the_name_is_the_one_that_the_router_reads() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'chroma-plugin[ray]'")
    from chroma_plugin.server import ray_router

    assert ray_router.HOME_HEADER == HOME_HEADER
