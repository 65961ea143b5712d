from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chroma_plugin.audio import INPUT_RATE_HZ, OUTPUT_RATE_HZ, read_audio, resample
from chroma_plugin.errors import AudioError, ChromaError, ConfigError
from chroma_plugin.evaluation.speakers import LightMeasure, cosine, speaker_measure
from tests.evaluation.conftest import CLIP, vowels

VOICES = [(100.0, 1.0), (125.0, 0.9), (160.0, 1.05), (200.0, 1.18), (240.0, 1.1), (300.0, 1.3)]


def test_the_light_measure_knows_voices_again() -> None:
    measure = LightMeasure()
    known = [measure.embed(vowels(1.6, *voice, seed=i)) for i, voice in enumerate(VOICES)]
    heard = [measure.embed(vowels(1.6, *voice, seed=i + 50)) for i, voice in enumerate(VOICES)]
    table = np.array([[measure.compare(a, b) for b in known] for a in heard])
    assert table.argmax(axis=1).tolist() == list(range(len(VOICES)))
    assert table.min() > 0 and table.max() < 1
    assert measure.compare(known[0], known[0]) == 1.0
    assert measure.compare(known[0], known[1]) == measure.compare(known[1], known[0])


def test_the_light_measure_minds_neither_level_nor_silence() -> None:
    measure, clip = LightMeasure(), vowels(1.6, 140.0, 1.0, seed=3)
    voice = measure.embed(clip)
    assert measure.compare(voice, measure.embed(clip * 0.2)) > 0.95
    assert measure.compare(voice, measure.embed(np.pad(clip, 12_000))) > 0.9


def test_the_light_measure_knows_the_packaged_voice_again() -> None:
    """Another sentence, and noise 30 dB below it, change less than another pitch and tract."""
    measure, clip = LightMeasure(), read_audio(CLIP, OUTPUT_RATE_HZ)
    first, second = clip[: len(clip) // 2], clip[len(clip) // 2 :]
    noise = np.random.default_rng(0).normal(0, 0.03 * np.sqrt(np.mean(first**2)), len(first))
    voice = measure.embed(second)
    again = [measure.embed(first), measure.embed((first + noise).astype(np.float32))]
    others = [measure.embed(resample(first, OUTPUT_RATE_HZ, hz)) for hz in (19_200, 30_000)]
    alike = min(measure.compare(voice, one) for one in again)
    assert alike > 1.5 * max(measure.compare(voice, one) for one in others)


def test_what_tells_no_voice_is_refused() -> None:
    with pytest.raises(AudioError, match=r"0\.04 s of speech tell no voice"):
        LightMeasure().embed(np.zeros(960, np.float32))
    with pytest.raises(AudioError, match="silent"):
        LightMeasure().embed(np.zeros(24_000, np.float32))


def test_measures_have_names() -> None:
    assert speaker_measure("light").name == "light"
    for name in ("heavy", "light:x", ""):
        with pytest.raises(ConfigError, match="use light, wavlm"):
            speaker_measure(name)
    with pytest.raises(ChromaError, match="no x-vector model could be loaded"):
        speaker_measure("wavlm:/no/such/folder")


def test_an_x_vector_model_from_a_folder(tmp_path: Path) -> None:
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

    config = WavLMConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 8),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        tdnn_dim=(16, 16),
        tdnn_kernel=(3, 1),
        tdnn_dilation=(1, 1),
        xvector_output_dim=12,
    )
    WavLMForXVector(config).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    measure = speaker_measure(f"wavlm:{tmp_path}")
    clips = [vowels(0.8, *VOICES[i], seed=i) for i in (0, 5)]
    first, second = (measure.embed(clip) for clip in clips)
    assert first.shape == (12,)
    assert measure.compare(first, first) == pytest.approx(1.0)
    assert measure.compare(first, second) < 1.0
    assert measure.name == f"wavlm:{tmp_path}"


def test_speechbrain_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "speechbrain.inference.speaker", None)
    with pytest.raises(ChromaError, match="needs speechbrain"):
        speaker_measure("ecapa")


def test_a_speechbrain_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Encoder:
        @classmethod
        def from_hparams(cls, **given: Any) -> Encoder:
            asked.append(given)
            return cls()

        def encode_batch(self, samples: torch.Tensor) -> torch.Tensor:
            asked.append(samples.shape)
            return torch.tensor([[[3.0, 4.0]]])

    module: Any = types.ModuleType("speechbrain.inference.speaker")
    module.EncoderClassifier = Encoder
    monkeypatch.setitem(sys.modules, "speechbrain", types.ModuleType("speechbrain"))
    monkeypatch.setitem(sys.modules, "speechbrain.inference", types.ModuleType("inference"))
    monkeypatch.setitem(sys.modules, "speechbrain.inference.speaker", module)
    measure = speaker_measure("ecapa:here", "cpu")
    assert measure.embed(np.ones(24_000, np.float32)).tolist() == [3.0, 4.0]
    assert asked[0] == {"source": "here", "run_opts": {"device": "cpu"}}
    assert asked[1] == (1, INPUT_RATE_HZ)
    assert measure.compare(np.array([1.0, 0]), np.array([0, 1.0])) == 0.0
    assert cosine(np.array([1.0, 1]), np.array([2.0, 2])) == pytest.approx(1.0)
