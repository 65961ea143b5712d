"""A voice: a reference clip, what is said in it, and the checks that make it usable.

What the model makes of a voice (its codes and cached prefix) belongs to the engine. Where a voice
is kept, it may bring its codes along and says when it was deleted: `VoiceKeeper`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from chroma_plugin.audio import (
    OUTPUT_RATE_HZ,
    Samples,
    level_dbfs,
    pcm_to_float,
    read_audio,
    resample,
)
from chroma_plugin.errors import AudioError, VoiceError

MIN_SECONDS, MAX_SECONDS = 3.0, 30.0
MIN_LEVEL_DBFS = -45.0
CLIPPED_SHARE = 0.005
SILENT_SHARE = 0.7
CHARS_PER_SECOND = (4.0, 30.0)


class VoiceKeeper(Protocol):
    """Whoever keeps a voice beyond one process, as an engine sees it: a `VoiceStore`, a database.

    An engine asks for codes before it encodes a clip, and gives back what it encoded. No method
    waits for a disk or for another process, and any thread may call them.
    """

    @property
    def gone(self) -> bool:
        """The voice was deleted: nothing more is to be said in it."""

    def codes(self, codec: str) -> NDArray[np.int64] | None:
        """The codes `[K, T]` that this very codec made of the clip, or None."""

    def keep_codes(self, codec: str, codes: NDArray[np.int64]) -> None:
        """Is given the codes `[K, T]` of the clip, and the identity of the codec."""

    def when_gone(self, tell: Callable[[], None]) -> None:
        """Calls `tell`, on any thread, when the voice is deleted; at once if it was."""


@dataclass(frozen=True, eq=False)
class Voice:
    """A reference clip with its transcript. Make one with `from_file` or `from_samples`.

    Attributes:
        name: what to call it; any text.
        transcript: what is said in the clip, word for word.
        samples: the clip, float32 `[n]`, mono, 24 kHz.
        keeper: where it is kept; None: nowhere beyond this process.
    """

    name: str
    transcript: str
    samples: Samples
    keeper: VoiceKeeper | None = field(default=None, repr=False)

    @classmethod
    def from_file(cls, path: str | Path, transcript: str, name: str | None = None) -> Voice:
        """Reads a clip of 3 to 30 s: WAV, FLAC, MP3 or OGG, any rate, mono or stereo.

        Raises:
            VoiceError: the file, the clip or the transcript cannot be used; says how to mend it.
        """
        try:
            samples = read_audio(path, OUTPUT_RATE_HZ, max_seconds=600)
        except AudioError as error:
            raise VoiceError(f"The reference clip cannot be used. {error}") from error
        return cls.from_samples(samples, OUTPUT_RATE_HZ, transcript, name or Path(path).stem)

    @classmethod
    def from_samples(
        cls, samples: Samples, rate_hz: int, transcript: str, name: str = "unnamed"
    ) -> Voice:
        """Makes a voice of mono samples, float in [-1, 1] or int16, at any rate.

        Raises:
            VoiceError: the clip or the transcript cannot be used; says how to mend it.
        """
        transcript = " ".join((transcript or "").split())
        try:
            samples = resample(pcm_to_float(samples), rate_hz, OUTPUT_RATE_HZ)
        except AudioError as error:
            raise VoiceError(f"The reference clip cannot be used. {error}") from error
        _check(samples, transcript)
        samples.setflags(write=False)
        return cls(name, transcript, samples)

    @classmethod
    def default(cls) -> Voice:
        """The voice inside this package: synthetic speech, nobody's."""
        return _default_voice()

    def kept_by(self, keeper: VoiceKeeper) -> Voice:
        """The same voice, with whoever keeps it."""
        return replace(self, keeper=keeper)

    @property
    def seconds(self) -> float:
        return len(self.samples) / OUTPUT_RATE_HZ

    @cached_property
    def key(self) -> str:
        """A hash of clip and transcript: equal for equal voices, whatever their names."""
        digest = hashlib.sha256(self.transcript.encode())
        digest.update(b"\0")
        digest.update(self.samples.tobytes())
        return digest.hexdigest()

    @property
    def chars_per_second(self) -> float:
        """How fast this voice speaks, of clip and transcript, kept within reason."""
        low, high = 8.0, 25.0
        return min(max(len(self.transcript) / self.seconds, low), high)


@cache
def _default_voice() -> Voice:
    folder = files("chroma_plugin") / "assets" / "voices"
    with as_file(folder / "default.flac") as clip:
        return Voice.from_file(clip, (folder / "default.txt").read_text(), name="default")


def _check(samples: Samples, transcript: str) -> None:
    if not transcript:
        raise VoiceError("The transcript is empty; write down what is said in the clip.")
    seconds = len(samples) / OUTPUT_RATE_HZ
    if seconds < MIN_SECONDS:
        raise VoiceError(
            f"The clip is {seconds:.1f} s long; at least {MIN_SECONDS:g} s of speech are needed. "
            "Record a sentence or two more."
        )
    if seconds > MAX_SECONDS:
        raise VoiceError(
            f"The clip is {seconds:.1f} s long; at most {MAX_SECONDS:g} s can be used. "
            "Cut it to one or two sentences, and its transcript with it."
        )
    level = level_dbfs(samples)
    if level < MIN_LEVEL_DBFS:
        heard = "silent" if level == float("-inf") else f"very quiet ({level:.0f} dBFS)"
        raise VoiceError(
            f"The clip is {heard}; it should be above {MIN_LEVEL_DBFS:g} dBFS. "
            "Record closer to the microphone or raise its level."
        )
    clipped = float(np.mean(np.abs(samples) >= 0.999))
    if clipped > CLIPPED_SHARE:
        raise VoiceError(
            f"{clipped:.1%} of the clip is clipped; at most {CLIPPED_SHARE:.1%} may be. "
            "Record it again at a lower level: clipping cannot be undone."
        )
    window = OUTPUT_RATE_HZ // 50  # 20 ms
    blocks = samples[: len(samples) // window * window].reshape(-1, window)
    levels = np.sqrt(np.mean(np.square(blocks), axis=1))
    silent = float(np.mean(levels < levels.max() * 10 ** (-40 / 20)))
    if silent > SILENT_SHARE:
        raise VoiceError(
            f"{silent:.0%} of the clip is silence; at most {SILENT_SHARE:.0%} may be. "
            "Trim the pauses at its beginning and end."
        )
    rate = len(transcript) / seconds
    if not CHARS_PER_SECOND[0] <= rate <= CHARS_PER_SECOND[1]:
        raise VoiceError(
            f"The transcript has {len(transcript)} characters for {seconds:.1f} s of audio "
            f"({rate:.1f} a second); speech has {CHARS_PER_SECOND[0]:g} to "
            f"{CHARS_PER_SECOND[1]:g}. It should be exactly what is said in the clip."
        )
