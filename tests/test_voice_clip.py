"""Clips of strangers: what is decoded, and what is refused with which words."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
import soundfile

from chroma_plugin.errors import VoiceError
from chroma_plugin.voice import Voice
from chroma_plugin.voice_clip import as_flac, decode_clip

CLIP = Voice.default()


def sound(
    samples: Any = CLIP.samples, rate: int = 24000, form: str = "WAV", subtype: str | None = None
) -> bytes:
    data = io.BytesIO()
    soundfile.write(data, samples, rate, format=form, subtype=subtype)
    return data.getvalue()


def lying_wav(rate: int, channels: int, promised: int) -> bytes:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * 2 % 2**32, 2, 16)
    head = struct.pack("<4sI4s", b"RIFF", promised, b"WAVE")
    return head + form + struct.pack("<4sI", b"data", promised) + bytes(4000)


def with_nan() -> bytes:
    samples = CLIP.samples.copy()
    samples[1000] = np.nan
    return sound(samples, subtype="FLOAT")


def hour(form: str) -> bytes:
    return sound(np.zeros(8000 * 3600, np.int16), 8000, form)


WAV, FLAC = sound(), sound(form="FLAC")
HOSTILE = {
    "nothing": (b"", "0 bytes arrived"),
    "a beginning": (b"RIFF", "no audio that can be read"),
    "zeros": (bytes(10_000), "no audio that can be read"),
    "a zip": (b"PK\3\4" + bytes(1000), "no audio that can be read"),
    "flac in name": (b"fLaC" + b"\xff" * 1000, "no audio that can be read"),
    "too big": (bytes(17 << 20), "has 17.0 MiB; at most 16"),
    "a lie about the rate": (
        lying_wav(2**31 - 1, 1, 4036),
        "rate is 2,147,483,647 Hz; use 8,000 to",
    ),
    "a lie about channels": (lying_wav(24000, 60000, 4036), "no audio|60000 channels"),
    "a lie about the length": (lying_wav(24000, 1, 2**30), "cut short: 0.1 s"),
    "a slow one": (lying_wav(1, 1, 4036), "rate is 1 Hz"),
    "half a wav": (WAV[: len(WAV) // 2], "cut short: 3.2 s of it arrived"),
    "half a flac": (FLAC[: len(FLAC) // 2], "damaged or cut short"),
    "192 kHz": (sound(np.zeros(192_000, np.int16), 192_000), "rate is 192,000 Hz"),
    "eight channels": (sound(np.zeros((24_000, 8), np.float32)), "has 8 channels"),
    "another format": (sound(form="AIFF"), "is AIFF; use WAV"),
    "no samples": (sound(np.zeros(0, np.int16)), "holds no samples"),
    "no numbers": (with_nan(), "no numbers"),
    "an hour of silence": (hour("FLAC"), "longer than 30 s"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_clip_that_cannot_be_used_is_refused_with_its_reason(name: str) -> None:
    clip, reason = HOSTILE[name]
    with pytest.raises(VoiceError, match=reason):
        decode_clip(clip)


@pytest.mark.parametrize(
    ("form", "subtype"),
    [("WAV", None), ("FLAC", None), ("OGG", None), ("OGG", "OPUS"), ("MP3", None)],
)
def test_every_format_is_decoded(form: str, subtype: str | None) -> None:
    samples = decode_clip(sound(form=form, subtype=subtype))
    assert (samples.dtype, samples.shape) == (np.float32, CLIP.samples.shape)
    heard = float(np.corrcoef(samples, CLIP.samples)[0, 1])
    assert heard > (0.9999 if form in ("WAV", "FLAC") else 0.9)


def test_other_rates_and_two_channels_become_24_khz_mono() -> None:
    two = np.stack([np.repeat(CLIP.samples, 2), np.zeros(2 * len(CLIP.samples))], axis=1)
    samples = decode_clip(sound(two, 48_000))
    assert abs(len(samples) - len(CLIP.samples)) <= 1
    assert np.abs(samples).max() == pytest.approx(np.abs(CLIP.samples).max() / 2, rel=0.1)


@pytest.mark.parametrize("unknown", [2**32 - 1, 2**32 - 100, 2**31 - 1])
def test_a_length_that_its_writer_did_not_know_is_none(unknown: int) -> None:
    assert len(decode_clip(lying_wav(24000, 1, unknown))) == 2000


def test_a_clip_is_kept_as_it_is() -> None:
    assert np.abs(decode_clip(as_flac(CLIP.samples)) - CLIP.samples).max() < 2**-23
