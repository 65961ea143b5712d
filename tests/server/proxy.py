"""A wire between a client and a server that a test can damage: it swallows all that is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Proxy:
    """Passes bytes on, both ways.

    Attributes:
        place: where it listens, `127.0.0.1:PORT`.
        swallowing: bytes go nowhere, and nobody is told: a half-open connection.
    """

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.partition(":")
        self._writers = list[asyncio.StreamWriter]()
        self._tasks = set[asyncio.Task[None]]()
        self.place = ""
        self.swallowing = False

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        if self.swallowing:  # whoever comes now is not answered
            return
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        self._writers.append(far_writer)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pass_on(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                if not self.swallowing:
                    sink.write(data)
                    await sink.drain()
        except OSError:
            pass
        if not self.swallowing:
            sink.close()

    async def aclose(self) -> None:
        for task in (tasks := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def proxied(target: str) -> AsyncIterator[Proxy]:
    """A proxy before a server at `127.0.0.1:PORT`."""
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy.meet, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    proxy.place = f"{host}:{port}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.aclose()
