"""Asks a session for the reply that is wanted, with everything that is new."""

from __future__ import annotations

import itertools
import time
from contextlib import suppress

from loguru import logger

from chroma_plugin.errors import AudioError, SessionClosed
from chroma_plugin.pipecat.agenda import Say, Wish
from chroma_plugin.pipecat.context import ContextReader
from chroma_plugin.pipecat.line import Line
from chroma_plugin.pipecat.response import Response
from chroma_plugin.pipecat.transcripts import Transcripts
from chroma_plugin.reply import ReplyStream
from chroma_plugin.session import Session


class Asking:
    """What stands between a wish and a reply.

    Args:
        line: the session that is asked.
        reader: knows what was typed.
        transcripts: are told of each spoken turn.

    Attributes:
        response: the newest reply.
    """

    def __init__(self, line: Line, reader: ContextReader, transcripts: Transcripts) -> None:
        self.response: Response | None = None
        self._line = line
        self._reader = reader
        self._transcripts = transcripts
        self._numbers = itertools.count(1)  # of spoken turns, over all sessions

    def ask(self, session: Session, wanted: Say | frozenset[Wish]) -> Response | None:
        """Asks for a reply; None if there is nothing to answer.

        Raises:
            ChromaError: as `Session.respond`.
        """
        self.settle()
        if self.response is not None:
            self.response.forget(session)
        self._line.update()
        asked_at = time.time()
        if isinstance(wanted, Say):
            self.response = Response(session.say(wanted.text), asked_at, say=wanted)
            return self.response
        typed, hints = self._reader.news()
        for text in typed:
            session.add_user_text(text)
        instructions = "\n\n".join(hints) or None
        stream, number = None, 0
        if Wish.ANSWER in wanted:
            stream, number = self._commit(session, instructions)
        if stream is None and (typed or Wish.RUN in wanted):
            stream = session.respond(instructions=instructions)
        if stream is None:
            return None
        self.response = Response(stream, asked_at, spoken_turn=number)
        return self.response

    def _commit(self, session: Session, hints: str | None) -> tuple[ReplyStream | None, int]:
        """Ends the spoken turn; its reply and its number, if it holds enough to be one."""
        try:
            stream = session.commit_turn(instructions=hints)
        except AudioError as error:
            logger.debug(f"turn ignored: {error}")
            return None, 0
        number, last = next(self._numbers), self.response
        self._reader.turn_spoken(number, last.text if last is not None else "")
        self._transcripts.begin(number, stream.turn, session)
        return stream, number

    def settle(self, text: str | None = None) -> None:
        """Cuts an interrupted reply in the history to what was heard of it.

        Args:
            text: what the assistant aggregator wrote down; None leaves it to the clock.
        """
        if self.response is not None and self._line.session is not None:
            with suppress(SessionClosed):
                self.response.settle(self._line.session, text)
