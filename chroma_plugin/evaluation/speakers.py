"""Whose voice it is: measures of how alike two voices are.

A measure makes a vector of a recording and compares two of them; 1 is the same voice. Figures of
different measures are not comparable, only gains over a human baseline by the same one are.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load

from chroma_plugin.audio import INPUT_RATE_HZ, OUTPUT_RATE_HZ, Samples, resample
from chroma_plugin.errors import ChromaError, ConfigError
from chroma_plugin.evaluation.voice_traits import TRAITS, Vector, long_enough, traits

RATE_HZ = INPUT_RATE_HZ

WAVLM = "microsoft/wavlm-base-plus-sv"
ECAPA = "speechbrain/spkrec-ecapa-voxceleb"


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


# -- built in --------------------------------------------------------------------------------

FITTED = "light_measure.safetensors"
"""In `assets/`; `light_fit` makes it."""
SCALE = 2.0
"""So that two clips of one synthetic voice come to about 0.8, those of two voices to 0.2."""


class LightMeasure:
    """Timbre and pitch, weighed by how far they tell the voices of espeak-ng apart.

    The vector is `voice_traits.traits` along the axes of a linear discriminant analysis, in units
    of the spread within a voice; alikeness is `exp(-distance)`. What sentences and chroma-tiny's
    codec change counts little. It is fitted to synthetic voices and much weaker than a verification
    model: it cannot tell two alike people apart, and hears a room or a telephone as a voice.

    Args:
        fitted: other axes than the packaged ones.

    Raises:
        ChromaError: the packaged ones are of other traits; says how to mend it.
    """

    name = "light"

    def __init__(self, fitted: Axes | None = None) -> None:
        self._axes = fitted or packaged_axes()
        shape = self._axes.axes.shape
        if shape[1:] != (TRAITS,) or self._axes.center.shape != shape[:1]:
            raise ChromaError(
                f"The light measure's axes {shape} are not of {TRAITS} traits. Fit them anew: "
                "python -m chroma_plugin.evaluation.light_fit."
            )

    def embed(self, samples: Samples) -> Vector:
        """See `SpeakerMeasure.embed`."""
        return self._axes.axes @ traits(samples) - self._axes.center

    def compare(self, first: Vector, second: Vector) -> float:
        """See `SpeakerMeasure.compare`; above 0."""
        return float(np.exp(-np.linalg.norm(first - second) / (SCALE * np.sqrt(len(first)))))


@dataclass(frozen=True, slots=True)
class Axes:
    """Directions in which voices differ.

    Attributes:
        axes: `[axes, TRAITS]`; the spread within a voice is 1 along each.
        center: `[axes]`, the mean voice along them.
    """

    axes: Vector
    center: Vector


def packaged_axes() -> Axes:
    """The package's own."""
    found = load((files("chroma_plugin") / "assets" / FITTED).read_bytes())
    return Axes(found["axes"].astype(np.float64), found["center"].astype(np.float64))


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

        heard = resample(long_enough(samples), OUTPUT_RATE_HZ, RATE_HZ)
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

        heard = resample(long_enough(samples), OUTPUT_RATE_HZ, RATE_HZ)
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
