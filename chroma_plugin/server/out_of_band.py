"""Replies beside the conversation: each in a session of its own, that goes with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from chroma_plugin.conversation import Message
from chroma_plugin.errors import ChromaError
from chroma_plugin.reply import ReplyStream
from chroma_plugin.server.protocol import ProtocolError
from chroma_plugin.server.response import Outcome, Response
from chroma_plugin.session import Session

MAX_AT_ONCE = 2
"""Of one connection: each takes the room of a conversation."""


class OutOfBand:
    """The out-of-band replies of one connection.

    Args:
        open_session: opens a session with a history.
    """

    def __init__(self, open_session: Callable[[list[Message]], Awaitable[Session]]) -> None:
        self._open = open_session
        self._running: dict[asyncio.Task[None], Response] = {}
        self._sessions = set[Session]()

    async def open(self, context: list[Message]) -> Session:
        """A session for one such reply.

        Raises:
            ProtocolError: there are as many as there may be.
            ChromaError: the engine has no room, or is dead.
        """
        if len(self._running) >= MAX_AT_ONCE:
            raise ProtocolError(
                "too_many_responses",
                f"{MAX_AT_ONCE} out-of-band responses are in progress; wait until one is done.",
            )
        return await self._open(context)

    async def begin(
        self,
        response: Response,
        session: Session,
        instructions: str,
        added: str | None,
        say: str | None,
        observe: Callable[[Outcome], None],
    ) -> None:
        """Asks for the reply, and has it told; its session is closed then.

        Args:
            response: tells it.
            session: speaks it.
            instructions: the system prompt.
            added: more instructions, or None.
            say: text to speak word for word instead, or None.
            observe: is told how it went.

        Raises:
            ChromaError: it cannot be asked for.
        """
        try:
            session.update(instructions=instructions)
            stream = session.say(say) if say else session.respond(instructions=added)
        except ChromaError:
            await session.aclose()
            raise
        response.announce()
        self._sessions.add(session)
        task = asyncio.create_task(self._tell(response, stream, session, observe))
        self._running[task] = response
        task.add_done_callback(lambda done: self._running.pop(done, None))

    async def _tell(
        self,
        response: Response,
        stream: ReplyStream,
        session: Session,
        observe: Callable[[Outcome], None],
    ) -> None:
        try:
            await response.run(stream)
        finally:
            observe(response.outcome)
            self._sessions.discard(session)
            await session.aclose()

    def cancel(self, response_id: str) -> bool:
        """Stops a reply of that id; False if there is none."""
        for response in self._running.values():
            if response.id == response_id:
                response.cancel("client_cancelled")
                return True
        return False

    async def aclose(self) -> None:
        """Stops them all."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for session in self._sessions:  # of replies whose telling had not begun
            await session.aclose()
