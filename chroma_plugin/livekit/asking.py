"""One reply at a time: asked for, promised to the framework, handed out, or given up.

The framework waits for a promise. It is kept when the first piece of the reply is there, so what
goes wrong before that reaches whoever asked; and it is broken after a while, never forgotten.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Callable

from livekit.agents import llm

from chroma_plugin.errors import ChromaError, EngineBusy, SessionClosed
from chroma_plugin.livekit.answer import Answer
from chroma_plugin.livekit.line import Line
from chroma_plugin.reply import EndReason, ReplyEvent, ReplyStream, TurnDone

Promise = asyncio.Future[llm.GenerationCreatedEvent]


class Asking:
    """Asks for replies.

    Args:
        line: who is asked.
        timeout_s: so long a reply may take to begin, or to go on.
        on_created: is told of each reply that begins.
        on_taken: is told when the framework takes the first piece of one.
        on_over: is told of each reply's end.
        report: is told what went wrong.

    Attributes:
        answer: the newest reply.
    """

    def __init__(
        self,
        line: Line,
        timeout_s: float,
        *,
        on_created: Callable[[Answer, llm.GenerationCreatedEvent], None],
        on_taken: Callable[[Answer], None],
        on_over: Callable[[Answer], None],
        report: Callable[[ChromaError], None],
    ) -> None:
        self.answer: Answer | None = None
        self._line, self._timeout_s = line, timeout_s
        self._on_created, self._on_taken, self._on_over = on_created, on_taken, on_over
        self._report = report
        self._promise: Promise | None = None  # the newest
        self._task: asyncio.Task[None] | None = None  # which keeps it
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, say: str | AsyncIterable[str] | None, added: str | None) -> Promise:
        """Asks for a reply in place of the one before.

        Args:
            say: words to be spoken as they are; None lets the model answer.
            added: instructions for this one reply.
        """
        self.interrupt()
        loop = asyncio.get_running_loop()
        promise: Promise = loop.create_future()
        self._promise = promise
        task = loop.create_task(self._speak(promise, say, added))
        self._task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        promise.add_done_callback(lambda kept: self._withdraw(kept, task))
        return promise

    def _withdraw(self, promise: Promise, task: asyncio.Task[None]) -> None:
        """Nobody waits for the promise any more: nothing of the reply is heard."""
        if promise.cancelled():
            task.cancel()
            if promise is self._promise:
                self._line.cancel()

    def interrupt(self) -> None:
        """Stops the reply that speaks, or that was asked for; idempotent.

        What the user said, committed or not, stays.
        """
        if self._promise is not None and not self._promise.done():
            self._break(self._promise, llm.RealtimeError("The reply was interrupted."))
            if self._task is not None:
                self._task.cancel()
        if self.answer is not None:
            self.answer.interrupt()
        self._line.cancel()

    async def _speak(
        self, promise: Promise, say: str | AsyncIterable[str] | None, added: str | None
    ) -> None:
        asked_at = time.time()
        try:
            if say is not None and not isinstance(say, str):
                say = "".join([piece async for piece in say])
            await self._line.ready()
            stream, first = await self._begin(say, added)
        except ChromaError as error:
            self._break(promise, llm.RealtimeError(str(error), code=type(error).__name__))
            self._report(error)
            return
        except Exception as error:  # of whoever gives the words
            self._break(promise, llm.RealtimeError(f"There is nothing to say: {error!r}"))
            return
        if isinstance(first, TurnDone) and first.reason is EndReason.CANCELLED:
            self._break(promise, llm.RealtimeError("The reply was interrupted."))
            return
        if promise.done():
            return
        answer = self.answer = Answer(stream, asked_at, self._timeout_s, self._on_taken)
        self._line.add_reply(answer.item)
        created = answer.created()
        promise.set_result(created)
        self._on_created(answer, created)
        await self._hand_out(answer, first)

    async def _begin(self, say: str | None, added: str | None) -> tuple[ReplyStream, ReplyEvent]:
        try:
            async with asyncio.timeout(self._timeout_s):
                stream = await self._line.ask(added=added, say=say)
                return stream, await anext(stream)
        except TimeoutError:
            self._line.cancel()
            raise EngineBusy(
                f"The reply timed out: none has begun within {self._timeout_s:g} s. Give the "
                "engine more rows, or it fewer conversations."
            ) from None
        except StopAsyncIteration:
            raise SessionClosed("The reply was taken back.") from None

    async def _hand_out(self, answer: Answer, first: ReplyEvent) -> None:
        try:
            await answer.run(first)
        except ChromaError as error:
            self._line.cancel()  # it may only have been too slow
            self._report(error)
        self._on_over(answer)

    @staticmethod
    def _break(promise: Promise, error: llm.RealtimeError) -> None:
        if not promise.done():
            promise.set_exception(error)
            promise.exception()  # who does not look is not to be warned about it

    async def aclose(self) -> None:
        """Gives up everything."""
        self.interrupt()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
