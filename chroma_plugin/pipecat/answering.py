"""From what is wanted to the last frame of the reply: one reply at a time, one after the other.

It knows when a reply may begin and what an interruption leaves of it. What the user does, and what
is wanted, it is told by the service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from pipecat.frames.frames import (
    InterruptionFrame,
    LLMContextUserTurnFrame,
    TranscriptionFrame,
)
from pipecat.processors.frame_processor import FrameDirection
from pipecat.services.llm_service import LLMService
from pipecat.utils.time import time_now_iso8601

from chroma_plugin.errors import ChromaError
from chroma_plugin.pipecat.agenda import Agenda, Say, Wish
from chroma_plugin.pipecat.asking import Asking
from chroma_plugin.pipecat.context import ContextReader
from chroma_plugin.pipecat.hearing import Hearing, Phase
from chroma_plugin.pipecat.line import Line
from chroma_plugin.pipecat.response import Response, Stage
from chroma_plugin.pipecat.speech import Speech
from chroma_plugin.pipecat.transcripts import Transcriber, Transcripts

TRANSCRIPT_GRACE_S = 2.0
"""So long after a reply has been played its end waits for the user's words."""


class Answering:
    """Answers what is wanted.

    Args:
        service: pushes the frames, keeps tasks and metrics.
        line: the session that is asked.
        reader: knows what is in the context.
        hearing: knows whether the user speaks.
        transcribe: who writes down what the user says.
        push_reply: pushes what the model says, traced; `speech.push` in the end.
        report: tells of an error.
    """

    def __init__(
        self,
        service: LLMService,
        line: Line,
        reader: ContextReader,
        hearing: Hearing,
        transcribe: bool | Transcriber,
        push_reply: Callable[[Response], Awaitable[None]],
        report: Callable[[ChromaError], Awaitable[None]],
    ) -> None:
        self.speech = Speech(service)
        self.transcripts = Transcripts(transcribe, service.create_task, self._write_down)
        self._service = service
        self._line = line
        self._reader = reader
        self._hearing = hearing
        self._push_reply = push_reply
        self._report = report
        self._agenda = Agenda()
        self._asking = Asking(line, reader, self.transcripts)
        self._opening: asyncio.Task[None] | None = None  # of another session

    @property
    def response(self) -> Response | None:
        """The newest reply."""
        return self._asking.response

    # -- what is wanted -------------------------------------------------------------------------

    def turn_begins(self) -> None:
        """The user speaks: a session must hear it."""
        if Wish.ANSWER in self._agenda:  # the rest of a turn that was not answered yet
            self._agenda.drop(Wish.ANSWER)
            return
        self.transcripts.forget()
        if self._line.session is None or self._reader.replaced:
            self._renew_soon()

    async def want(self, item: Wish | Say) -> None:
        """Answers it as soon as neither the user nor another reply speaks."""
        self._agenda.add(item)
        await self._answer()

    async def _answer(self) -> None:
        """Asks for the next reply that is wanted, if it may begin.

        If not, this is called again: at the end of the turn, when the reply before has been
        played, or when the session is open.
        """
        if not self._agenda or self._hearing.phase is Phase.TURN or self._opening is not None:
            return
        if self.response is not None and self.response.audible:
            return
        heard = Wish.ANSWER in self._agenda  # and the session that heard it must answer it
        if self._line.session is None or (self._reader.replaced and not heard):
            self._renew_soon()
            return
        try:
            response = self._asking.ask(self._line.session, self._agenda.take())
        except ChromaError as error:
            await self._report(error)
            return
        if response is not None:
            response.task = self._service.create_task(self._speak(response))
        else:
            await self._answer()

    def _renew_soon(self) -> None:
        if self._opening is None:
            self._opening = self._service.create_task(self._renew())

    async def _renew(self) -> None:
        """Opens a session in place of one that is lost, or that knows another context."""
        try:
            await self._line.open()
        except ChromaError as error:
            self._opening = None
            self._agenda.clear()
            self._hearing.turn_ended()  # once is often enough to say so
            await self._report(error)
        else:
            self._opening = None
            await self._service.set_usable(True)
            await self._answer()

    # -- a reply --------------------------------------------------------------------------------

    async def _speak(self, response: Response) -> None:
        await self.speech.open(response)
        try:
            if response.say is None:
                await self._push_reply(response)
            else:
                await self.speech.push(response)
        except ChromaError as error:
            if self._line.session is not None:
                self._line.session.cancel()  # it may only have been too slow
            await self._report(error)
        except Exception as error:
            await self._service.push_error(f"The reply failed: {error}", exception=error)
        await self.speech.stop(response)
        response.stage = Stage.CLOSING
        grace_s = response.plays_for_s + TRANSCRIPT_GRACE_S
        await self.transcripts.wait(response.spoken_turn, grace_s)
        await self.speech.close(response)
        await response.until_played()
        await self._answer()

    async def interrupt(self, frame: InterruptionFrame, direction: FrameDirection) -> None:
        """Stops the reply before the frame is passed on: nothing of it follows the frame."""
        self._reader.interrupted()
        self._agenda.hush()
        if self._hearing.phase is not Phase.TURN:
            self._agenda.drop(Wish.RUN)  # as any frame that waits in a queue
        response, stage = self.response, Stage.OVER
        if response is not None and response.audible and response.interruptible:
            stage = response.stage
            response.cut()
            await self._silence(response)
        await self._service.push_frame(frame, direction)
        if response is not None and stage is Stage.OPEN:
            await self.speech.cut(response)
        if response is not None and stage in (Stage.OPEN, Stage.CLOSING):
            await self.speech.close(response)
        await self._answer()

    async def _silence(self, response: Response) -> None:
        if self._line.session is not None:
            self._line.session.cancel()
        if response.task is not None:
            await self._service.cancel_task(response.task)

    def settle(self, text: str) -> None:
        """Cuts an interrupted reply in the history to what the aggregator wrote down of it."""
        self._asking.settle(text)

    async def _write_down(self, number: int, text: str) -> None:
        """Puts what the user said in a turn where it belongs: before the reply to it."""
        written = TranscriptionFrame(text, "", time_now_iso8601(), finalized=True)
        written.interruptible = False
        response = self.response
        if response is not None and response.spoken_turn == number and response.unfinished:
            self._reader.coming(number, text)  # the aggregator writes it when the reply ends
            await self._service.push_frame(written, FrameDirection.UPSTREAM)
        elif self._reader.insert(number, text):
            at = written.timestamp
            await self._service.push_frame(written)
            await self._service.broadcast_frame(LLMContextUserTurnFrame, text=text, timestamp=at)
        await self._service._call_event_handler("on_user_transcript", text)

    # -- the end --------------------------------------------------------------------------------

    async def finish(self) -> None:
        """Waits until all that is wanted has been answered."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        while (response := self.response) and (response.unfinished or self._agenda):
            if response.task is None or response.task.done():
                break
            await asyncio.wait([response.task])

    async def abort(self) -> None:
        """Ends everything at once."""
        self._agenda.clear()
        if self._opening is not None:
            opening, self._opening = self._opening, None
            await self._service.cancel_task(opening)
        if self.response is not None:
            self.response.stage = Stage.OVER
            await self._silence(self.response)
