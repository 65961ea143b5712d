"""Hearing while it is spoken: what transformers makes of the whole clip, however it arrives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import WhisperFeatureExtractor

from chroma_plugin.audio import INPUT_RATE_HZ, Samples
from chroma_plugin.model.listener import FLOOR, Listener, LogMel
from chroma_plugin.model.thinker import AudioTower, AudioTowerConfig, audio_positions
from tests.model.test_layers import shake

HOP, WINDOW = 160, 400
BLOCK_SAMPLES = 200 * HOP  # 2 s
BLOCK_KNOWN = 199 * HOP + WINDOW // 2  # the last window of the first block ends here

extractor = WhisperFeatureExtractor(feature_size=128)
mel = LogMel(extractor)
tower = AudioTower(
    AudioTowerConfig(
        mel_bins=128,
        hidden_size=32,
        layers=1,
        heads=2,
        intermediate_size=48,
        output_size=24,
        max_positions=1500,
    )
)
shake(tower)


def hiss(seconds: float, level: float, seed: int = 0) -> Samples:
    count = round(seconds * INPUT_RATE_HZ)
    return (level * np.random.default_rng(seed).standard_normal(count)).astype(np.float32)


def speech(seconds: float, seed: int = 0) -> Samples:
    """Syllables of a buzzing voice over a little noise: loud and soft, high and low."""
    count = round(seconds * INPUT_RATE_HZ)
    time = np.arange(count) / INPUT_RATE_HZ
    pitch = np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * time + seed)) / INPUT_RATE_HZ
    buzz = sum(np.sin(2 * np.pi * k * pitch) / k for k in range(1, 25))
    syllables = np.clip(np.sin(2 * np.pi * 2.3 * time + seed), 0, None) ** 2
    return (0.2 * buzz * syllables + hiss(seconds, 1e-3, seed)).astype(np.float32)


def whole_features(samples: Samples) -> Tensor:
    """What transformers makes of a clip `[128, frames]`, silence after it, cut to its frames."""
    features = extractor(
        samples,
        sampling_rate=INPUT_RATE_HZ,
        padding="max_length",
        max_length=max(extractor.n_samples, len(samples) + 10 * HOP),
        truncation=False,
        return_tensors="pt",
    )
    return features.input_features[0, :, : -(-len(samples) // HOP)]


@torch.inference_mode()
def whole_embeds(samples: Samples) -> Tensor:
    """The same through the tower, block by block."""
    out = []
    for block in whole_features(samples).split(200, dim=1):
        length = block.shape[1]
        out.append(tower(block[None], torch.tensor([length]))[0, : audio_positions(length)])
    return torch.cat(out)


def listen(samples: Samples, sizes: list[int], *, update: bool = True) -> Listener:
    """Hears a clip in pieces, of these sizes in turn, and its end."""
    listener, start = Listener(mel, tower), 0
    while start < len(samples):
        for size in sizes:
            listener.push(samples[start : start + size])
            start += size
            if update:
                listener.update()
    listener.update(final=True)
    assert listener.samples == len(samples)
    return listener


def error(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max()) if len(wanted) else 0.0


CLIPS = {
    "speech": speech(5.3),
    "hiss": hiss(4.7, 0.1),
    "whole blocks": speech(4.0, seed=1),
    "one frame more": speech(4.0, seed=2)[: 2 * BLOCK_SAMPLES - 159 + HOP],
    "no whole hop": speech(2.5, seed=3)[:-77],
    "a tenth of a second": speech(0.1, seed=4),
    "silence": np.zeros(50_000, np.float32),
    "silence, then speech": np.concatenate([np.zeros(40_000, np.float32), speech(2.0, seed=5)]),
    "speech, then silence": np.concatenate([speech(2.1, seed=6), np.zeros(40_000, np.float32)]),
    "fainter than the floor": hiss(2.6, 1e-7),
}


class TestEqualToTransformers:
    @pytest.mark.parametrize("name", CLIPS)
    def test_features(self, name: str) -> None:
        samples = CLIPS[name]
        frames = -(-len(samples) // HOP)
        half = WINDOW // 2
        after = np.zeros((frames - 1) * HOP + half - len(samples) + HOP, np.float32)
        padded = np.concatenate([samples[half:0:-1], samples, after])
        raw = mel(torch.from_numpy(padded[: (frames - 1) * HOP + WINDOW]))
        got = (raw.clamp(min=float(raw.max()) - FLOOR) + 4) / 4
        assert error(got, whole_features(samples)) < 1e-4

    @pytest.mark.parametrize("name", CLIPS)
    def test_embeddings(self, name: str) -> None:
        samples = CLIPS[name]
        wanted = whole_embeds(samples)
        listener = listen(samples, [len(samples)])
        assert listener.positions == len(wanted) == audio_positions(-(-len(samples) // HOP))
        assert error(listener.embeds, wanted) < 1e-4

    def test_a_minute(self) -> None:
        samples = speech(60.0)
        listener = listen(samples, [8000])
        assert listener.positions == 1500
        assert error(listener.embeds, whole_embeds(samples)) < 1e-4

    @pytest.mark.parametrize("rest", [0, 1, 39, 40, 41, 119, 120, 121, 159])
    def test_a_bang_at_the_very_end(self, rest: int) -> None:
        """The loudest frame lies past the last one that counts, and still sets the floor."""
        samples = hiss(2.0, 1e-4)[: BLOCK_SAMPLES - rest]
        samples[-8:] = 0.9
        features = whole_features(samples)
        assert (features == features.min()).sum() > 100  # the floor bites
        assert error(listen(samples, [1000]).embeds, whole_embeds(samples)) < 1e-4

    def test_the_levels_of_a_clip_matter(self) -> None:
        """So the comparisons above can fail."""
        other = (0.9 * CLIPS["speech"]).astype(np.float32)
        assert error(whole_embeds(other), whole_embeds(CLIPS["speech"])) > 1e-2


class TestInPieces:
    @pytest.mark.parametrize("update", [False, True])
    @pytest.mark.parametrize("size", [7, 160, 1000, 3333, 32_040])
    def test_equal_to_the_whole(self, size: int, update: bool) -> None:
        samples = CLIPS["speech"]
        wanted = listen(samples, [len(samples)]).embeds
        assert error(listen(samples, [size], update=update).embeds, wanted) < 1e-5

    def test_sample_by_sample(self) -> None:
        samples = CLIPS["speech"][:6000]
        wanted = listen(samples, [len(samples)]).embeds
        assert error(listen(samples, [1]).embeds, wanted) < 1e-5

    @hypothesis_settings(max_examples=30)
    @given(
        sizes=st.lists(st.integers(0, 9000), min_size=1, max_size=12).filter(any),
        length=st.integers(201, 75_000),
    )
    def test_any_pieces_of_any_length(self, sizes: list[int], length: int) -> None:
        samples = CLIPS["speech"][:length]
        wanted = listen(samples, [length]).embeds
        assert error(listen(samples, sizes).embeds, wanted) < 1e-5


class TestUpdate:
    def test_whole_blocks_while_it_is_spoken(self) -> None:
        samples, listener = CLIPS["hiss"], Listener(mel, tower)
        assert (listener.update(), listener.positions) == (0, 0)
        listener.push(samples[: BLOCK_KNOWN - 1])
        assert (listener.update(), listener.positions) == (0, 0)
        listener.push(samples[BLOCK_KNOWN - 1 : BLOCK_KNOWN])
        assert (listener.update(), listener.positions) == (0, 50)
        assert listener.embeds.shape == (50, 24)
        first = listener.embeds.clone()
        assert (listener.update(), listener.positions) == (50, 50)  # nothing is new
        listener.push(samples[BLOCK_KNOWN : 2 * BLOCK_SAMPLES + 5000])
        assert (listener.update(), listener.positions) == (50, 100)
        listener.push(samples[2 * BLOCK_SAMPLES + 5000 :])
        assert (listener.update(), listener.positions) == (100, 100)
        assert listener.update(final=True) == 100
        assert listener.positions == audio_positions(470) == 117
        assert torch.equal(listener.embeds[:50], first)

    def test_the_end_twice_is_the_end(self) -> None:
        listener = listen(CLIPS["speech"], [5000])
        before = listener.embeds.clone()
        assert listener.update(final=True) == listener.positions
        assert torch.equal(listener.embeds, before)

    def test_a_late_loud_sound_changes_what_was_heard(self) -> None:
        quiet, loud = hiss(5.0, 1e-5), hiss(1.5, 0.3, seed=1)
        listener = Listener(mel, tower)
        listener.push(quiet)
        assert (listener.update(), listener.positions) == (0, 100)
        early = listener.embeds.clone()
        assert error(early, whole_embeds(quiet)[:100]) < 1e-4
        listener.push(loud)
        assert (listener.update(), listener.positions) == (0, 150)
        assert error(listener.embeds[:100], early) > 0.1
        listener.update(final=True)
        assert error(listener.embeds, whole_embeds(np.concatenate([quiet, loud]))) < 1e-4

    def test_a_sound_changes_only_what_lies_below_its_floor(self) -> None:
        clear, faint, loud = hiss(2.0, 0.05), hiss(2.0, 1e-4, seed=1), hiss(2.0, 1.0, seed=2)
        samples = np.concatenate([clear, faint, hiss(2.0, 0.05, seed=3), loud])
        listener = Listener(mel, tower)
        listener.push(samples[: 3 * BLOCK_SAMPLES + 400])
        assert (listener.update(), listener.positions) == (0, 150)
        before = listener.embeds.clone()
        listener.push(samples[3 * BLOCK_SAMPLES + 400 :])
        assert listener.update() == 50  # the faint second block is the first that changes
        listener.update(final=True)
        assert torch.equal(listener.embeds[:50], before[:50])
        assert error(listener.embeds[50:100], before[50:100]) > 1e-4
        assert torch.equal(listener.embeds[100:150], before[100:150])
        assert error(listener.embeds, whole_embeds(samples)) < 1e-4

    @pytest.mark.parametrize(("above", "first"), [(0.2, 0), (0.02, 0), (-0.02, 50)])
    def test_a_floor_that_just_touches(self, above: float, first: int) -> None:
        """How far the floor comes to lie above the first block's lowest value, in log10."""

        def levels(samples: Samples) -> Tensor:
            padded = np.concatenate([samples[200:0:-1], samples])
            return mel(torch.from_numpy(padded))

        start, loud = hiss(2.1, 0.01), hiss(2.0, 0.1, seed=1)
        gain = float(levels(start)[:, :200].min()) + FLOOR + above - float(levels(loud).max())
        loud *= 10 ** (gain / 2)
        samples = np.concatenate([start, loud])
        listener = Listener(mel, tower)
        listener.push(start)
        assert (listener.update(), listener.positions) == (0, 50)
        listener.push(loud)
        assert (listener.update(), listener.positions) == (first, 100)
        listener.update(final=True)
        assert error(listener.embeds, whole_embeds(samples)) < 1e-4

    def test_a_louder_sound_that_changes_nothing_before_it(self) -> None:
        listener = Listener(mel, tower)
        listener.push(hiss(2.2, 0.05))
        assert listener.update() == 0
        listener.push(hiss(2.2, 0.1, seed=1))
        assert (listener.update(), listener.positions) == (50, 100)


