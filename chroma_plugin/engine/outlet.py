"""From the frames of one reply to the chunks that its reader gets.

The first chunk is one frame; later ones grow, because a reader that has some audio in hand is
better served by fewer, larger pieces. Once the text has ended, silence is held back until sound
follows it, so that a reply does not end in it. Knows nothing of tensors or threads.
"""

from __future__ import annotations

import numpy as np

from chroma_plugin.audio import FRAME_MS, Samples, fade_out, float_to_pcm, level_dbfs
from chroma_plugin.reply import AudioChunk

GROWTH = (1, 1, 2, 2)
"""Frames of the first chunks; all later ones have `LARGEST`."""
LARGEST = 4
SILENT_DBFS = -50.0
KEPT_SILENCE_FRAMES = 2
"""How much of the silence at the end of a reply stays: 160 ms."""
FADE_MS = 5.0


class Outlet:
    """The audio of one reply on its way out."""

    def __init__(self) -> None:
        self._frames: list[Samples] = []  # of the chunk that is being filled
        self._silence: list[Samples] = []  # held back
        self._chunks = 0
        self._out_frames = 0

    @property
    def out_ms(self) -> float:
        """How much audio has gone out."""
        return self._out_frames * FRAME_MS

    def push(
        self, frame: Samples, *, text_ended: bool, hurry: bool = False, last: bool = False
    ) -> AudioChunk | None:
        """Takes the next frame, float32 `[1920]`; a chunk, if one is full.

        Args:
            frame: the samples.
            text_ended: the thinker has nothing more to say, so silence may be the end.
            hurry: its playback is about to run dry: do not wait for the chunk to be full.
            last: the reply is cut off after this frame: its last 5 ms are faded.
        """
        if text_ended and level_dbfs(frame) < SILENT_DBFS:
            self._silence.append(frame)
            return self.finish() if last else None
        self._frames += [*self._silence, frame]
        self._silence = []
        size = GROWTH[self._chunks] if self._chunks < len(GROWTH) else LARGEST
        full = hurry or last or len(self._frames) >= size
        return self._chunk(cut=last) if full else None

    def finish(self) -> AudioChunk | None:
        """What is left at the end of the reply, without most of the silence."""
        self._frames += self._silence[:KEPT_SILENCE_FRAMES]
        self._silence = []
        return self._chunk() if self._frames else None

    def _chunk(self, *, cut: bool = False) -> AudioChunk:
        samples = np.concatenate(self._frames)
        start_ms = self.out_ms
        self._chunks += 1
        self._out_frames += len(self._frames)
        self._frames = []
        return AudioChunk(float_to_pcm(fade_out(samples, FADE_MS) if cut else samples), start_ms)
