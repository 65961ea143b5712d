"""Frames of any rate from a room, as samples of a turn."""

from __future__ import annotations

import numpy as np
from livekit import rtc

from chroma_plugin.audio import INPUT_RATE_HZ, Resampler, Samples, pcm_to_float
from chroma_plugin.livekit.trimmer import Trimmer


class Hearing:
    """The user's microphone: resampled, mixed to mono, with long silence cut short."""

    def __init__(self) -> None:
        self._trimmer = Trimmer()
        self._resampler: Resampler | None = None
        self._rate_hz = 0

    @property
    def noise_only(self) -> bool:
        """What was heard since the last turn was no word, and is long over."""
        return self._trimmer.noise_only

    def push(self, frame: rtc.AudioFrame) -> Samples:
        """What of a frame, and of those before it, is to be heard now: float32 at 16 kHz.

        Raises:
            AudioError: the frame's rate is none of speech.
        """
        resampler, before = self._resampler, np.zeros(0, np.float32)
        if resampler is None or frame.sample_rate != self._rate_hz:
            resampler = Resampler(frame.sample_rate, INPUT_RATE_HZ)
            before = self._flush()  # the source has changed: the filter's rest belongs to it
            self._resampler, self._rate_hz = resampler, frame.sample_rate
        samples = pcm_to_float(np.frombuffer(frame.data, dtype=np.int16))
        if frame.num_channels > 1:
            samples = samples.reshape(-1, frame.num_channels).mean(axis=1, dtype=np.float32)
        return self._trimmer.push(np.concatenate([before, resampler.push(samples)]))

    def end_turn(self) -> Samples:
        """What of the turn, which is over, was not heard yet."""
        heard = self._trimmer.push(self._flush())
        return np.concatenate([heard, self._trimmer.end()])

    def forget(self) -> None:
        """What was heard belongs to no turn."""
        self._flush()
        self._trimmer.reset()

    def _flush(self) -> Samples:
        resampler, self._resampler = self._resampler, None
        empty = np.zeros(0, np.float32)
        return empty if resampler is None else resampler.push(empty, last=True)
