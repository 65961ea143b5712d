"""The connection of one conversation: events out, events in, and again when it was lost."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Callable, Iterable
from typing import Any, Literal
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from chroma_plugin.addresses import is_loopback
from chroma_plugin.errors import ChromaError, EngineBusy, EngineFailed

log = logging.getLogger(__name__)

Event = dict[str, Any]

MAX_MESSAGE_BYTES = 16 << 20
OPEN_S = 10.0
"""A server that takes longer to greet is not there."""
HEARTBEAT_S = 5.0
"""Between two pings; a server that leaves one unanswered for twice as long is gone, whatever its
socket says."""
HOME_HEADER = "x-session-id"
"""Names the conversation, so that a server of many replicas takes it back to the same one."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 2.0
"""Between attempts to reach a server again."""


class Line:
    """A connection that comes back.

    Args:
        url: of the WebSocket.
        key: of the server, or None.
        reconnect_s: how long a lost connection is tried again.
        heartbeat_s: between two pings.

    Attributes:
        up: events that are sent reach the server, as far as anyone knows.
        on_event: is told each event that comes.
        on_lost: is told that the connection was lost; it is tried again.
        on_dead: is told that it does not come back, and why.
        greeting: makes the events that a new connection begins with.
    """

    def __init__(
        self, url: str, key: str | None, reconnect_s: float, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        self._url, self._reconnect_s, self._heartbeat_s = url, reconnect_s, heartbeat_s
        here = is_loopback(urlsplit(url).hostname or "")
        # of the environment; none leads to this machine
        self._proxy: Literal[True] | None = None if here else True
        self._headers = {HOME_HEADER: secrets.token_hex(8)}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
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

    def renew(self) -> None:
        """Gives the connection up and has another one made, with another greeting."""
        if self._socket is not None and self.up:
            self.up = False
            self._socket.transport.abort()

    async def close(self) -> None:
        """Hangs up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _dial(self) -> ClientConnection:
        socket: ClientConnection | None = None
        try:
            async with asyncio.timeout(OPEN_S):
                socket = await connect(
                    self._url,
                    additional_headers=self._headers,
                    max_size=MAX_MESSAGE_BYTES,
                    compression=None,
                    open_timeout=None,  # ours counts
                    proxy=self._proxy,
                    ping_interval=self._heartbeat_s,
                    ping_timeout=2 * self._heartbeat_s,
                    close_timeout=1.0,
                )
                first = _greeted(await socket.recv())
        except BaseException as error:
            if socket is not None:
                socket.transport.abort()
            if isinstance(error, OSError | TimeoutError | WebSocketException | ValueError):
                raise self._unreachable(error) from error
            raise
        if first.get("type") == "error":
            await socket.close()
            about = first.get("error", {})
            if about.get("code") == "server_overloaded":
                raise EngineBusy(f"The server takes no conversation: {about.get('message')}")
            raise EngineFailed(f"The server turns us away: {about.get('message')}")
        self._outgoing = asyncio.Queue()
        for event in self.greeting():
            self._outgoing.put_nowait(event)
        self._socket, self.up = socket, True
        return socket

    def _unreachable(self, error: Exception) -> EngineFailed:
        if isinstance(error, InvalidStatus):
            status = error.response.status_code
            why = "it needs an API key" if status in (401, 403) else f"it answers {status}"
            return EngineFailed(f"The server at {self._url} turns us away: {why}.")
        return EngineFailed(
            f"The server at {self._url} cannot be reached ({type(error).__name__}). Is it up?"
        )

    async def _keep(self, socket: ClientConnection) -> None:
        while True:
            try:
                await self._talk(socket)
                self.on_lost()
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
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise EngineFailed(
                f"What the server at {self._url} sends cannot be understood "
                f"({type(error).__name__}). Is it chroma-plugin's, and of this version?"
            ) from error
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


def _greeted(message: str | bytes) -> Event:
    """The first event of a server.

    Raises:
        ValueError: it is none.
    """
    first = json.loads(message)
    if not isinstance(first, dict):
        raise ValueError("no event")
    return first
