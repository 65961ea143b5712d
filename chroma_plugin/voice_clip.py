"""A reference clip that somebody uploaded: decoded within limits, and kept as FLAC."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from chroma_plugin.audio import OUTPUT_RATE_HZ, Samples, resample
from chroma_plugin.errors import VoiceError
from chroma_plugin.voice import MAX_SECONDS

FORMATS = frozenset({"WAV", "WAVEX", "FLAC", "OGG", "MP3"})
RATES_HZ = (8_000, 192_000)
MAX_CHANNELS = 2
MAX_CLIP_BYTES = 16 << 20


def decode_clip(clip: bytes) -> Samples:
    """A reference clip as float32 mono at 24 kHz, whatever was uploaded in its name.

    What its header says is not trusted: at most what a voice may be long is decoded, at a rate and
    with as many channels as speech has.

    Raises:
        VoiceError: it is no audio of a known format, or longer than a voice may be.
    """
    import soundfile

    if len(clip) > MAX_CLIP_BYTES:
        raise VoiceError(
            f"The clip has {len(clip) >> 20} MiB; at most {MAX_CLIP_BYTES >> 20} are taken."
        )
    try:
        with soundfile.SoundFile(io.BytesIO(clip)) as file:
            _check_header(file)
            limit = int((MAX_SECONDS + 1) * file.samplerate)
            samples = file.read(limit, dtype="float32", always_2d=True).mean(axis=1)
            rate_hz = file.samplerate
    except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        if isinstance(error, VoiceError):
            raise
        raise VoiceError("The clip is no audio that can be read: use WAV, FLAC, MP3 or OGG.") from (
            error
        )
    if not len(samples) or not np.isfinite(samples).all():
        raise VoiceError("The clip holds no audio, or samples that are no numbers.")
    return resample(samples.astype(np.float32), rate_hz, OUTPUT_RATE_HZ).clip(-1.0, 1.0)


def _check_header(file: Any) -> None:
    low, high = RATES_HZ
    if file.format not in FORMATS:
        raise VoiceError(f"The clip is {file.format}; use WAV, FLAC, MP3 or OGG.")
    if not low <= file.samplerate <= high or not 1 <= file.channels <= MAX_CHANNELS:
        raise VoiceError(
            f"The clip has {file.channels} channels at {file.samplerate} Hz; use one or two at "
            f"{low} to {high} Hz."
        )


def as_flac(samples: Samples) -> bytes:
    """Float samples, mono at 24 kHz, as a FLAC file of 24 bits."""
    import soundfile

    data = io.BytesIO()
    soundfile.write(data, samples, OUTPUT_RATE_HZ, format="FLAC", subtype="PCM_24")
    return data.getvalue()
