"""Sample rates, PCM and float, files, resampling, levels. Knows no model and no host."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chroma_plugin.errors import AudioError

INPUT_RATE_HZ = 16_000
"""The rate at which the model listens."""
OUTPUT_RATE_HZ = 24_000
"""The rate at which the model speaks."""
FRAME_SAMPLES = 1_920
"""Samples of one frame at 24 kHz."""
FRAME_MS = 80.0
"""One frame of codes: 12.5 a second."""

Samples = NDArray[np.float32]


def pcm_to_float(pcm: bytes | NDArray[np.int16] | Samples) -> Samples:
    """PCM16 bytes, int16 or float32 samples, mono, as float32 in [-1, 1].

    Raises:
        AudioError: half a sample, more than one channel, another type, NaN or infinity.
    """
    if isinstance(pcm, bytes | bytearray | memoryview):
        if len(pcm) % 2:
            raise AudioError(
                f"{len(pcm)} bytes are no whole number of 16-bit samples; "
                "push PCM16 little endian in pieces of even length."
            )
        return np.frombuffer(pcm, dtype="<i2").astype(np.float32) / 32768.0
    samples = np.asarray(pcm)
    if samples.ndim != 1:
        raise AudioError(f"Audio of shape {samples.shape} is not mono; mix its channels first.")
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / 32768.0
    if samples.dtype.kind != "f":
        raise AudioError(f"Samples of type {samples.dtype}; use int16, or float32 in [-1, 1].")
    samples = samples.astype(np.float32)
    if not np.isfinite(samples).all():
        raise AudioError("The audio holds NaN or infinite samples; nothing of it was used.")
    return samples.clip(-1.0, 1.0)


def float_to_pcm(samples: Samples) -> bytes:
    """Float samples in [-1, 1] as PCM16 bytes, little endian; louder ones are clipped."""
    scaled = np.rint(np.nan_to_num(samples, nan=0.0) * 32767.0)
    return bytes(scaled.clip(-32768, 32767).astype("<i2").tobytes())


def resample(samples: Samples, from_hz: int, to_hz: int) -> Samples:
    """A whole signal at another rate."""
    if from_hz == to_hz:
        return samples
    import soxr

    return np.asarray(soxr.resample(samples, from_hz, to_hz), dtype=np.float32)


class Resampler:
    """Resamples a stream piece by piece, without clicks between the pieces.

    Args:
        from_hz: rate of what goes in.
        to_hz: rate of what comes out.
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        import soxr

        same = from_hz == to_hz
        self._stream = None if same else soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32")

    def push(self, samples: Samples, *, last: bool = False) -> Samples:
        """The next piece; `last` lets out what the filter still holds."""
        if self._stream is None:
            return samples
        return np.asarray(self._stream.resample_chunk(samples, last=last), dtype=np.float32)


def read_audio(path: str | Path, rate_hz: int, *, max_seconds: float = 3600.0) -> Samples:
    """Reads WAV, FLAC, MP3 or OGG of any rate, mixed to mono, at the rate asked for.

    Args:
        path: the file.
        rate_hz: rate of the result.
        max_seconds: refuse what is longer, before it is decoded whole.

    Raises:
        AudioError: no such file, no audio, an unreadable or empty one, too long, or NaN in it.
    """
    import soundfile

    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: no such file.")
    try:
        with soundfile.SoundFile(path) as file:
            limit = int(max_seconds * file.samplerate)
            samples = file.read(limit + 1, dtype="float32", always_2d=True)
            from_hz = file.samplerate
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise AudioError(
            f"{path}: cannot be read as audio ({error}). Use WAV, FLAC, MP3 or OGG; "
            "`ffmpeg -i FILE out.wav` converts most others."
        ) from error
    if len(samples) > limit:
        raise AudioError(f"{path}: longer than {max_seconds:g} s; cut it first.")
    if not len(samples):
        raise AudioError(f"{path}: holds no audio; the file is empty or its header is wrong.")
    mono = samples.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise AudioError(f"{path}: holds NaN or infinite samples; export it again.")
    return resample(mono, from_hz, rate_hz).clip(-1.0, 1.0)


def write_wav(path: str | Path, pcm: bytes, rate_hz: int) -> None:
    """Writes mono PCM16 as a WAV file: all of it, or, on an error, nothing.

    Raises:
        AudioError: the folder is missing, or the disk is full, or not writable.
    """
    import soundfile

    path = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        os.close(handle)
        soundfile.write(temporary, np.frombuffer(pcm, "<i2"), rate_hz, format="WAV")
        os.replace(temporary, path)
    except (OSError, soundfile.LibsndfileError) as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise AudioError(f"{path}: cannot be written ({error}).") from error


def fade_out(samples: Samples, ms: float, rate_hz: int = OUTPUT_RATE_HZ) -> Samples:
    """The samples with their last milliseconds faded to silence, so that a cut does not click."""
    count = min(len(samples), int(ms * rate_hz / 1000))
    faded = samples.copy()
    faded[len(samples) - count :] *= np.linspace(1.0, 0.0, count, dtype=np.float32)
    return faded


def level_dbfs(samples: Samples) -> float:
    """RMS level in dB of full scale; -inf for silence."""
    rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0
    return float(20 * np.log10(rms)) if rms > 0 else float("-inf")
