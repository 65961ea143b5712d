"""The connection of one conversation: events out, events in, and again when it was lost."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from chroma_plugin.errors import ChromaError, EngineBusy, EngineFailed

log = logging.getLogger(__name__)

Event = dict[str, Any]

MAX_MESSAGE_BYTES = 16 << 20
OPEN_S = 10.0
"""A server that takes longer to greet is not there."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 2.0
"""Between attempts to reach a server again."""


class Line:
    """A connection that comes back.

    Args:
        url: of the WebSocket.
        key: of the server, or None.
        reconnect_s: how long a lost connection is tried again.

    Attributes:
        up: events that are sent reach the server, as far as anyone knows.
        on_event: is told each event that comes.
        on_lost: is told that the connection was lost; it is tried again.
        on_dead: is told that it does not come back, and why.
        greeting: makes the events that a new connection begins with.
    """

    def __init__(self, url: str, key: str | None, reconnect_s: float) -> None:
        self._url, self._reconnect_s = url, reconnect_s
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._outgoing: asyncio.Queue[Event] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._socket: ClientConnection | None = None
        self.up = False
        self.on_event: Callable[[Event], None] = lambda event: None
        self.on_lost: Callable[[], None] = lambda: None
        self.on_dead: Callable[[ChromaError], None] = lambda error: None
        self.greeting: Callable[[], Iterable[Event]] = lambda: ()

    async def open(self) -> None:
        """Connects, and is greeted.

        Raises:
            EngineBusy: the server has no room.
            EngineFailed: it cannot be reached, or turns us away.
        """
        socket = await self._dial()
        self._task = asyncio.create_task(self._keep(socket))

    def send(self, event: Event) -> None:
        """Sends an event; one for a connection that was lost is dropped, as the greeting of the
        next one tells what stands."""
        if self.up:
            self._outgoing.put_nowait(event)

    async def close(self) -> None:
        """Hangs up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _dial(self) -> ClientConnection:
        try:
            async with asyncio.timeout(OPEN_S):
                socket = await connect(
                    self._url,
                    additional_headers=self._headers,
                    max_size=MAX_MESSAGE_BYTES,
                    compression=None,
                    close_timeout=1.0,
                )
                first = json.loads(await socket.recv())
        except InvalidStatus as error:
            status = error.response.status_code
            why = "it needs an API key" if status in (401, 403) else f"it answers {status}"
            raise EngineFailed(f"The server at {self._url} turns us away: {why}.") from error
        except (OSError, TimeoutError, WebSocketException, ValueError) as error:
            raise EngineFailed(
                f"The server at {self._url} cannot be reached ({type(error).__name__}). Is it up?"
            ) from error
        if first.get("type") == "error":
            await socket.close()
            about = first.get("error", {})
            if about.get("code") == "server_overloaded":
                raise EngineBusy(f"The server has no room: {about.get('message')}")
            raise EngineFailed(f"The server turns us away: {about.get('message')}")
        self._outgoing = asyncio.Queue()
        for event in self.greeting():
            self._outgoing.put_nowait(event)
        self._socket, self.up = socket, True
        return socket

    async def _keep(self, socket: ClientConnection) -> None:
        while True:
            await self._talk(socket)
            self.on_lost()
            try:
                socket = await self._again()
            except ChromaError as error:
                self.on_dead(error)
                return

    async def _talk(self, socket: ClientConnection) -> None:
        writer = asyncio.create_task(self._write(socket))
        try:
            async for message in socket:
                self.on_event(json.loads(message))
        except (OSError, WebSocketException):
            log.debug("the connection was lost")
        finally:
            self.up = False
            writer.cancel()
            await socket.close()

    async def _write(self, socket: ClientConnection) -> None:
        try:
            while True:
                await socket.send(json.dumps(await self._outgoing.get()))
        except (OSError, WebSocketException):
            return  # whoever reads finds out

    async def _again(self) -> ClientConnection:
        loop = asyncio.get_running_loop()
        deadline_s, wait_s = loop.time() + self._reconnect_s, FIRST_WAIT_S
        while True:
            try:
                return await self._dial()
            except (EngineBusy, EngineFailed):
                if loop.time() + wait_s > deadline_s:
                    raise
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
