"""Where the user's turns begin and end, by the sound alone. Knows no session and no protocol."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from chroma_plugin.audio import INPUT_RATE_HZ, Samples
from chroma_plugin.server.vad import WINDOW_MS, WINDOW_SAMPLES, SileroVad

SURE_WINDOWS = 3
"""A voice is one after so many windows in a row (96 ms): a click or a cough interrupts nobody."""
HYSTERESIS = 0.15
"""A voice goes on while it is at most so much less likely than what it began with."""
RESET_WINDOWS = 62
"""The network forgets the past after about 2 s without a voice."""


JUDGED_S = 8.0
"""So much of a turn is told with a pause: what Smart Turn looks at."""
PAUSE_WINDOWS = 6
"""A pause is one after so many windows without a voice (192 ms)."""


class VoiceActivity(Protocol):
    """What judges sound: `SileroVad`, or a test's stand-in."""

    def probability(self, window: Samples) -> float:
        """How likely 512 samples are speech."""

    def reset(self) -> None:
        """Forgets what was heard."""


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """The user has begun.

    Attributes:
        start_ms: where the turn begins, the padding before the voice included; from the first
            sample that was ever heard.
    """

    start_ms: float


@dataclass(frozen=True, slots=True)
class Speech:
    """Sound that belongs to the turn: float32 `[n]`, mono, 16 kHz."""

    samples: Samples


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """The user has ended.

    Attributes:
        end_ms: where, the silence that told it included.
        silence_ms: that silence.
    """

    end_ms: float
    silence_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class SpeechPaused:
    """The user is silent, and may have ended: whoever knows better says so with `TurnDetector.end`
    before the next event is taken.

    Attributes:
        samples: the last of the turn, at most `JUDGED_S`, float32 `[n]`, mono, 16 kHz.
    """

    samples: Samples


TurnEvent = SpeechStarted | Speech | SpeechPaused | SpeechStopped


class TurnDetector:
    """Finds turns in a stream of sound.

    Args:
        threshold: a window this likely to be speech is a voice, 0 to 1.
        padding_ms: so much of what came before the voice belongs to the turn.
        silence_ms: a turn ends after so much without a voice.
        pauses: tell of shorter silences, once each, so that somebody can end the turn there.
        vad: what judges the windows.
        from_ms: how much was heard before this detector came.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.5,
        padding_ms: float = 300.0,
        silence_ms: float = 500.0,
        pauses: bool = False,
        vad: VoiceActivity | None = None,
        from_ms: float = 0.0,
    ) -> None:
        self.threshold, self.silence_ms, self._pauses = threshold, silence_ms, pauses
        self._vad = vad or SileroVad()
        self._padding_windows = int(np.ceil(padding_ms / WINDOW_MS))
        self._rest = np.zeros(0, np.float32)  # less than a window
        self._before: list[Samples] = []  # windows of no turn, the last ones
        self._turn = deque[Samples](maxlen=round(JUDGED_S * 1000 / WINDOW_MS))
        self._heard_ms = from_ms
        self._voiced = self._silent = self._idle = 0
        self.in_turn = self._ended = False

    @property
    def before(self) -> Samples:
        """The last of what was heard and is no turn: the padding that one would have."""
        return np.concatenate([*self._before, self._rest])

    def end(self) -> None:
        """The turn has ended in the pause that was told last."""
        self._ended = True

    def push(self, samples: Samples) -> Iterator[TurnEvent]:
        """Hears the next piece, of any length; less than a window of it waits for the rest."""
        heard = np.concatenate([self._rest, samples])
        end = len(heard) // WINDOW_SAMPLES * WINDOW_SAMPLES
        self._rest = heard[end:].copy()
        for start in range(0, end, WINDOW_SAMPLES):
            yield from self._window(heard[start : start + WINDOW_SAMPLES])

    def take_rest(self) -> Samples:
        """Ends the turn where it is and hands out what of it is not judged yet."""
        rest = self._rest if self.in_turn else np.zeros(0, np.float32)
        self._heard_ms += len(self._rest) * 1000 / INPUT_RATE_HZ
        self.in_turn, self._rest = False, np.zeros(0, np.float32)
        self._before.clear()
        self._voiced = self._silent = 0
        return rest

    def _window(self, window: Samples) -> Iterator[TurnEvent]:
        likely = self._vad.probability(window)
        self._heard_ms += WINDOW_MS
        if self.in_turn:
            yield Speech(window)
            voice = likely >= self.threshold - HYSTERESIS
            self._silent = 0 if voice else self._silent + 1
            if self._pauses:
                self._turn.append(window)
                if self._silent == PAUSE_WINDOWS:
                    self._ended = False
                    yield SpeechPaused(np.concatenate(self._turn))
            if self._ended or self._silent * WINDOW_MS >= self.silence_ms:
                self.in_turn, self._voiced, self._idle, self._ended = False, 0, 0, False
                yield SpeechStopped(self._heard_ms, self._silent * WINDOW_MS)
            return
        self._before.append(window)
        self._voiced = self._voiced + 1 if likely >= self.threshold else 0
        if self._voiced == SURE_WINDOWS:
            padded = np.concatenate(self._before)
            self._before.clear()
            self.in_turn, self._silent, self._ended = True, 0, False
            self._turn.clear()
            self._turn.append(padded)
            yield SpeechStarted(self._heard_ms - len(padded) * 1000 / INPUT_RATE_HZ)
            yield Speech(padded)
            return
        del self._before[: -(self._padding_windows + max(self._voiced, 1))]
        self._idle = 0 if self._voiced else self._idle + 1
        if self._idle >= RESET_WINDOWS:
            self._vad.reset()
            self._idle = 0
