"""Where the user is, and what was heard of them that has not gone to the session yet.

Knows nothing of sessions and replies.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto

import numpy as np
from pipecat.frames.frames import InputAudioRawFrame

from chroma_plugin.audio import INPUT_RATE_HZ, Resampler, Samples, pcm_to_float

VAD_START_S = 0.2
"""What Pipecat's VAD takes to be sure of a voice, until it says otherwise."""
PREROLL_MARGIN_S = 0.3
"""Kept of what came before VAD was sure, beyond the time that VAD takes to be sure."""
VOICE_LIMIT_S = 10.0
"""Kept of a voice that has not become a turn yet."""
FADED_S = 2.0
"""So long after a voice has ended a turn can still be made of it: by strategies that wait for
words, which come late."""


class Phase(Enum):
    """Where the user is."""

    IDLE = auto()  # silent, as far as anyone knows
    VOICE = auto()  # VAD hears a voice, but no turn has begun
    FADED = auto()  # that voice has ended; a turn may still be made of it
    TURN = auto()  # in a turn


class Hearing:
    """A transport's audio as 16 kHz mono, and the last of it from before the turn."""

    def __init__(self) -> None:
        self.phase = Phase.IDLE
        self.unguarded_s = 0.0
        """How much was heard before anything told that it knows when the user speaks."""
        self._guarded = False
        self._preroll_s = VAD_START_S + PREROLL_MARGIN_S
        self._faded_s = 0.0
        self._resampler: Resampler | None = None
        self._rate_hz = 0
        self._kept: deque[Samples] = deque()
        self._kept_samples = 0

    def hear(self, frame: InputAudioRawFrame) -> None:
        """Takes audio at any rate, mono or not; `take` gives it out.

        Raises:
            AudioError: half a sample. The frame is dropped.
        """
        if self._resampler is None or frame.sample_rate != self._rate_hz:
            self._resampler = Resampler(frame.sample_rate, INPUT_RATE_HZ)
            self._rate_hz = frame.sample_rate
        samples, channels = pcm_to_float(frame.audio), frame.num_channels
        if channels > 1:
            whole = samples[: len(samples) // channels * channels]
            samples = whole.reshape(-1, channels).mean(axis=1, dtype=np.float32)
        samples = self._resampler.push(samples)
        self._kept.append(samples)
        self._kept_samples += len(samples)
        seconds = len(samples) / INPUT_RATE_HZ
        if not self._guarded:
            self.unguarded_s += seconds
        if self.phase is Phase.FADED:
            self._faded_s += seconds
            if self._faded_s >= FADED_S:
                self.phase = Phase.IDLE
        if self.phase is not Phase.TURN:
            self._forget(self._preroll_s if self.phase is Phase.IDLE else VOICE_LIMIT_S)

    def take(self) -> Samples:
        """What was heard and not taken yet, oldest first: float32 `[samples]` at 16 kHz."""
        kept = np.concatenate([*self._kept, np.zeros(0, np.float32)])
        self._kept.clear()
        self._kept_samples = 0
        return kept

    def vad_starts_in(self, seconds: float) -> None:
        """There is a VAD, and it takes so long to be sure of a voice."""
        self._guarded = True
        self._preroll_s = seconds + PREROLL_MARGIN_S

    def voice_started(self) -> None:
        """VAD is sure of a voice."""
        if self.phase in (Phase.IDLE, Phase.FADED):
            self.phase = Phase.VOICE

    def voice_stopped(self) -> None:
        """VAD hears it no more."""
        if self.phase is Phase.VOICE:
            self.phase, self._faded_s = Phase.FADED, 0.0

    def turn_started(self) -> None:
        """A turn has begun; what is kept belongs to it."""
        self._guarded = True
        self.phase = Phase.TURN

    def turn_ended(self) -> None:
        """The turn is over."""
        self.phase = Phase.IDLE

    def _forget(self, seconds: float) -> None:
        while self._kept_samples - len(self._kept[0]) >= seconds * INPUT_RATE_HZ:
            self._kept_samples -= len(self._kept.popleft())
