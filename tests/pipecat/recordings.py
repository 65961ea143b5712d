"""What tests say into a microphone."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np

from chroma_plugin.audio import INPUT_RATE_HZ, Samples, read_audio


@cache
def capital() -> Samples:
    """The packaged question: espeak-ng asks for a capital."""
    path = files("chroma_plugin") / "assets" / "questions" / "capital.flac"
    return read_audio(str(path), INPUT_RATE_HZ)


def tone(seconds: float, rate_hz: int = INPUT_RATE_HZ) -> Samples:
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * 220 * t)).astype(np.float32)


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * INPUT_RATE_HZ), np.float32)
