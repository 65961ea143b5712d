"""Where the user's turns begin and end, by the sound alone. Knows no session and no protocol."""

from __future__ import annotations

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
    """The user has ended; `end_ms` is where, the silence that told it included."""

    end_ms: float


TurnEvent = SpeechStarted | Speech | SpeechStopped


class TurnDetector:
    """Finds turns in a stream of sound.

    Args:
        threshold: a window this likely to be speech is a voice, 0 to 1.
        padding_ms: so much of what came before the voice belongs to the turn.
        silence_ms: a turn ends after so much without a voice.
        vad: what judges the windows.
        from_ms: how much was heard before this detector came.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.5,
        padding_ms: float = 300.0,
        silence_ms: float = 500.0,
        vad: VoiceActivity | None = None,
        from_ms: float = 0.0,
    ) -> None:
        self.threshold, self.silence_ms = threshold, silence_ms
        self._vad = vad or SileroVad()
        self._padding_windows = int(np.ceil(padding_ms / WINDOW_MS))
        self._rest = np.zeros(0, np.float32)  # less than a window
        self._before: list[Samples] = []  # windows of no turn, the last ones
        self._heard_ms = from_ms
        self._voiced = self._silent = self._idle = 0
        self.in_turn = False

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
            if self._silent * WINDOW_MS >= self.silence_ms:
                self.in_turn, self._voiced, self._idle = False, 0, 0
                yield SpeechStopped(self._heard_ms)
            return
        self._before.append(window)
        self._voiced = self._voiced + 1 if likely >= self.threshold else 0
        if self._voiced == SURE_WINDOWS:
            padded = np.concatenate(self._before)
            self._before.clear()
            self.in_turn, self._silent = True, 0
            yield SpeechStarted(self._heard_ms - len(padded) * 1000 / INPUT_RATE_HZ)
            yield Speech(padded)
            return
        del self._before[: -(self._padding_windows + max(self._voiced, 1))]
        self._idle = 0 if self._voiced else self._idle + 1
        if self._idle >= RESET_WINDOWS:
            self._vad.reset()
            self._idle = 0
