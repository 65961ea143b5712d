"""The line to an engine: a session, opened again when it was lost.

What the user says meanwhile waits. Knows nothing of frames and replies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

from chroma_plugin.audio import INPUT_RATE_HZ, Samples
from chroma_plugin.conversation import Message
from chroma_plugin.errors import ChromaError, EngineBusy
from chroma_plugin.pipecat.settings import ChromaRealtimeLLMSettings, sampling
from chroma_plugin.session import Session, SpeechEngine

OPEN_LIMIT_S = 15.0
"""An engine that takes longer to open a session is not there. Pipecat's own limit is 20 s."""
WAITING_LIMIT_S = 60.0
"""So much of what the user says waits for a session."""


class Line:
    """A conversation's session, while there is one.

    Args:
        engine: who opens it.
        settings: what it is opened with, as far as it changes live.
        instructions: tells its system prompt.
        history: tells what it begins with.

    Attributes:
        session: the session; None while there is none.
    """

    def __init__(
        self,
        engine: SpeechEngine,
        settings: ChromaRealtimeLLMSettings,
        instructions: Callable[[], str],
        history: Callable[[], Iterable[Message]],
    ) -> None:
        self.session: Session | None = None
        self._engine = engine
        self._settings = settings
        self._instructions = instructions
        self._history = history
        self._waiting: list[Samples] = []
        self._hung_up = False

    async def open(self) -> None:
        """Opens a session, in place of the one before, and gives it what waits.

        Raises:
            ChromaError: it could not be opened; what waits is forgotten.
        """
        await self.leave()
        try:
            async with asyncio.timeout(OPEN_LIMIT_S):
                session = await self._engine.open_session(
                    voice=self._settings.voice or None,
                    instructions=self._instructions(),
                    sampling=sampling(self._settings),
                    history=self._history(),
                    max_reply_s=self._settings.max_reply_s or None,
                )
        except TimeoutError:
            self._waiting.clear()
            raise EngineBusy(
                f"The engine has opened no session within {OPEN_LIMIT_S:g} s. See whether it "
                "still runs; the next turn tries again."
            ) from None
        except ChromaError:
            self._waiting.clear()
            raise
        if self._hung_up:  # meanwhile
            await session.aclose()
            return
        self.session = session
        waiting, self._waiting = self._waiting, []
        for samples in waiting:
            session.push_audio(samples)

    def update(self) -> None:
        """Tells the session what has changed; it counts from the next reply on."""
        if self.session is not None:
            self.session.update(
                instructions=self._instructions(),
                voice=self._settings.voice or None,
                sampling=sampling(self._settings),
            )

    def push_audio(self, samples: Samples) -> None:
        """Hears a piece of the user's turn, float32 mono at 16 kHz, now or when it is open.

        Raises:
            ChromaError: as `Session.push_audio`.
        """
        if self.session is not None:
            self.session.push_audio(samples)
        elif sum(map(len, self._waiting)) < WAITING_LIMIT_S * INPUT_RATE_HZ:
            self._waiting.append(samples)

    async def leave(self) -> None:
        """Closes the session; another one may be opened."""
        session, self.session = self.session, None
        if session is not None:
            with suppress(ChromaError):  # it was lost
                await session.aclose()

    async def hang_up(self) -> None:
        """Closes the session for good, and one that is being opened as well."""
        self._hung_up = True
        self._waiting.clear()
        await self.leave()
