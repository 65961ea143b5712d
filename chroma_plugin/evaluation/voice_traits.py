"""What a recording tells of its voice: statistics of timbre and pitch.

No weights, no comparison: `speakers.LightMeasure` weighs these statistics, `light_fit` learns how.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chroma_plugin.audio import INPUT_RATE_HZ, OUTPUT_RATE_HZ, Samples, resample
from chroma_plugin.errors import AudioError

Vector = NDArray[np.float64]

MIN_S = 0.4
"""Speech shorter than this tells no voice."""
RATE_HZ = INPUT_RATE_HZ
WINDOW, HOP, BANDS, CEPSTRA = 400, 160, 40, 24
PITCH_WINDOW = 2 * WINDOW
PITCH_HZ = (55.0, 420.0)
TRAITS = 4 * (CEPSTRA - 1) + 10
"""Numbers that `traits` tells of a recording."""

_LOUD_DB, _HEARD_DB, _VOICED_DB = 20.0, 32.0, 17.0
"""Windows so far below the loudest one make its level; so far below that, speech and voice."""
_PERIODIC = 0.5
_FLOOR = 1e-5
"""Added to every band, of a speech window's mean power: what a codec adds hides below it."""


def traits(samples: Samples) -> Vector:
    """Statistics of the windows of 25 ms, 10 ms apart, in which somebody speaks.

    Level and silence around the speech do not count; a room, a telephone and noise do.

    Args:
        samples: float32 `[n]` at 24 kHz.

    Returns:
        float64 `[TRAITS]`: mean and spread of 23 mel cepstra of voiced windows, the same of all
        windows with speech, quantiles (10, 25, 50, 75, 90%) of the pitch in octaves above 100 Hz,
        its spread and its mean step, mean and spread of the windows' periodicity, and the share of
        voiced windows.

    Raises:
        AudioError: it is too short, or silent.
    """
    heard = resample(long_enough(samples), OUTPUT_RATE_HZ, RATE_HZ).astype(np.float64)
    count = len(heard) // HOP
    power = np.abs(np.fft.rfft(_windows(heard, WINDOW, count) * np.hanning(WINDOW), 512)) ** 2
    bands = power @ _mel_filters().T
    level = 10 * np.log10(bands.sum(axis=1) + 1e-12)
    loud = level[level > level.max() - _LOUD_DB].mean()
    speech = level > loud - _HEARD_DB
    if level.max() < -50 or speech.sum() < 10:
        raise AudioError("There is no voice in it: it is silent.")
    octaves, periodic = _pitch(_windows(heard, PITCH_WINDOW, count)[speech])
    voiced = (periodic > _PERIODIC) & (level[speech] > loud - _VOICED_DB)
    share = voiced.mean()
    if voiced.sum() < 5:  # a whisper
        voiced[:] = True
    bands = bands[speech]
    cepstra = np.log(bands / bands.sum(axis=1).mean() + _FLOOR) @ _cosines().T
    said, pitch = cepstra[voiced], octaves[voiced]
    return np.concatenate(
        [
            *(said.mean(axis=0), said.std(axis=0), cepstra.mean(axis=0), cepstra.std(axis=0)),
            np.quantile(pitch, [0.1, 0.25, 0.5, 0.75, 0.9]),
            [pitch.std(), np.abs(np.diff(pitch)).mean()],
            [periodic[voiced].mean(), periodic[voiced].std(), share],
        ]
    )


def long_enough(samples: Samples) -> Samples:
    """The same samples, 24 kHz.

    Raises:
        AudioError: they are too short to tell a voice.
    """
    if len(samples) < MIN_S * OUTPUT_RATE_HZ:
        raise AudioError(
            f"{len(samples) / OUTPUT_RATE_HZ:.2f} s of speech tell no voice; "
            f"{MIN_S:g} s are needed."
        )
    return samples


def _windows(samples: Vector, size: int, count: int) -> Vector:
    """So many of this size, `HOP` apart, the first one around the first sample."""
    padded = np.pad(samples, (size // 2, size))
    return np.lib.stride_tricks.sliding_window_view(padded, size)[::HOP][:count]


def _mel_filters() -> Vector:
    """Triangles of equal width in mel, `[BANDS, 257]`, from 80 Hz to 7.6 kHz."""
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (80.0, 7600.0))
    edges = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)
    hz = np.fft.rfftfreq(512, 1 / RATE_HZ)
    rising = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.maximum(np.minimum(rising, falling), 0.0), np.float64)


def _cosines() -> Vector:
    """Cosines 1 to 23 over the bands; the level, cosine 0, is left out."""
    places = (np.arange(BANDS) + 0.5) / BANDS
    table = np.cos(np.pi * np.arange(1, CEPSTRA)[:, None] * places)
    return np.asarray(table * np.sqrt(2 / BANDS), np.float64)


def _pitch(windows: Vector) -> tuple[Vector, Vector]:
    """Octaves above 100 Hz, and how periodic it is, at most about 1, of every window.

    The autocorrelation's first peak that is about its highest, between samples by a parabola.
    """
    windows = windows - windows.mean(axis=1, keepdims=True)
    first, last = (int(RATE_HZ / hz) for hz in PITCH_HZ[::-1])
    spectra = np.abs(np.fft.rfft(windows, 2048)) ** 2  # no lag looked at comes round
    lags = np.fft.irfft(spectra, 2048)[:, : last + 2]
    # fewer products far away
    lags /= np.maximum(lags[:, :1], 1e-12) * (1 - np.arange(last + 2) / PITCH_WINDOW)
    inner, before, after = lags[:, first:-1], lags[:, first - 1 : -2], lags[:, first + 1 :]
    height = np.where((inner >= before) & (inner >= after), inner, 0.0)
    # later peaks are of two periods, three and so on
    best = (height > 0.9 * height.max(axis=1, keepdims=True)).argmax(axis=1)[:, None]
    left, top, right = (np.take_along_axis(x, best, 1)[:, 0] for x in (before, inner, after))
    bend = np.minimum(left - 2 * top + right, -1e-9)
    period = best[:, 0] + first + np.clip((left - right) / (2 * bend), -0.5, 0.5)
    return np.log2(RATE_HZ / period / 100), np.take_along_axis(height, best, 1)[:, 0]
