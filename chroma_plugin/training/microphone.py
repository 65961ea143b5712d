"""What a microphone makes of clean speech: silence around it, a room, noise, a level, a narrow
band, clipping. Knows nothing of texts and voices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from chroma_plugin.audio import INPUT_RATE_HZ, Samples


@dataclass(frozen=True, slots=True)
class Conditions:
    """How likely each disturbance is, and how strong.

    Attributes:
        room: share of clips in a room; the others are close to the microphone.
        band: share heard through a narrow band, as on a telephone.
        clipped: share with clipped peaks.
        noise: share with noise that can be heard.
        snr_db: speech over noise, where there is noise.
        level_dbfs: RMS level of what is heard.
        reverberation_s: time in which a room's echo falls by 60 dB.
    """

    room: float = 0.4
    band: float = 0.15
    clipped: float = 0.1
    noise: float = 0.8
    snr_db: tuple[float, float] = (10.0, 40.0)
    level_dbfs: tuple[float, float] = (-36.0, -17.0)
    reverberation_s: tuple[float, float] = (0.1, 0.45)


CLEAN = Conditions(room=0, band=0, clipped=0, noise=0, level_dbfs=(-23.0, -23.0))
"""Speech as it was made, at one level."""


def noisy(
    samples: Samples,
    rng: np.random.Generator,
    conditions: Conditions = Conditions(),
    rate_hz: int = INPUT_RATE_HZ,
) -> Samples:
    """The clip as a microphone in some room may hear it.

    Args:
        samples: float32 `[n]`, mono, with the silence around it: noise fills that too.
        rng: what the disturbances are drawn by.
        conditions: how likely and how strong they are.
        rate_hz: the rate of the samples.

    Returns:
        float32 `[n]` in [-1, 1].
    """
    heard = samples.astype(np.float64)
    if rng.random() < conditions.room:
        seconds = rng.uniform(*conditions.reverberation_s)
        heard = _convolved(heard, room_response(rng, seconds, rate_hz))
    speech = _rms(heard)
    if rng.random() < conditions.noise:
        colour = rng.uniform(0.0, 2.0)
        snr = 10 ** (rng.uniform(*conditions.snr_db) / 20)
        heard = heard + coloured_noise(rng, len(heard), colour) * (speech / snr)
    if rng.random() < conditions.band:
        low, high = rng.uniform(60, 300), rng.uniform(3000, min(6500, rate_hz / 2 - 200))
        heard = _band_passed(heard, low, high, rate_hz)
    heard = heard * (10 ** (rng.uniform(*conditions.level_dbfs) / 20) / max(speech, 1e-9))
    if rng.random() < conditions.clipped:
        limit = np.abs(heard).max() * rng.uniform(0.5, 0.9)
        heard = heard.clip(-limit, limit)
    return heard.clip(-1, 1).astype(np.float32)


def with_silence(
    samples: Samples,
    rng: np.random.Generator,
    rate_hz: int = INPUT_RATE_HZ,
    before_s: tuple[float, float] = (0.05, 0.6),
    after_s: tuple[float, float] = (0.1, 0.8),
) -> Samples:
    """The clip with some silence before and after it, as a turn that a detector has cut out."""
    before, after = (round(rng.uniform(*span) * rate_hz) for span in (before_s, after_s))
    return np.pad(samples, (before, after)).astype(np.float32)


def heard(
    samples: Samples, rng: np.random.Generator, conditions: Conditions = Conditions()
) -> Samples:
    """A trimmed clip, 16 kHz, as a user's whole turn: `with_silence`, then `noisy`."""
    return noisy(with_silence(samples, rng), rng, conditions)


def coloured_noise(rng: np.random.Generator, count: int, colour: float) -> Samples:
    """Noise of RMS 1 whose power falls as 1 / f ** colour: 0 is white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(rng.standard_normal(max(count, 2)))
    frequency = np.arange(len(spectrum), dtype=np.float64)
    frequency[0] = math.inf  # no offset
    shaped = np.fft.irfft(spectrum * np.maximum(frequency, 20.0) ** (-colour / 2), max(count, 2))
    return np.asarray(shaped[:count] / _rms(shaped), np.float32)


def room_response(rng: np.random.Generator, reverberation_s: float, rate_hz: int) -> Samples:
    """A simple room: the direct sound, then noise that falls by 60 dB in the time given."""
    count = max(int(reverberation_s * rate_hz), 2)
    fall = np.exp(-math.log(1000) * np.arange(count) / count)
    echo = rng.standard_normal(count) * fall
    first = round(rng.uniform(0.002, 0.015) * rate_hz)  # the nearest wall
    echo[:first] = 0
    echo *= 10 ** (rng.uniform(-14, -2) / 20) / max(float(np.sqrt((echo**2).sum())), 1e-9)
    echo[0] = 1
    return echo.astype(np.float32)


def _convolved(samples: np.ndarray, response: Samples) -> np.ndarray:
    size = 1 << (len(samples) + len(response) - 1).bit_length()
    product = np.fft.rfft(samples, size) * np.fft.rfft(response, size)
    return np.fft.irfft(product, size)[: len(samples)]


def _band_passed(samples: np.ndarray, low: float, high: float, rate_hz: int) -> np.ndarray:
    """Fourth-order slopes, in the frequency domain."""
    size = 1 << (len(samples) + rate_hz // 20).bit_length()  # room for what rings
    frequency = np.fft.rfftfreq(size, 1 / rate_hz)
    gain = 1 / np.sqrt(1 + (frequency / high) ** 8)
    gain *= 1 / np.sqrt(1 + (low / np.maximum(frequency, 1e-3)) ** 8)
    return np.fft.irfft(np.fft.rfft(samples, size) * gain, size)[: len(samples)]


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples)))) if len(samples) else 0.0
