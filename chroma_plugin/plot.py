"""Pictures as PNG; of a conversation: level and spectrogram of each recording.

Knows nothing of engines or hosts. Needs matplotlib, which is loaded only here.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chroma_plugin.audio import Samples, replace_file
from chroma_plugin.errors import AudioError, ChromaError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOW_MS = 25.0
FLOOR_DB = -90.0
MAX_COLUMNS = 2_000
"""More columns than a picture has pixels are not computed."""


@dataclass(frozen=True, slots=True)
class Track:
    """One recording of the picture.

    Attributes:
        title: what is written above it.
        samples: float32 mono.
        rate_hz: their rate.
    """

    title: str
    samples: Samples
    rate_hz: int


def require_matplotlib() -> type[Figure]:
    """Loads matplotlib and returns its `Figure`.

    Raises:
        ChromaError: matplotlib is missing or does not load; says how to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ChromaError(
            f"A picture needs matplotlib ({error}). Install it: pip install 'matplotlib>=3.9'"
        ) from error
    return Figure


def save_plot(path: str | Path, tracks: Sequence[Track]) -> None:
    """Draws the tracks, one below the other, and writes the picture as a PNG.

    Raises:
        ChromaError: matplotlib is missing.
        AudioError: the picture cannot be written.
    """
    figure = require_matplotlib()(figsize=(12.0, 2.4 * len(tracks)), layout="constrained")
    axes = figure.subplots(len(tracks), 2, squeeze=False, width_ratios=(2, 3))
    for (left, right), track in zip(axes, tracks, strict=True):
        _draw_level(left, track)
        _draw_spectrogram(right, track)
    save_figure(figure, path)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure as a PNG, whole or not at all.

    Raises:
        AudioError: it cannot be written.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    try:
        replace_file(path, picture.getvalue())
    except OSError as error:
        raise AudioError(f"{path}: cannot be written ({error.strerror}).") from error


def levels(track: Track) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Time in s and peak of the samples around it, `[columns]` each."""
    window = max(track.rate_hz // 200, -(-len(track.samples) // MAX_COLUMNS), 1)
    padded = np.pad(np.abs(track.samples), (0, -len(track.samples) % window))
    peaks = padded.reshape(-1, window).max(axis=1, initial=0.0).astype(np.float32)
    return (np.arange(len(peaks)) * window / track.rate_hz).astype(np.float32), peaks


def spectrogram(track: Track) -> NDArray[np.float32]:
    """Magnitude in dB of full scale, `[frequencies, columns]`, never below `FLOOR_DB`."""
    window = int(track.rate_hz * WINDOW_MS / 1000)
    samples = np.pad(track.samples, (0, max(window - len(track.samples), 0)))
    hop = max(window // 4, -(-len(samples) // MAX_COLUMNS))
    pieces = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    shape = np.hanning(window).astype(np.float32)
    magnitude = np.abs(np.fft.rfft(pieces * shape, axis=1)) * 2 / shape.sum()  # [columns, f]
    decibels = 20 * np.log10(np.maximum(magnitude, 10 ** (FLOOR_DB / 20)))
    return np.asarray(decibels.T, dtype=np.float32)


def _draw_level(axes: Any, track: Track) -> None:
    times, peaks = levels(track)
    axes.fill_between(times, -peaks, peaks, linewidth=0, step="mid")
    axes.set(title=track.title, ylim=(-1, 1), xlabel="s", ylabel="level")
    axes.margins(x=0)


def _draw_spectrogram(axes: Any, track: Track) -> None:
    seconds = max(len(track.samples) / track.rate_hz, WINDOW_MS / 1000)
    axes.imshow(
        spectrogram(track),
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=FLOOR_DB,
        vmax=0.0,
        extent=(0.0, seconds, 0.0, track.rate_hz / 2000),
    )
    axes.set(title=f"{track.rate_hz / 1000:g} kHz", xlabel="s", ylabel="kHz")
