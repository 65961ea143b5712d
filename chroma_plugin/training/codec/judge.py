"""How good a codec is: spectra, pitch and codes of speech that it never met, and a picture.

It judges the served codec: clips go through `Codec.encode` and `Codec.decode`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from chroma_plugin.audio import FRAME_SAMPLES, OUTPUT_RATE_HZ, Samples
from chroma_plugin.model.codec import Codec
from chroma_plugin.training.codec.losses import log_mel

PITCH_HZ = (60.0, 400.0)
PITCH_WINDOW, PITCH_HOP = 1_440, 480
VOICED = 0.5
"""Height of the autocorrelation's peak, of 1, from which a window has a pitch."""
QUIET = 0.1
"""A window below this part of the clip's level has none either."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Figures of some clips.

    Attributes:
        mel: mean distance of log-mel spectra, in nepers; their floor lies 17 dB under the speech.
        pitch: windows of the original that have a pitch, in which the copy's is within 5%.
        pitch_error: median relative error where both have one.
        used: codes that occur, of each codebook.
        perplexity: 2 to the entropy of its codes, of each codebook.
        frames: how many there were.
    """

    mel: float
    pitch: float
    pitch_error: float
    used: list[int]
    perplexity: list[float]
    frames: int


def whole_frames(samples: Samples) -> Samples:
    """The clip with silence at its end up to a whole frame."""
    return np.pad(samples, (0, -len(samples) % FRAME_SAMPLES))


def copy_of(codec: Codec, samples: Samples) -> tuple[Samples, NDArray[np.int64]]:
    """A clip of whole frames through the codec.

    Returns:
        float32 `[n]`, and its codes `[K, n / 1920]`.
    """
    device = codec.upsample.conv.weight.device
    codes = codec.encode(torch.from_numpy(samples).to(device)[None, None])
    made = codec.decode(codes)[0, 0].clamp(-1, 1).cpu().numpy()
    return made, codes[0].cpu().numpy()


def pitches(samples: Samples) -> NDArray[np.float64]:
    """Pitch in Hz of every window of 60 ms, one each 20 ms; NaN where there is none."""
    if len(samples) < PITCH_WINDOW:
        return np.zeros(0)
    windows = np.lib.stride_tricks.sliding_window_view(samples, PITCH_WINDOW)[::PITCH_HOP]
    windows = windows - windows.mean(axis=1, keepdims=True)
    energy = np.square(windows).mean(axis=1)
    size = 2 * PITCH_WINDOW
    spectra = np.fft.rfft(windows, size, axis=1)
    lags = np.fft.irfft(np.abs(spectra) ** 2, size, axis=1)[:, :PITCH_WINDOW]
    lags /= np.maximum(lags[:, :1], 1e-9) * (1 - np.arange(PITCH_WINDOW) / PITCH_WINDOW)
    first, last = (int(OUTPUT_RATE_HZ / hz) for hz in PITCH_HZ[::-1])
    inner = lags[:, first : last + 1]
    peaks = (inner >= lags[:, first - 1 : last]) & (inner >= lags[:, first + 1 : last + 2])
    height = np.where(peaks, inner, 0.0)
    # the first peak that is about the highest: later ones are of two periods, three and so on
    best = (height > 0.9 * height.max(axis=1, keepdims=True)).argmax(axis=1)
    tall = height[np.arange(len(height)), best]
    voiced = (tall > VOICED) & (energy > QUIET**2 * np.square(samples).mean())
    return np.where(voiced, OUTPUT_RATE_HZ / (best + first), np.nan)


def judge(codec: Codec, clips: Sequence[Samples]) -> Verdict:
    """Sends clips through the codec and compares.

    Args:
        codec: finalized.
        clips: float32 `[n]` each, 24 kHz.
    """
    distances, errors, codes = [], [], []
    for clip in map(whole_frames, clips):
        made, found = copy_of(codec, clip)
        spectra = [log_mel(torch.from_numpy(x)[None], hop=256) for x in (clip, made)]
        distances.append(float((spectra[0] - spectra[1]).abs().mean()))
        wanted, got = pitches(clip), pitches(made)
        errors.append(np.abs(got / wanted - 1)[~np.isnan(wanted)])
        codes.append(found)
    error, code = np.concatenate(errors), np.concatenate(codes, axis=1)
    shares = [np.bincount(row) / len(row) for row in code]
    return Verdict(
        mel=float(np.mean(distances)),
        pitch=float((np.nan_to_num(error, nan=1.0) < 0.05).mean()) if len(error) else 0.0,
        pitch_error=float(np.nanmedian(error)) if not np.isnan(error).all() else 1.0,
        used=[int((share > 0).sum()) for share in shares],
        perplexity=[round(float(np.exp(-(s[s > 0] * np.log(s[s > 0])).sum())), 1) for s in shares],
        frames=code.shape[1],
    )


def save_picture(path: str | Path, codec: Codec, clips: Sequence[Samples]) -> None:
    """Spectrograms of clips and their copies side by side, up to 8 kHz, as a PNG.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14.0, 3.2 * len(clips)), layout="constrained")
    axes = figure.subplots(len(clips), 2, squeeze=False)
    for row, clip in zip(axes, map(whole_frames, clips), strict=True):
        for axis, name, x in zip(
            row, ("original", "copy"), (clip, copy_of(codec, clip)[0]), strict=True
        ):
            noise = np.random.default_rng(0).normal(0, 1e-6, len(x))  # no logarithm of 0
            axis.specgram(
                x + noise, NFFT=1024, noverlap=832, Fs=OUTPUT_RATE_HZ, vmin=-140, vmax=-40
            )
            axis.set(title=name, ylim=(0, 8000))
    figure.savefig(path, dpi=80)
