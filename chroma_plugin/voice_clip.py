"""A reference clip from a stranger: decoded as far as a voice may be long, and kept as FLAC.

`voice_upload.decode_upload` runs this in a process of its own.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from chroma_plugin.audio import OUTPUT_RATE_HZ, Samples, resample
from chroma_plugin.errors import VoiceError
from chroma_plugin.voice import MAX_SECONDS

FORMATS = frozenset({"WAV", "WAVEX", "FLAC", "OGG", "MP3"})
RATES_HZ = (8_000, 96_000)
MAX_CHANNELS = 2
MAX_CLIP_BYTES = 16 << 20
MARGIN_S = 1.0
"""Decoded beyond what a voice may be long, to know that a clip is longer."""
_UNKNOWN_BYTES = 0x7FFF0000
"""Lengths from here on are what writers put into a WAV header who do not know them yet."""


def decode_clip(clip: bytes) -> Samples:
    """A reference clip as float32 mono at 24 kHz, whatever was uploaded in its name.

    What its header says is not trusted: at most what a voice may be long is decoded, at a rate and
    with as many channels as speech has.

    Raises:
        VoiceError: it is no audio of a known format, cut short, longer than a voice may be, or
            holds samples that are no numbers; says which, and what mends it.
    """
    import soundfile

    if not clip:
        raise VoiceError("The clip is empty: 0 bytes arrived. Choose the file again.")
    if len(clip) > MAX_CLIP_BYTES:
        raise VoiceError(
            f"The clip has {len(clip) / (1 << 20):.1f} MiB; at most {MAX_CLIP_BYTES >> 20} are "
            "taken. Send it as FLAC, or cut it to one or two sentences."
        )
    try:
        file = soundfile.SoundFile(io.BytesIO(clip))
    except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError) as error:
        raise VoiceError(
            "The clip is no audio that can be read: use WAV, FLAC, MP3 or OGG; "
            "`ffmpeg -i FILE out.wav` converts most others."
        ) from error
    with file:
        _check_header(file)
        rate_hz = file.samplerate
        limit = int((MAX_SECONDS + MARGIN_S) * rate_hz)
        try:
            samples = file.read(limit, dtype="float32", always_2d=True).mean(axis=1)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise VoiceError(
                "The clip is damaged or cut short. Export it again, or send it again."
            ) from error
    if len(samples) == limit:
        raise VoiceError(
            f"The clip is longer than {MAX_SECONDS:g} s. Cut it to one or two sentences, and its "
            "transcript with it."
        )
    if _ends_early(clip):
        raise VoiceError(
            f"The clip is cut short: {len(samples) / rate_hz:.1f} s of it arrived, and its header "
            "promises more. Export it again, or send it again."
        )
    if not len(samples):
        raise VoiceError("The clip holds no samples. Record or export it again.")
    if not np.isfinite(samples).all():
        raise VoiceError("The clip holds samples that are no numbers (NaN). Export it again.")
    return resample(samples.astype(np.float32), rate_hz, OUTPUT_RATE_HZ).clip(-1.0, 1.0)


def _check_header(file: Any) -> None:
    low, high = RATES_HZ
    if file.format not in FORMATS:
        raise VoiceError(
            f"The clip is {file.format}; use WAV, FLAC, MP3 or OGG: `ffmpeg -i FILE out.wav`."
        )
    if not low <= file.samplerate <= high:
        raise VoiceError(
            f"The clip's sample rate is {file.samplerate:,} Hz; use {low:,} to {high:,} Hz: "
            "`ffmpeg -i FILE -ar 48000 out.wav`."
        )
    if not 1 <= file.channels <= MAX_CHANNELS:
        raise VoiceError(
            f"The clip has {file.channels} channels; use one, or two to be mixed: "
            "`ffmpeg -i FILE -ac 1 out.wav`."
        )


def _ends_early(clip: bytes) -> bool:
    """Whether a WAV file holds less than its header says; libsndfile takes what is there."""
    if clip[:4] != b"RIFF":
        return False
    promised = int.from_bytes(clip[4:8], "little")
    return len(clip) - 8 < promised < _UNKNOWN_BYTES


def as_flac(samples: Samples) -> bytes:
    """Float samples, mono at 24 kHz, as a FLAC file of 24 bits."""
    import soundfile

    data = io.BytesIO()
    soundfile.write(data, samples, OUTPUT_RATE_HZ, format="FLAC", subtype="PCM_24")
    return data.getvalue()
