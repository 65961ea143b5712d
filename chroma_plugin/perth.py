"""The mark of resemble-perth 1.0: put in as a filter, and found again by its network.

Perth's encoder adds a residual to the log spectrum of speech, frame by frame. It was measured to be
the same whatever is said: each of the 128 bins below 2 kHz is raised or lowered by about 1.7 dB for
good. So the mark is a filter, and needs neither the network nor a look ahead while somebody speaks.
The filter is read off the encoder when it is loaded; Perth's detector finds it.

Of the package only the weights are used: its code wants librosa, torchaudio and an old setuptools,
and yields None without them. Knows no session and no host.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from chroma_plugin.audio import OUTPUT_RATE_HZ, Samples, level_dbfs, resample
from chroma_plugin.errors import AudioError, ChromaError
from chroma_plugin.watermark import FilterMarker, minimum_phase

PERTH_RATE_HZ = 32_000
THRESHOLD = 0.5
"""Confidence from which on a stretch counts as marked."""
WINDOW_S, HOP_S = 3.0, 1.5
"""A recording is searched in stretches, so that a reply is found beside the words of others."""
MIN_S = 0.5
"""Shorter pieces tell nothing."""
SILENT_DBFS = -60.0

_FFT, _HOP, _BINS = 2048, 320, 128
_FLOOR_DB, _HEADROOM_DB = -180.0, 15.0
_RANGE_DB = _HEADROOM_DB - _FLOOR_DB
_QUIET_DB = 40.0  # pauses so far below the loudest frame hold rounding and noise, not the mark
_SCALES = {"slow": 1.25, "normal": 1.0, "fast": 0.75}  # what the detector stretches time by
_TAPS = 1536  # 64 ms at 24 kHz: Perth's window
_MAX_SWAY_DB = 0.5

Layers = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of a recording, and how sure the detector is of a mark in it.

    Attributes:
        start_s: where it begins.
        end_s: where it ends.
        confidence: 0 to 1.
    """

    start_s: float
    end_s: float
    confidence: float

    @property
    def marked(self) -> bool:
        return self.confidence >= THRESHOLD


