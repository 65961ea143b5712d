"""Sample rates, PCM and float, files, resampling, levels. Knows no model and no host."""

from __future__ import annotations

import io
import os
import tempfile
import wave
from pathlib import Path
from typing import Any

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
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 1_000_000
"""Rates beyond these are a wrong header or a slip, not audio."""

Samples = NDArray[np.float32]


def pcm_to_float(pcm: bytes | NDArray[np.int16] | Samples) -> Samples:
    """PCM16 bytes, int16 or float32 samples, mono, as float32 in [-1, 1].

    Raises:
        AudioError: half a sample, more than one channel, another type, NaN or infinity.
    """
    if isinstance(pcm, bytes | bytearray | memoryview):
        pcm = bytes(pcm)
        if len(pcm) % 2:
            raise AudioError(
                f"{len(pcm)} bytes are no whole number of 16-bit samples; "
                "push PCM16 little endian in pieces of even length."
            )
        return np.frombuffer(pcm, dtype="<i2").astype(np.float32) / 32768.0
    samples = np.asarray(pcm)
    if samples.dtype.kind not in "iufbc" or samples.ndim == 0:
        raise AudioError(
            f"{type(pcm).__name__} is not audio; use PCM16 bytes, or an array of int16 or float32."
        )
    if samples.ndim != 1:
        raise AudioError(f"Audio of shape {samples.shape} is not mono; mix its channels first.")
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / 32768.0
    if samples.dtype.kind != "f":
        raise AudioError(f"Samples of type {samples.dtype}; use int16, or float32 in [-1, 1].")
    if not np.isfinite(samples).all():
        raise AudioError("The audio holds NaN or infinite samples; nothing of it was used.")
    return samples.clip(-1.0, 1.0).astype(np.float32)


def float_to_pcm(samples: Samples) -> bytes:
    """Float samples in [-1, 1] as PCM16 bytes, little endian; louder ones are clipped."""
    scaled = np.rint(np.nan_to_num(samples, nan=0.0).clip(-1.0, 1.0) * 32768.0)
    return bytes(scaled.clip(-32768, 32767).astype("<i2").tobytes())


def resample(samples: Samples, from_hz: int, to_hz: int) -> Samples:
    """A whole signal at another rate.

    Raises:
        AudioError: a rate is no rate of audio.
    """
    _check_rates(from_hz, to_hz)
    if from_hz == to_hz:
        return samples
    import soxr

    return np.asarray(soxr.resample(samples, from_hz, to_hz), dtype=np.float32)


class Resampler:
    """Resamples a stream piece by piece, without clicks between the pieces.

    Args:
        from_hz: rate of what goes in.
        to_hz: rate of what comes out.

    Raises:
        AudioError: a rate is no rate of audio.
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        _check_rates(from_hz, to_hz)
        import soxr

        same = from_hz == to_hz
        self._stream = None if same else soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32")

    def push(self, samples: Samples, *, last: bool = False) -> Samples:
        """The next piece; `last` lets out what the filter still holds."""
        if self._stream is None:
            return samples
        return np.asarray(self._stream.resample_chunk(samples, last=last), dtype=np.float32)


def _check_rates(*rates_hz: int) -> None:
    for rate in rates_hz:
        if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
            raise AudioError(
                f"A sample rate of {rate} Hz cannot be right; speech has 8,000 to 48,000 Hz."
            )


def read_audio(path: str | Path, rate_hz: int, *, max_seconds: float = 3600.0) -> Samples:
    """Reads WAV, FLAC, MP3 or OGG of any rate, mixed to mono, at the rate asked for.

    A WAV file cut short, or one whose header promises more than the file holds, is read as far as
    it goes.

    Args:
        path: the file.
        rate_hz: rate of the result.
        max_seconds: refuse what is longer, before it is decoded whole.

    Raises:
        AudioError: no such file, no audio, an unreadable or empty one, too long, or NaN in it.
    """
    import soundfile

    path = Path(path)
    try:
        with path.open("rb") as raw, soundfile.SoundFile(raw) as file:
            from_hz = file.samplerate
            limit = int(max_seconds * from_hz)
            mono = _read_mono(file, limit + 1)
    except FileNotFoundError as error:
        raise AudioError(f"{path}: no such file.") from error
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened ({error.strerror}).") from error
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        why = getattr(error, "error_string", str(error)).rstrip(".")
        raise AudioError(
            f"{path}: cannot be read as audio ({why}). Use WAV, FLAC, MP3 or OGG; "
            "`ffmpeg -i FILE out.wav` converts most others."
        ) from error
    if len(mono) > limit:
        raise AudioError(f"{path}: longer than {max_seconds:g} s; cut it first.")
    if not len(mono):
        raise AudioError(
            f"{path}: holds no audio: it is empty or its header is wrong. Record or export it "
            "again; `ffmpeg -i FILE out.wav` mends a wrong header."
        )
    if not np.isfinite(mono).all():
        raise AudioError(f"{path}: holds NaN or infinite samples; export it again.")
    try:
        return resample(mono, from_hz, rate_hz).clip(-1.0, 1.0)
    except AudioError as error:
        raise AudioError(f"{path}: {error}") from error


def _read_mono(file: Any, limit: int) -> Samples:
    """At most `limit` samples, block by block: a header's word on the length is not trusted."""
    blocks: list[Samples] = [np.zeros(0, np.float32)]
    left = limit
    while left > 0:
        block = file.read(min(left, 1 << 20), dtype="float32", always_2d=True)
        if not len(block):
            break
        blocks.append(block.mean(axis=1, dtype=np.float32))
        left -= len(block)
    return np.concatenate(blocks)


def write_wav(path: str | Path, pcm: bytes, rate_hz: int) -> None:
    """Writes mono PCM16 as a WAV file: all of it, or, on an error, nothing.

    Raises:
        AudioError: the folder is missing, or the disk is full, or not writable.
    """
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(pcm)
    try:
        replace_file(path, data.getvalue())
    except OSError as error:
        raise AudioError(f"{path}: cannot be written ({error.strerror}).") from error


def replace_file(path: str | Path, data: bytes) -> None:
    """Writes a file beside its place and moves it there, so that no half of one is ever seen.

    A device or a pipe is written to as it is.

    Raises:
        OSError: the folder is missing, or the disk is full, or not writable.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = path.resolve()  # a link stays a link
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def fade_out(samples: Samples, ms: float, rate_hz: int = OUTPUT_RATE_HZ) -> Samples:
    """The samples with their last milliseconds faded to silence, so that a cut does not click."""
    count = min(len(samples), int(ms * rate_hz / 1000))
    faded = samples.copy()
    ramp = np.linspace(1.0, 0.0, count + 1, dtype=np.float32)[1:]  # its last one is silence
    faded[len(samples) - count :] *= ramp
    return faded


def level_dbfs(samples: Samples) -> float:
    """RMS level in dB of full scale; -inf for silence."""
    rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0
    return float(20 * np.log10(rms)) if rms > 0 else float("-inf")
