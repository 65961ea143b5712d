"""A WebSocket with a client on its other end: what comes in, what goes out, and when it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import traceback

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from chroma_plugin.errors import ChromaError
from chroma_plugin.server import events
from chroma_plugin.server.limits import Bucket
from chroma_plugin.server.realtime import Realtime
from chroma_plugin.server.settings import ServerConfig
from chroma_plugin.server.surroundings import Surroundings

log = logging.getLogger(__name__)

POLICY, TOO_BIG, BROKEN, TRY_LATER, GOING_AWAY = 1008, 1009, 1011, 1013, 1001
"""Close codes of RFC 6455."""
RESTART = 1012
"""What uvicorn closes all sockets with when it is told to stop; a client has no use for it."""
SHUTDOWN = "server_shutdown"
FAREWELL_S = 5.0
"""So long the last events may take on their way to a client that is hung up."""


class Ending(Exception):
    """Why the server ends a connection: the close code, and the error that the client is told."""

    def __init__(self, close_code: int, error: events.Event | None) -> None:
        super().__init__(close_code)
        self.close_code, self.error = close_code, error

    @property
    def why(self) -> str:
        """The code of that error; there is none for who does not read what is sent."""
        return "slow_reader" if self.error is None else str(self.error["error"]["code"])


class Connection:
    """One client.

    Args:
        websocket: accepted.
        config: the server's limits.
        surroundings: what its conversation is given.
        max_reply_s: a cap on its replies, below the engine's.
    """

    def __init__(
        self,
        websocket: WebSocket,
        config: ServerConfig,
        surroundings: Surroundings,
        max_reply_s: float | None = None,
    ) -> None:
        self._socket, self._config = websocket, config
        self._events = Bucket(config.max_events_per_s, 10 * config.max_events_per_s)
        self._outgoing: asyncio.Queue[str | None] = asyncio.Queue()
        self._unsent_bytes = 0
        self._slow = asyncio.Event()
        self.ended_by = "client"  # or why the server did
        self._ends_s = time.monotonic() + config.max_session_s
        self.realtime = Realtime(surroundings, self._send, max_reply_s=max_reply_s)

    async def run(self) -> None:
        """Talks until the client goes, or is hung up."""
        writer = asyncio.create_task(self._write())
        close_code = 1000
        try:
            await self._talk(writer)
        except Ending as ending:
            close_code, self.ended_by = ending.close_code, ending.why
            if ending.error is not None:
                self._send(ending.error)
        except WebSocketDisconnect as gone:
            if gone.code == RESTART:
                self.ended_by = SHUTDOWN
        except asyncio.CancelledError:  # it took longer to end than a server that stops waits
            self.ended_by = SHUTDOWN
            raise
        finally:
            self._outgoing.put_nowait(None)
            await asyncio.wait([writer], timeout=FAREWELL_S)
            writer.cancel()
            await self._hang_up(close_code)

    async def _talk(self, writer: asyncio.Task[None]) -> None:
        try:
            await self.realtime.start()
        except ChromaError as error:
            raise Ending(TRY_LATER, events.failure(error)) from error
        slow = asyncio.create_task(self._slow.wait())
        try:
            while True:
                await self._next(writer, slow)
        finally:
            slow.cancel()
            await self.realtime.aclose()

    async def _next(self, writer: asyncio.Task[None], slow: asyncio.Task[bool]) -> None:
        """Takes one message and does what it says."""
        left_s = self._ends_s - time.monotonic()
        receive = asyncio.create_task(self._socket.receive())
        waiting = {receive, slow, writer}
        timeout_s = max(min(self._config.idle_s, left_s), 0.0)
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if writer.done() and not slow.done():  # the socket is closed: what comes says by whom
            await asyncio.wait([receive], timeout=FAREWELL_S)
        if slow.done():
            receive.cancel()
            raise Ending(POLICY, None)  # it does not read; an error would not reach it either
        if not receive.done():
            receive.cancel()
            raise WebSocketDisconnect(1006) if writer.done() else self._too_late(left_s)
        message = receive.result()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        text = message.get("text")
        if text is None:
            text = (message.get("bytes") or b"").decode("utf-8", "replace")
        if len(text) > self._config.max_message_bytes:
            raise Ending(TOO_BIG, events.error("message_too_big", "The message is too big."))
        if not self._events.take(1.0):
            raise Ending(
                POLICY, events.error("rate_limit_exceeded", "Too many events; send fewer.")
            )
        try:
            await self.realtime.handle(text)
        except Exception as error:  # a mistake of ours; its message may hold what a user said
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("an event broke a connection: %s\n%s", type(error).__name__, where)
            broken = events.error(
                "internal_error", "The server made a mistake; reconnect.", kind="server_error"
            )
            raise Ending(BROKEN, broken) from None

    def _too_late(self, left_s: float) -> Ending:
        if left_s <= self._config.idle_s:
            most = f"{self._config.max_session_s / 60:g} minutes"
            error = events.error("session_expired", f"The session has lasted {most}; reconnect.")
        else:
            idle = f"{self._config.idle_s:g} s"
            error = events.error("session_idle", f"Nothing came for {idle}; reconnect.")
        return Ending(GOING_AWAY, error)

    def _send(self, event: events.Event) -> None:
        data = json.dumps(event, separators=(",", ":"))
        self._unsent_bytes += len(data)
        if self._unsent_bytes > self._config.max_unsent_bytes:
            self._slow.set()
            return
        self._outgoing.put_nowait(data)

    async def _write(self) -> None:
        while (data := await self._outgoing.get()) is not None:
            try:
                await self._socket.send_text(data)
            except (WebSocketDisconnect, RuntimeError, OSError):
                return
            self._unsent_bytes -= len(data)

    async def _hang_up(self, code: int) -> None:
        if self._socket.application_state is not WebSocketState.CONNECTED:
            return
        try:
            async with asyncio.timeout(FAREWELL_S):
                await self._socket.close(code)
        except (RuntimeError, OSError, TimeoutError, WebSocketDisconnect):
            log.debug("%s was gone already", self.realtime.id)