class Perth:
    """Perth's two networks.

    Args:
        weights: as they stand in its file.

    Raises:
        ChromaError: they are of another shape than those that this was written for.
    """

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        try:
            self._encoder = _layers(weights, "encoder.layers")
            self._branches = [_layers(weights, f"decoder.{name}_layers") for name in _SCALES]
        except KeyError as error:
            raise ChromaError(_mend(f"its weights have no {error}")) from error
        if self._encoder[0][0].shape[1] != _BINS:
            raise ChromaError(_mend("its weights have another shape"))

    @classmethod
    def load(cls) -> Perth:
        """The networks of the installed package.

        Raises:
            ChromaError: it is not installed, cannot be read, or is of another kind.
        """
        path = _weights_file()
        try:
            held = torch.load(path, map_location="cpu", weights_only=True)
            return cls(held["model"])
        except ChromaError:
            raise
        except Exception as error:  # torch.load raises what unpickling raises
            raise ChromaError(_mend(f"{path.name} cannot be read: {error}")) from error

    @torch.inference_mode()
    def gains_db(self) -> NDArray[np.float64]:
        """What the encoder does to each bin of 15.6 Hz from 0 to 2 kHz, in dB: float64 `[128]`.

        Raises:
            ChromaError: it does not do the same all the time, and is no filter.
        """
        noise = np.random.default_rng(0).standard_normal(PERTH_RATE_HZ) * 0.05
        spectrum = _log_spectrum(noise.astype(np.float32))[None, :_BINS]
        residual = _run(self._encoder, spectrum)[0] * _RANGE_DB
        middle = residual[:, residual.shape[1] // 4 : -residual.shape[1] // 4]
        sway = float(middle.std(dim=1).mean())
        if sway > _MAX_SWAY_DB:
            raise ChromaError(_mend(f"its mark changes by {sway:.1f} dB with what is said"))
        return np.asarray(middle.mean(dim=1).double().numpy(), np.float64)

    def marker(self) -> FilterMarker:
        """What marks replies.

        Raises:
            ChromaError: as `gains_db`; or the mark is not found again in what it was put into.
        """
        marker = FilterMarker(taps_of(self.gains_db()))
        noise = np.random.default_rng(1).standard_normal(2 * OUTPUT_RATE_HZ).astype(np.float32)
        before, after = noise * 0.05, marker.stream().push(noise * np.float32(0.05))
        if self.confidence(before) >= THRESHOLD or self.confidence(after) < THRESHOLD:
            raise ChromaError(_mend("it does not find the mark that it was put into"))
        return marker

    @torch.inference_mode()
    def confidence(self, samples: Samples, rate_hz: int = OUTPUT_RATE_HZ) -> float:
        """How sure the detector is that all of this is marked, from 0 to 1.

        Args:
            samples: float32 mono `[n]`.
            rate_hz: their rate.

        Raises:
            AudioError: less than half a second.
        """
        if len(samples) < MIN_S * rate_hz:
            raise AudioError(
                f"{len(samples) / rate_hz:.2f} s of sound; a mark shows in {MIN_S:g} s or more."
            )
        if level_dbfs(samples) < SILENT_DBFS:
            return 0.0
        spectrum = _log_spectrum(resample(samples, rate_hz, PERTH_RATE_HZ))
        levels_db = 10.0 * torch.log10((10.0 ** (spectrum[:_BINS] * _RANGE_DB / 10.0)).sum(dim=0))
        heard = (levels_db > levels_db.max() - _QUIET_DB).float()[None, None]  # [1, 1, T]
        voices, weights = [], []
        for layers, scale in zip(self._branches, _SCALES.values(), strict=True):
            band, length = spectrum[None, :_BINS], int(spectrum.shape[1] * scale)
            if length != band.shape[2]:
                band = F.interpolate(band, size=length, mode="linear", align_corners=True)
            mask = F.interpolate(heard, size=length, mode="nearest")[0, 0]
            weight, voice = (_run(layers, band)[0] * mask).sum(dim=1) / mask.sum()
            voices.append(voice)
            weights.append(weight)
        certain = (torch.softmax(torch.stack(weights), dim=0) * torch.stack(voices)).sum()
        return float(certain.clamp(0.0, 1.0))

    def search(self, samples: Samples, rate_hz: int = OUTPUT_RATE_HZ) -> Iterator[Stretch]:
        """The stretches of a recording in which something can be heard, one after the other.

        Args:
            samples: float32 mono `[n]`.
            rate_hz: their rate.

        Raises:
            AudioError: less than half a second.
        """
        length, hop = round(WINDOW_S * rate_hz), round(HOP_S * rate_hz)
        starts = range(0, max(len(samples) - length, 0) + hop, hop)
        for start in starts:
            start = max(min(start, len(samples) - length), 0)
            piece = samples[start : start + length]
            if len(piece) >= MIN_S * rate_hz and level_dbfs(piece) < SILENT_DBFS:
                continue
            confidence = self.confidence(piece, rate_hz)
            yield Stretch(start / rate_hz, (start + len(piece)) / rate_hz, confidence)


def marked_runs(stretches: Iterable[Stretch]) -> list[Stretch]:
    """The marked stretches, those that touch made one, with the highest confidence of them."""
    runs: list[Stretch] = []
    for stretch in stretches:
        if not stretch.marked:
            continue
        if runs and stretch.start_s <= runs[-1].end_s:
            confidence = max(runs[-1].confidence, stretch.confidence)
            runs[-1] = Stretch(runs[-1].start_s, stretch.end_s, confidence)
        else:
            runs.append(stretch)
    return runs


def taps_of(gains_db: NDArray[np.float64]) -> NDArray[np.float64]:
    """The filter at 24 kHz that does to speech what gains of Perth's bins do to its spectrum.

    A gain of a short-time spectrum that never changes is a filter: the gain's impulse response
    weighted by the window's autocorrelation, so that neighbouring bins run into one another.

    Args:
        gains_db: from 0 Hz up, float64 `[128]`, a bin each 15.6 Hz.

    Returns:
        The impulse response, float64 `[1536]`, of minimum phase.
    """
    size = _FFT * OUTPUT_RATE_HZ // PERTH_RATE_HZ  # the same bins at 24 kHz
    curve = np.ones(size // 2 + 1)
    curve[: len(gains_db)] = 10.0 ** (gains_db / 20.0)
    impulse = np.fft.irfft(curve, size)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    overlap = np.correlate(window, window, "full")[size - 1 :]
    half = impulse[: size // 2] * overlap[: size // 2] / overlap[0]
    fine = 8 * size
    whole = np.zeros(fine)
    whole[: len(half)] = half
    whole[fine - len(half) + 1 :] = half[:0:-1]
    return minimum_phase(np.fft.rfft(whole).real, _TAPS)


def _weights_file() -> Path:
    found = importlib.util.find_spec("perth")  # not imported: what it imports may be missing
    if found is None or not found.submodule_search_locations:
        raise ChromaError(_mend("it is not installed"))
    folder = Path(found.submodule_search_locations[0]) / "perth_net" / "pretrained" / "implicit"
    files = sorted(folder.glob("perth_net_*.pth.tar"))
    if not files:
        raise ChromaError(_mend(f"there are no weights in {folder}"))
    return files[-1]


def _mend(what: str) -> str:
    return (
        f"The watermark (resemble-perth) cannot be used: {what}. Replies would go out unmarked. "
        "Install it: pip install 'resemble-perth>=1.0.1,<1.1'; or turn marking off knowingly: "
        "chroma-plugin serve --watermark off"
    )


def _layers(weights: dict[str, torch.Tensor], prefix: str) -> Layers:
    """The convolutions of a network, in order."""
    return [
        (weights[f"{prefix}.{i}.conv.weight"].float(), weights[f"{prefix}.{i}.conv.bias"].float())
        for i in range(7)
    ]


def _run(layers: Layers, x: torch.Tensor) -> torch.Tensor:
    """Convolutions over time, each but the last with a leaky ReLU: `[1, bins, T]` to the same T."""
    for i, (weight, bias) in enumerate(layers):
        x = F.conv1d(x, weight, bias, padding=weight.shape[2] // 2)
        if i < len(layers) - 1:
            x = F.leaky_relu(x)
    return x


def _log_spectrum(samples: Samples) -> torch.Tensor:
    """Samples at 32 kHz as Perth sees them: `[1025, T]`, 0 at -180 dB and 1 at 15 dB."""
    spectrum = torch.stft(
        torch.from_numpy(np.ascontiguousarray(samples, np.float32)),
        _FFT,
        _HOP,
        window=torch.hann_window(_FFT),
        return_complex=True,
    )
    level_db = 20.0 * torch.log10(spectrum.abs().clamp(min=10.0 ** (_FLOOR_DB / 20.0)))
    return (level_db - _FLOOR_DB) / _RANGE_DB
