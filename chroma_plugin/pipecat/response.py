"""A reply on its way to the user's ear: made, played, heard."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto

from chroma_plugin.pipecat.agenda import Say
from chroma_plugin.reply import ReplyStream, TurnDone
from chroma_plugin.session import Session

PLAYED_MARGIN_S = 1.0
"""Grace for a transport to say that it has played a reply; without transport nobody says it."""


class Stage(Enum):
    """Where a reply is."""

    OPEN = auto()  # its frames are being pushed
    CLOSING = auto()  # but for the last one, which waits for the user's words
    PLAYING = auto()  # all are pushed, the transport still plays them
    CUT = auto()  # interrupted; what was heard of it is not known yet
    OVER = auto()  # nothing more comes of it


@dataclass(slots=True, eq=False)
class Response:
    """The newest reply, and how far it is.

    Attributes:
        stream: what the session gives of it.
        asked_at: when it was asked for, by `time.time`.
        say: the words that it was asked to speak; None for the model's own.
        task: what pushes its frames.
        done: its end, once it has come.
        spoken_turn: the number of the spoken turn that it answers; 0 if it answers none.
    """

    stream: ReplyStream
    asked_at: float
    say: Say | None = None
    stage: Stage = Stage.OPEN
    task: asyncio.Task[None] | None = None
    done: TurnDone | None = None
    spoken_turn: int = 0
    _first_audio_at: float | None = None  # handed to the transport
    _audible_at: float | None = None  # begun by the transport
    _heard_ms: float = 0.0  # when it was interrupted, by the clock
    _played: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def audible(self) -> bool:
        """It can still be heard, or will be."""
        return self.stage in (Stage.OPEN, Stage.CLOSING, Stage.PLAYING)

    @property
    def unfinished(self) -> bool:
        """Frames of it are still to be pushed."""
        return self.stage in (Stage.OPEN, Stage.CLOSING)

    @property
    def text(self) -> str:
        """All that was said of it, if the conversation keeps it."""
        return self.done.text if self.done is not None and self.kept else ""

    @property
    def kept(self) -> bool:
        """It becomes part of the conversation."""
        return self.say is None or self.say.append_to_context

    @property
    def interruptible(self) -> bool:
        return self.say is None or self.say.interruptible

    def audio_pushed(self) -> None:
        """Some of it was handed to the transport."""
        self._first_audio_at = self._first_audio_at or time.monotonic()

    def bot_started(self) -> None:
        """The transport plays it."""
        self._audible_at = self._audible_at or time.monotonic()
        self._played.clear()

    def bot_stopped(self) -> None:
        """The transport plays no more."""
        self._played.set()

    @property
    def plays_for_s(self) -> float:
        """How long it still plays, if the transport plays without a pause; 0 without audio."""
        if self._first_audio_at is None:
            return 0.0
        ends_at = self._first_audio_at + self.stream.delivered_ms / 1000
        return max(ends_at - time.monotonic(), 0.0)

    async def until_played(self) -> None:
        """Waits until the transport has played it, or must have."""
        if self._first_audio_at is not None:
            self.stage = Stage.PLAYING
            with suppress(TimeoutError):
                async with asyncio.timeout(self.plays_for_s + PLAYED_MARGIN_S):
                    await self._played.wait()
        self.stage = Stage.OVER

    def cut(self) -> None:
        """It was interrupted."""
        self._heard_ms = (time.monotonic() - self._audible_at) * 1000 if self._audible_at else 0.0
        self.stage = Stage.CUT

    def settle(self, session: Session, text: str | None = None) -> None:
        """Cuts it in the session's history to what was heard of it.

        Args:
            session: where it was asked for.
            text: what the assistant aggregator wrote down; None leaves it to the clock.
        """
        if self.stage is Stage.CUT:
            self.stage = Stage.OVER
            session.truncate(self._heard_ms, text=text)

    def forget(self, session: Session) -> None:
        """Takes it out of the session's history, if it is not to be kept."""
        if not self.kept:
            session.truncate(0)
