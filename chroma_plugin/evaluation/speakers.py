"""Whose voice it is: measures of how alike two voices are.

A measure makes a vector of a recording and compares two of them; 1 is the same voice. Figures of
different measures are not comparable, only gains over a human baseline by the same one are.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chroma_plugin.audio import INPUT_RATE_HZ, OUTPUT_RATE_HZ, Samples, resample
from chroma_plugin.errors import AudioError, ChromaError, ConfigError

Vector = NDArray[np.float64]

WAVLM = "microsoft/wavlm-base-plus-sv"
ECAPA = "speechbrain/spkrec-ecapa-voxceleb"
MIN_S = 0.4
"""Speech shorter than this tells no voice."""


class SpeakerMeasure(Protocol):
    """How alike two voices are."""

    name: str

    def embed(self, samples: Samples) -> Vector:
        """The voice of a recording, float32 `[n]` at 24 kHz, as a vector `[d]`.

        Raises:
            AudioError: it is too short, or silent.
        """

    def compare(self, first: Vector, second: Vector) -> float:
        """How alike two voices are, at most 1."""


def speaker_measure(name: str, device: str = "cpu") -> SpeakerMeasure:
    """A measure by its name.

    Args:
        name: `light`; `wavlm` or `wavlm:` and a folder or hub id of an x-vector model; `ecapa` or
            `ecapa:` and the same of a speechbrain encoder.
        device: where a model computes.

    Raises:
        ConfigError: there is no such measure.
        ChromaError: its model cannot be loaded.
    """
    kind, _, source = name.partition(":")
    if kind == "light" and not source:
        return LightMeasure()
    if kind == "wavlm":
        return XVectorMeasure(source or WAVLM, device)
    if kind == "ecapa":
        return EcapaMeasure(source or ECAPA, device)
    raise ConfigError(
        f"--speaker {name!r}: use light, wavlm, wavlm:FOLDER-OR-HUB-ID, ecapa or "
        "ecapa:FOLDER-OR-HUB-ID."
    )


# -- without weights -------------------------------------------------------------------------

WINDOW, HOP, BANDS, CEPSTRA = 400, 160, 40, 20
RATE_HZ = INPUT_RATE_HZ
HEARD_DB = 35.0
"""A window so far below the loudest ones is no speech."""
PITCH_WEIGHT, SPREAD_WEIGHT = 6.0, 0.5
"""An octave of pitch counts as six nepers of a cepstrum; spreads count half."""
SCALE = 2.0
"""So that two sentences of one synthetic voice come to about 0.6, those of two voices to 0.3."""


class LightMeasure:
    """Timbre and pitch without a trained model: much weaker than a verification model.

    The vector is the mean and spread over time of 19 mel cepstra, and the median and spread of
    the pitch in octaves; alikeness is `exp(-distance)`. It tells voices of different pitch and
    vocal tract apart, cannot tell two alike ones, and hears a room or a telephone as a voice.
    """

    name = "light"

    def embed(self, samples: Samples) -> Vector:
        """See `SpeakerMeasure.embed`."""
        heard = resample(_long_enough(samples), OUTPUT_RATE_HZ, RATE_HZ).astype(np.float64)
        frames = np.lib.stride_tricks.sliding_window_view(heard, WINDOW)[::HOP]
        power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW), 512, axis=1)) ** 2
        level = 10 * np.log10(power.sum(axis=1) + 1e-12)
        speech = level > np.quantile(level, 0.95) - HEARD_DB
        if level.max() < -60 or speech.sum() < 10:
            raise AudioError("There is no voice in it: it is silent.")
        bands = np.log(power[speech] @ _mel_filters().T + 1e-8)
        cepstra = bands @ _cosines().T
        pitch = _log_pitch(heard, frames[speech])
        return np.concatenate(
            [
                cepstra.mean(axis=0),
                SPREAD_WEIGHT * cepstra.std(axis=0),
                PITCH_WEIGHT * np.array([np.median(pitch), SPREAD_WEIGHT * pitch.std()]),
            ]
        )

    def compare(self, first: Vector, second: Vector) -> float:
        """See `SpeakerMeasure.compare`; above 0."""
        return float(np.exp(-np.linalg.norm(first - second) / (SCALE * np.sqrt(CEPSTRA))))


def _mel_filters() -> Vector:
    """Triangles of equal width in mel, `[BANDS, 257]`, from 80 Hz to 7.6 kHz."""
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (80.0, 7600.0))
    edges = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)
    hz = np.fft.rfftfreq(512, 1 / RATE_HZ)
    rising = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.maximum(np.minimum(rising, falling), 0.0), np.float64)


def _cosines() -> Vector:
    """Cosines 1 to 19 over the bands; the level, cosine 0, is left out."""
    places = (np.arange(BANDS) + 0.5) / BANDS
    table = np.cos(np.pi * np.arange(1, CEPSTRA)[:, None] * places)
    return np.asarray(table * np.sqrt(2 / BANDS), np.float64)


def _log_pitch(samples: Vector, frames: Vector) -> Vector:
    """Pitch of the voiced windows in octaves above 100 Hz; one zero if there is none."""
    long = np.lib.stride_tricks.sliding_window_view(samples, 2 * WINDOW)[::HOP]
    long = long - long.mean(axis=1, keepdims=True)
    size = 4 * WINDOW
    lags = np.fft.irfft(np.abs(np.fft.rfft(long, size, axis=1)) ** 2, size, axis=1)
    lags = lags[:, : 2 * WINDOW] / np.maximum(lags[:, :1], 1e-9)
    lags /= 1 - np.arange(2 * WINDOW) / (2 * WINDOW)  # fewer products far away
    first, last = RATE_HZ // 400, RATE_HZ // 60
    inner = lags[:, first : last + 1]
    # the first lag that is about the best: later ones are of two periods, three and so on
    best = (inner > 0.9 * inner.max(axis=1, keepdims=True)).argmax(axis=1)
    rising = best + 1 < inner.shape[1]
    following = inner[np.arange(len(inner)), np.minimum(best + 1, inner.shape[1] - 1)]
    while (climbing := rising & (following > inner[np.arange(len(inner)), best])).any():
        best = best + climbing
        rising = best + 1 < inner.shape[1]
        following = inner[np.arange(len(inner)), np.minimum(best + 1, inner.shape[1] - 1)]
    loud = np.square(long).mean(axis=1) > 0.05 * np.square(frames).mean()
    voiced = (inner[np.arange(len(inner)), best] > 0.5) & loud
    if not voiced.any():
        return np.zeros(1)
    return np.asarray(np.log2(RATE_HZ / (best[voiced] + first) / 100.0), np.float64)


def _long_enough(samples: Samples) -> Samples:
    if len(samples) < MIN_S * OUTPUT_RATE_HZ:
        raise AudioError(
            f"{len(samples) / OUTPUT_RATE_HZ:.2f} s of speech tell no voice; "
            f"{MIN_S:g} s are needed."
        )
    return samples


# -- with weights ----------------------------------------------------------------------------


class XVectorMeasure:
    """Cosine of the x-vectors of a verification model of transformers, such as WavLM's.

    Args:
        source: a folder or hub id; `microsoft/wavlm-base-plus-sv` is one.
        device: where it computes.

    Raises:
        ChromaError: it cannot be loaded.
    """

    def __init__(self, source: str, device: str = "cpu") -> None:
        from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

        self.name = f"wavlm:{source}"
        try:
            self._features = AutoFeatureExtractor.from_pretrained(source)
            self._model = AutoModelForAudioXVector.from_pretrained(source).to(device).eval()
        except (OSError, ValueError) as error:
            raise ChromaError(
                f"--speaker {self.name}: no x-vector model could be loaded "
                f"({str(error).splitlines()[0]}). Give the folder of one, or --speaker light."
            ) from error
        self._device = device

    def embed(self, samples: Samples) -> Vector:
        """See `SpeakerMeasure.embed`."""
        import torch

        heard = resample(_long_enough(samples), OUTPUT_RATE_HZ, RATE_HZ)
        inputs = self._features(heard, sampling_rate=RATE_HZ, return_tensors="pt")
        with torch.inference_mode():
            found = self._model(**{k: v.to(self._device) for k, v in inputs.items()}).embeddings
        return np.asarray(found[0].float().cpu().numpy(), np.float64)

    def compare(self, first: Vector, second: Vector) -> float:
        """See `SpeakerMeasure.compare`."""
        return cosine(first, second)


class EcapaMeasure:
    """Cosine of the embeddings of a speechbrain encoder, such as ECAPA-TDNN's.

    Args:
        source: a folder or hub id; `speechbrain/spkrec-ecapa-voxceleb` is one.
        device: where it computes.

    Raises:
        ChromaError: speechbrain is missing, or the encoder cannot be loaded.
    """

    def __init__(self, source: str, device: str = "cpu") -> None:
        self.name = f"ecapa:{source}"
        try:
            speaker: Any = importlib.import_module("speechbrain.inference.speaker")
        except ImportError as error:
            raise ChromaError(
                f"--speaker ecapa needs speechbrain ({error}). "
                "Install it: pip install 'speechbrain>=1.0'; or use --speaker wavlm."
            ) from error
        try:
            self._encoder = speaker.EncoderClassifier.from_hparams(
                source=source, run_opts={"device": device}
            )
        except (OSError, ValueError) as error:
            raise ChromaError(
                f"--speaker {self.name}: the encoder could not be loaded "
                f"({str(error).splitlines()[0]})."
            ) from error

    def embed(self, samples: Samples) -> Vector:
        """See `SpeakerMeasure.embed`."""
        import torch

        heard = resample(_long_enough(samples), OUTPUT_RATE_HZ, RATE_HZ)
        with torch.inference_mode():
            found = self._encoder.encode_batch(torch.from_numpy(heard)[None])
        return np.asarray(found.reshape(-1).float().cpu().numpy(), np.float64)

    def compare(self, first: Vector, second: Vector) -> float:
        """See `SpeakerMeasure.compare`."""
        return cosine(first, second)


def cosine(first: Vector, second: Vector) -> float:
    """Of the angle between two vectors."""
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / max(lengths, 1e-12)