class TestShort:
    def test_the_shortest(self) -> None:
        samples = speech(1.0)[8000:8201]
        listener = listen(samples, [50])
        assert listener.positions == 0
        assert listener.embeds.shape == (0, 24)

    def test_three_frames_are_a_position(self) -> None:
        samples = speech(1.0)[8000 : 8000 + 2 * HOP + 1]
        listener = listen(samples, [50])
        assert listener.positions == 1
        assert error(listener.embeds, whole_embeds(samples)) < 1e-4

    @pytest.mark.parametrize("count", [0, 1, 200])
    def test_too_short(self, count: int) -> None:
        listener = Listener(mel, tower)
        listener.push(np.zeros(count, np.float32))
        assert listener.update() == 0
        with pytest.raises(ValueError, match=f"more than 200 samples, this one has {count}"):
            listener.update(final=True)


def test_embeddings_have_the_towers_dtype() -> None:
    half = AudioTower(tower.config)
    half.load_state_dict(tower.state_dict())
    half.bfloat16().requires_grad_(False)
    listener = Listener(mel, half)
    listener.push(CLIPS["speech"])
    listener.update(final=True)
    assert listener.embeds.dtype == torch.bfloat16
    wanted = whole_embeds(CLIPS["speech"])
    assert error(listener.embeds.float(), wanted) < 0.05 * float(wanted.abs().max())
