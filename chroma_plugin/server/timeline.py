"""When what happened in one turn. Metrics, spans, logs and what a client is told come from it.

Knows no event, no session and nobody who measures.
"""

from __future__ import annotations

import time
from typing import Literal

Moment = Literal[
    "speech_end",  # the user's voice ended, as the server's own turn detection found out
    "commit",  # what was said became a turn
    "asked",  # a reply was asked for
    "first_text",  # the first of its words left for the client
    "engine_audio",  # its first sound came from the engine
    "first_audio",  # its first sound left for the client
    "interruption",  # somebody stopped it
    "end",  # its end was told
]


def now_s() -> float:
    """The clock of all timelines: seconds that only go forward."""
    return time.monotonic()


class Timeline:
    """The moments of one turn and its reply, in seconds of `now_s`.

    Attributes:
        turn: the id of what the user said; None if nothing was said before this reply.
        user_audio_ms: how long that is.
    """

    __slots__ = ("_at", "turn", "user_audio_ms")

    def __init__(self) -> None:
        self.turn: str | None = None
        self.user_audio_ms = 0.0
        self._at: dict[Moment, float] = {}

    def mark(self, moment: Moment, at_s: float | None = None) -> None:
        """Notes that something happened, now or at `at_s`; only its first time counts."""
        if moment not in self._at:
            self._at[moment] = now_s() if at_s is None else at_s

    def at(self, moment: Moment) -> float | None:
        """When it happened; None if it did not."""
        return self._at.get(moment)

    def between_s(self, begin: Moment, end: Moment) -> float | None:
        """Seconds from one moment to another; None if one of them did not happen."""
        begin_s, end_s = self.at(begin), self.at(end)
        return None if begin_s is None or end_s is None else end_s - begin_s

    @property
    def begin(self) -> Moment:
        """The first moment: the end of the user's voice, or else the commit, or the request."""
        for moment in ("speech_end", "commit"):
            if moment in self._at:
                return moment
        return "asked"

    @property
    def speech_end_to_first_audio_s(self) -> float | None:
        """What the user waited for; None if nothing was said before the reply.

        From the end of the voice, which is before the silence that told it. Where the client finds
        its turns itself nobody here knows that end: from the commit then.
        """
        return None if self.begin == "asked" else self.between_s(self.begin, "first_audio")

    def latency_ms(self, audio_ms: float) -> dict[str, float]:
        """What a client is told, in ms; what did not happen is left out.

        Args:
            audio_ms: the length of the reply.
        """
        seconds = {
            "speech_end_to_first_audio": self.speech_end_to_first_audio_s,
            "ask_to_first_audio": self.between_s("asked", "first_audio"),
            "first_text": self.between_s("asked", "first_text"),
            "total": self.between_s("asked", "end"),
            "audio": audio_ms / 1000,
        }
        return {name: round(s * 1000, 1) for name, s in seconds.items() if s is not None}
