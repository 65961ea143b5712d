"""What of a microphone's sound is worth hearing: silence between words is cut short.

A room sends audio all the time, and nobody tells a realtime model when the user speaks until the
turn is over. So the level decides: sound well above the noise of the last seconds opens the gate,
what came shortly before goes with it, and a second of silence closes it. Who speaks is not known
here; the host's VAD decides what is a turn.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from chroma_plugin.audio import INPUT_RATE_HZ, Samples, level_dbfs

BLOCK = INPUT_RATE_HZ // 50
"""Samples that are judged together: 20 ms."""
BEFORE_S = 0.5
"""So much from before the gate opened is heard as well: soft onsets."""
AFTER_S = 1.0
"""So much silence is heard before the gate closes; longer pauses become that short."""
UNSURE_S = 4.0
"""So much is kept of what was not heard, for a turn in which the gate never opened."""
ABOVE_NOISE_DB, FLOOR_DB, LOUD_DB = 9.0, -60.0, -35.0
"""What is so far above the noise is sound. The noise is taken for at least -60 and at most -35 dB
of full scale."""
NOISE_RISES_DB = 0.02
"""Of one block: a decibel a second, so that a sentence does not become noise."""
SILENT_DB = -70.0
"""What is softer than this is no turn at all."""
WORD_S, NOISE_AFTER_S = 0.3, 10.0
"""Less sound than this, with so much silence after it, was a click."""


class Trimmer:
    """Takes samples at 16 kHz and gives back those that are worth hearing."""

    def __init__(self) -> None:
        self._rest = np.zeros(0, np.float32)  # less than a block
        self._noise_db = FLOOR_DB
        self._lately: deque[bool] = deque(maxlen=5)  # blocks with sound in them
        self._unheard: deque[Samples] = deque(maxlen=_blocks(UNSURE_S))
        self._left = 0  # blocks until the gate closes
        self._passed = 0  # blocks of this turn
        self._sound = self._silence = 0  # blocks: of sound, and of silence since the last of them

    @property
    def open(self) -> bool:
        """Sound passes."""
        return self._left > 0

    @property
    def noise_only(self) -> bool:
        """What passed in this turn was too short for a word, and is long over."""
        return (
            self._passed > 0
            and self._sound < _blocks(WORD_S)
            and self._silence >= _blocks(NOISE_AFTER_S)
        )

    def push(self, samples: Samples) -> Samples:
        """The next samples; returns what of them, and of those before, is to be heard now."""
        samples = np.concatenate([self._rest, samples])
        whole = len(samples) // BLOCK * BLOCK
        self._rest = samples[whole:]
        heard: list[Samples] = []
        blocks = samples[:whole].reshape(-1, BLOCK)
        powers = np.einsum("ij,ij->i", blocks, blocks) / BLOCK
        for block, level_db in zip(blocks, 10 * np.log10(powers + 1e-12), strict=True):
            self._judge(block, float(level_db), heard)
        self._passed += sum(len(piece) for piece in heard) // BLOCK
        return np.concatenate([np.zeros(0, np.float32), *heard])

    def _judge(self, block: Samples, level_db: float, heard: list[Samples]) -> None:
        if level_db < self._noise_db:
            self._noise_db = max(level_db, FLOOR_DB)
        else:
            self._noise_db = min(self._noise_db + NOISE_RISES_DB, LOUD_DB)
        sound = level_db > self._noise_db + ABOVE_NOISE_DB
        self._lately.append(sound)
        self._silence = 0 if sound else self._silence + 1
        if sound:
            self._sound += 1
        if sum(self._lately) >= 3:  # one block alone is a click
            if not self._left:
                heard.extend(list(self._unheard)[-_blocks(BEFORE_S) :])
                self._unheard.clear()
            self._left = _blocks(AFTER_S)
        if self._left:
            heard.append(block)
            self._left -= 1
        else:
            self._unheard.append(block)

    def end(self) -> Samples:
        """The turn is over: what of it is still to be heard.

        If the gate never opened, that is all of the last seconds, unless they are silent: the
        host's VAD has heard somebody, and is to be believed.
        """
        last: list[Samples] = []
        if self._left:
            last = [self._rest]
        elif not self._passed:
            last = [*self._unheard, self._rest]
            if level_dbfs(np.concatenate(last)) < SILENT_DB:
                last = []
        self.reset()
        return np.concatenate([np.zeros(0, np.float32), *last])

    def reset(self) -> None:
        """Another turn begins; what is known of the noise stays."""
        self._rest = np.zeros(0, np.float32)
        self._lately.clear()
        self._unheard.clear()
        self._left = self._passed = self._sound = self._silence = 0


def _blocks(seconds: float) -> int:
    return round(seconds * INPUT_RATE_HZ / BLOCK)
