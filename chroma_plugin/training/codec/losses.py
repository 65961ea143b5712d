"""What a codec is judged by while it learns: spectra, low waves, and heads that are thrown away.

Spectra leave the phase open, and with it the pitch: by them alone the codes carry none. So linear
heads have to find the waveform below 380 Hz, at 800 Hz, in the codec's latents, beside the log-mel
spectrum. The audio itself is held to the same low wave: the codes have it after 500 steps, and the
decoder would take thousands to follow. The semantic codebook is led by a third kind of head, to
cepstra without their mean over the clip: what is said rather than who says it and how high.

All samples are float32 at 24 kHz, `[B, n]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chroma_plugin.audio import FRAME_SAMPLES, OUTPUT_RATE_HZ

FLOOR, AUDIBLE = 1e-2, 3e-3
"""Added to magnitudes before the logarithm, in features and in losses of audio: speech at -23 dBFS
has some of 0.1 to 1, and what is far below is hard to learn and cannot be heard."""
MELS = 80
MEL_STEPS = 8
"""Log-mel columns of a frame that heads are to find: one each 10 ms."""
WAVE_STEPS = 64
"""Samples of a frame at 800 Hz."""
CEPSTRA = 13
CEPSTRUM_STEPS = 4
LOW_HZ, LOW_BINS = 380.0, (2, 48)
_WAVE_LEVEL = 0.06


class Resolution(NamedTuple):
    """A short-time Fourier transform: window and hop in samples, mel bands, weights.

    Attributes:
        log_weight: of single bins beside the bands: on long windows they are the harmonics.
        wave_weight: of complex bins up to 1.1 kHz.
    """

    window: int
    hop: int
    mels: int
    log_weight: float = 0.0
    wave_weight: float = 0.0


def magnitudes(spectrum: Tensor) -> Tensor:
    """Of a complex spectrum; smooth at zero."""
    parts = torch.view_as_real(spectrum)
    return (parts.square().sum(dim=-1) + 1e-10).sqrt()


def spectrum(samples: Tensor, window: int, hop: int) -> Tensor:
    """Complex `[B, bins, frames]`, centred, of unit gain for white noise."""
    shape = _hann(window, samples.device)
    out: Tensor = torch.stft(samples, window, hop, window=shape, return_complex=True)
    return out


def log_mel(samples: Tensor, hop: int = 240, floor: float = FLOOR) -> Tensor:
    """Natural logarithm of mean magnitudes in 80 mel bands, `[B, frames, 80]`."""
    return _log_bands(magnitudes(spectrum(samples, 1024, hop)), 1024, MELS, floor)


def cepstra(samples: Tensor) -> Tensor:
    """The lower cepstrum of each 20 ms, level left out: `[B, frames, 12]`."""
    return log_mel(samples, hop=FRAME_SAMPLES // CEPSTRUM_STEPS) @ _cosines(samples.device)


def low_wave(samples: Tensor) -> Tensor:
    """What is below 380 Hz, at 800 Hz: `[B, n]` -> `[B, n * 64 / 1920]`, of level 1 or so."""
    kernel = _low_pass(samples.device)
    half = kernel.shape[-1] // 2
    stride = FRAME_SAMPLES // WAVE_STEPS
    return (
        F.conv1d(F.pad(samples[:, None], (half, half)), kernel, stride=stride)[:, 0] / _WAVE_LEVEL
    )


def spectral_losses(
    made: Tensor, wanted: Tensor, resolutions: Sequence[Resolution]
) -> dict[str, Tensor]:
    """`mel`, `log` and `low`: means of what the resolutions ask for, weighted.

    Args:
        made: `[B, n]`, with gradients.
        wanted: `[B, n]`.
        resolutions: at least one.
    """
    zero = made.new_zeros(())
    sums = {"mel": zero, "log": zero, "low": zero}
    for window, hop, mels, log_weight, wave_weight in resolutions:
        got = spectrum(made, window, hop)
        with torch.no_grad():
            goal = spectrum(wanted, window, hop)
            goal_size = magnitudes(goal)
            goal_bands = _log_bands(goal_size, window, mels, AUDIBLE)
        size = magnitudes(got)
        sums["mel"] = (
            sums["mel"] + (_log_bands(size, window, mels, AUDIBLE) - goal_bands).abs().mean()
        )
        if log_weight:
            distance = ((size + AUDIBLE).log() - (goal_size + AUDIBLE).log()).abs().mean()
            sums["log"] = sums["log"] + log_weight * distance
        if wave_weight:
            low = slice(*LOW_BINS)
            weight = _low_weights(window, made.device)
            distance = (magnitudes(got[:, low] - goal[:, low]) * weight).mean()
            scale = (goal_size[:, low] * weight).mean() + 0.01
            sums["low"] = sums["low"] + wave_weight * distance / scale
    return {name: value / len(resolutions) for name, value in sums.items()}


class Targets(NamedTuple):
    """What heads are to find in the frames of a batch.

    Attributes:
        mel: `[B, T, 8 * 80]`, of level and spread 1 or so.
        wave: `[B, T, 64]`.
        cepstra: `[B, T, 4 * 12]`, the clips' means taken off, likewise.
    """

    mel: Tensor
    wave: Tensor
    cepstra: Tensor


@torch.no_grad()
def targets(samples: Tensor, cepstrum_means: Tensor) -> Targets:
    """Targets of segments.

    Args:
        samples: `[B, 1920 * T]`.
        cepstrum_means: `[B, 12]`: of the clips that the segments are from.
    """
    frames = samples.shape[1] // FRAME_SAMPLES

    def framed(x: Tensor, steps: int) -> Tensor:  # [B, >= T * steps, n] -> [B, T, steps * n]
        return x[:, : frames * steps].reshape(len(x), frames, -1)

    mel = log_mel(samples) + 4.0
    quiet = (samples.square().mean(dim=1) < 1e-8)[:, None, None]
    orders = torch.arange(1, CEPSTRA, device=samples.device)  # higher ones are smaller
    said = (cepstra(samples) - cepstrum_means[:, None]) * orders.sqrt()
    said = said.masked_fill(quiet, 0.0)
    return Targets(
        mel=framed(mel, MEL_STEPS),
        wave=framed(low_wave(samples)[..., None], WAVE_STEPS),
        cepstra=framed(said / 2.0, CEPSTRUM_STEPS),
    )


def wave_loss(wave: Tensor, wanted: Targets) -> Tensor:
    """How far `[B, T, 64]` is from the low wave, in parts of its power."""
    distance: Tensor = (wave - wanted.wave).square().mean()
    return distance / (wanted.wave.square().mean() + 0.02)


class Heads(nn.Module):
    """Linear maps from latents to targets; saved with the run, as new ones cost minutes.

    Args:
        hidden: channels of the latents.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mel = nn.Linear(hidden, MEL_STEPS * MELS)
        self.wave = nn.Linear(hidden, WAVE_STEPS)
        self.half_mel = nn.Linear(hidden, MEL_STEPS * MELS // 2)
        self.half_wave = nn.Linear(hidden, WAVE_STEPS // 2)
        self.cepstra = nn.Linear(hidden, CEPSTRUM_STEPS * (CEPSTRA - 1))

    def latent(self, z: Tensor, wanted: Targets) -> tuple[Tensor, Tensor]:
        """Mel and wave loss of latents at 12.5 Hz, `[B, hidden, T]`."""
        z = z.transpose(1, 2)
        return self._losses(self.mel(z), self.wave(z), wanted)

    def decoder(self, hidden: Tensor, wanted: Targets) -> tuple[Tensor, Tensor]:
        """Likewise of the decoder transformer's output at 25 Hz, `[B, hidden, 2 * T]`."""
        x = hidden.transpose(1, 2)
        mel = self.half_mel(x).reshape(wanted.mel.shape)
        return self._losses(mel, self.half_wave(x).reshape(wanted.wave.shape), wanted)

    def semantic(self, z: Tensor, wanted: Targets) -> Tensor:
        """Cepstrum loss of the semantic branch alone, `[B, hidden, T]`."""
        distance: Tensor = (self.cepstra(z.transpose(1, 2)) - wanted.cepstra).abs().mean()
        return distance

    def _losses(self, mel: Tensor, wave: Tensor, wanted: Targets) -> tuple[Tensor, Tensor]:
        return (mel - wanted.mel).abs().mean(), wave_loss(wave, wanted)


# -- tables, made once for each device -----------------------------------------------------------


def _log_bands(size: Tensor, window: int, mels: int, floor: float) -> Tensor:
    """`[B, bins, frames]` -> `[B, frames, mels]`."""
    return (size.transpose(1, 2) @ mel_bands(window, mels, size.device) + floor).log()


@cache
def _hann(window: int, device: torch.device) -> Tensor:
    shape = torch.hann_window(window)
    return (shape / shape.square().sum().sqrt()).to(device)


@cache
def mel_bands(window: int, mels: int, device: torch.device | None = None) -> Tensor:
    """Triangular bands evenly spaced in mel from 40 Hz to 11.5 kHz, `[bins, mels]`.

    Each weighs its bins to a sum of 1; a band narrower than a bin takes the nearest one.
    """
    bins = torch.linspace(0, OUTPUT_RATE_HZ / 2, window // 2 + 1)
    low, high = (2595 * math.log10(1 + hz / 700) for hz in (40.0, 11_500.0))
    edges = 700 * (10 ** (torch.linspace(low, high, mels + 2) / 2595) - 1)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - left) / (centre - left)
    falling = (right - bins[:, None]) / (right - centre)
    bands = torch.minimum(rising, falling).clamp(min=0)
    nearest = (bins[:, None] - centre).abs().argmin(dim=0)
    empty = (bands.sum(dim=0) < 0.5).float()  # next to no bin falls into it
    bands = bands * (1 - empty) + F.one_hot(nearest, len(bins)).T * empty
    return (bands / bands.sum(dim=0)).to(device)


@cache
def _cosines(device: torch.device) -> Tensor:
    """The cosine transform of log-mel columns without its first row, `[80, 12]`."""
    rows = torch.arange(MELS)[:, None] + 0.5
    return (torch.cos(math.pi / MELS * rows * torch.arange(1, CEPSTRA)) / MELS * 4).to(device)


@cache
def _low_pass(device: torch.device) -> Tensor:
    """A windowed sinc of 361 taps, `[1, 1, 361]`."""
    at = torch.arange(-180, 181).float()
    taps = torch.sinc(2 * LOW_HZ / OUTPUT_RATE_HZ * at) * torch.hamming_window(361, periodic=False)
    return (taps / taps.sum()).to(device)[None, None]


@cache
def _low_weights(window: int, device: torch.device) -> Tensor:
    hz = torch.arange(*LOW_BINS) * OUTPUT_RATE_HZ / window
    return (1 / (1 + hz / 300.0)).to(device)[:, None]
