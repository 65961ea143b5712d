"""The thinker: equal to transformers' Qwen2.5-Omni, by ear and by text, whole or in pieces."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from chroma_plugin.model.layers import KVCache
from chroma_plugin.model.thinker import AudioTower, AudioTowerConfig, Thinker, audio_positions
from tests.host_reads import NoHostReads
from tests.model.test_layers import THREE_AXES, copy_stack, error, noise, omni, shake

VOCABULARY = 11
TOWER = AudioTowerConfig(
    mel_bins=16,
    hidden_size=32,
    layers=2,
    heads=4,
    intermediate_size=40,
    output_size=48,
    max_positions=1500,
)


def omni_tower(config: AudioTowerConfig) -> Any:
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import (
        Qwen2_5OmniAudioEncoderConfig,
    )
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

    encoder = Qwen2_5OmniAudioEncoder(
        Qwen2_5OmniAudioEncoderConfig(
            num_mel_bins=config.mel_bins,
            d_model=config.hidden_size,
            encoder_layers=config.layers,
            encoder_attention_heads=config.heads,
            encoder_ffn_dim=config.intermediate_size,
            output_dim=config.output_size,
            max_source_positions=config.max_positions,
            n_window=config.block_frames // 2,
        )
    )
    shake(encoder)
    return encoder


def same_tower(encoder: Any, config: AudioTowerConfig) -> AudioTower:
    tower = AudioTower(config)
    weights = {k.replace("self_attn.", ""): v for k, v in encoder.state_dict().items()}
    del weights["audio_bos_eos_token.weight"]
    tower.load_state_dict(weights)
    return tower.eval().requires_grad_(False)


def blocks(clips: list[Tensor], size: int) -> tuple[Tensor, Tensor]:
    """All blocks of some clips `[mel_bins, frames]` as one padded batch, and their lengths."""
    pieces = [piece for clip in clips for piece in clip.split(size, dim=1)]
    lengths = torch.tensor([piece.shape[1] for piece in pieces])
    batch = torch.full((len(pieces), clips[0].shape[0], int(lengths.max())), torch.nan)
    for row, piece in zip(batch, pieces, strict=True):
        row[:, : piece.shape[1]] = piece  # the rest would spoil everything if it were looked at
    return batch, lengths


def embed(tower: AudioTower, clips: list[Tensor]) -> Tensor:
    """Every clip through the tower, one after another: `[positions, output]`."""
    batch, lengths = blocks(clips, tower.config.block_frames)
    out = tower(batch, lengths)
    assert out.shape[1] == audio_positions(batch.shape[-1])
    return torch.cat([o[: audio_positions(int(n))] for o, n in zip(out, lengths, strict=True)])


@pytest.fixture(scope="module")
def encoder() -> Any:
    return omni_tower(TOWER)


class TestAudioTower:
    @pytest.mark.parametrize(
        "frames",
        [[200], [130], [77], [3], [400], [401], [402], [403], [530], [530, 200, 61, 399, 10]],
        ids=str,
    )
    def test_equal_to_transformers(self, encoder: Any, frames: list[int]) -> None:
        clips = [noise(16, n, seed=n) for n in frames]
        wanted = encoder(torch.cat(clips, dim=1), feature_lens=torch.tensor(frames))
        got = embed(same_tower(encoder, TOWER), clips)
        assert error(got, wanted.last_hidden_state) < 1e-5

    @pytest.mark.parametrize("window", [4, 30])
    def test_other_block_sizes(self, window: int) -> None:
        config = dataclasses.replace(TOWER, block_frames=2 * window)
        encoder, clip = omni_tower(config), noise(16, 173)
        wanted = encoder(clip, feature_lens=torch.tensor([173])).last_hidden_state
        assert error(embed(same_tower(encoder, config), [clip]), wanted) < 1e-5

    def test_a_block_knows_nothing_of_others(self, encoder: Any) -> None:
        tower, clip = same_tower(encoder, TOWER), noise(16, 530)
        whole = embed(tower, [clip])
        alone = torch.cat([embed(tower, [piece]) for piece in clip.split(200, dim=1)])
        assert error(alone, whole) < 1e-5
        other = clip.clone()
        other[:, 200:400] = noise(16, 200, seed=1)
        moved = (embed(tower, [other]) - whole).abs().amax(dim=1)
        assert moved[:50].max() < 1e-5 > moved[100:].max()
        assert moved[50:100].min() > 1e-2

    def test_places_of_the_longest_block(self, encoder: Any) -> None:
        ours = same_tower(encoder, TOWER)._places(100, torch.zeros(0))
        assert error(ours, encoder.positional_embedding(100)) < 1e-6

    def test_nothing_is_read_back(self, encoder: Any) -> None:
        tower = same_tower(encoder, TOWER)
        batch, lengths = blocks([noise(16, 330)], 200)
        with NoHostReads():
            tower(batch, lengths)


class TestAudioPositions:
    def test_equal_to_transformers(self) -> None:
        from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as reference

        frames = torch.arange(1, 3001)
        lengths = reference.Qwen2_5OmniAudioEncoder._get_feat_extract_output_lengths
        _, wanted = lengths(None, frames)
        assert [audio_positions(n) for n in frames.tolist()] == wanted.tolist()

    def test_blocks_add_up_to_the_clip(self) -> None:
        for frames in range(1, 1001):
            whole, rest = divmod(frames, 200)
            total = whole * 50 + (audio_positions(rest) if rest else 0)
            assert total == audio_positions(frames)

    @pytest.mark.parametrize(("frames", "positions"), [(1, 0), (2, 0), (3, 1), (10, 2), (200, 50)])
    def test_some(self, frames: int, positions: int) -> None:
        assert audio_positions(frames) == positions


@pytest.fixture(scope="module")
def text_model() -> Any:
    return omni(THREE_AXES)


@pytest.fixture(scope="module")
def thinker(text_model: Any) -> Thinker:
    thinker = Thinker(THREE_AXES, TOWER, VOCABULARY, tied=False)
    shake(thinker, seed=1)
    copy_stack(thinker.transformer, text_model)
    thinker.embedding.load_state_dict(text_model.embed_tokens.state_dict())
    return thinker


def ids(length: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(seed))


class TestText:
    def test_logits_equal_to_transformers(self, thinker: Thinker, text_model: Any) -> None:
        said = ids(70)
        wanted = text_model(said, use_cache=False).last_hidden_state @ thinker.lm_head.weight.T
        cache = KVCache.empty(THREE_AXES, 1, 70)
        got = thinker.lm_head(
            thinker.transformer(thinker.embedding(said), torch.arange(70)[None], cache)
        )
        assert got.shape == (1, 70, VOCABULARY)
        assert error(got, wanted) < 1e-5

    def test_heard_among_the_text(self, thinker: Thinker, text_model: Any) -> None:
        """Audio takes positions as text does: 0, 1, 2, ... without a jump, on every axis."""
        clip = embed(thinker.audio_tower, [noise(16, 330)])
        x = torch.cat([thinker.embedding(ids(9))[0], clip, thinker.embedding(ids(7, 1))[0]])[None]
        length = 9 + 82 + 7
        assert x.shape[1] == length
        wanted = text_model(
            inputs_embeds=x, position_ids=torch.arange(length).expand(3, 1, -1), use_cache=False
        ).last_hidden_state
        got = thinker.transformer(
            x, torch.arange(length)[None], KVCache.empty(THREE_AXES, 1, length)
        )
        assert error(got, wanted) < 1e-5

    @pytest.mark.parametrize("pieces", [[1] * 70, [64, 6], [50, 1, 1, 18]], ids=len)
    def test_logits_in_pieces(self, thinker: Thinker, pieces: list[int]) -> None:
        x, at = thinker.embedding(ids(70)), torch.arange(70)[None]
        whole = thinker.lm_head(thinker.transformer(x, at, KVCache.empty(THREE_AXES, 1, 70)))
        cache, rows = KVCache.empty(THREE_AXES, 3, 80), torch.tensor([2])
        heard = [
            thinker.transformer(part, where, cache, rows=rows, span=int(where[0, -1]) + 1)
            for part, where in zip(x.split(pieces, 1), at.split(pieces, 1), strict=True)
        ]
        assert error(thinker.lm_head(torch.cat(heard, dim=1)), whole) < 1e-5

    def test_greedy_text_equals_transformers(self, thinker: Thinker, text_model: Any) -> None:
        said = ids(12)
        cache, place = KVCache.empty(THREE_AXES, 1, 64), 0
        x, ours, theirs = thinker.embedding(said), [], said
        for _ in range(20):
            at = torch.arange(place, place + x.shape[1])[None]
            token = thinker.lm_head(thinker.transformer(x, at, cache)[:, -1]).argmax(dim=-1)
            ours.append(int(token))
            place, x = place + x.shape[1], thinker.embedding(token)[:, None]
            state = text_model(theirs, use_cache=False).last_hidden_state[:, -1]
            best = thinker.lm_head(state).argmax(dim=-1)
            theirs = torch.cat([theirs, best[:, None]], dim=1)
        assert ours == theirs[0, 12:].tolist()
        assert len(set(ours)) > 1


class TestHead:
    def test_tied(self) -> None:
        tied = Thinker(THREE_AXES, TOWER, VOCABULARY, tied=True)
        assert tied.lm_head.weight is tied.embedding.weight

    def test_untied(self, thinker: Thinker) -> None:
        assert thinker.lm_head.weight is not thinker.embedding.weight
