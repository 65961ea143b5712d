"""The depth decoder: a frame equals a plain loop over transformers' Llama, in both numberings."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from chroma_plugin.config import DepthPositions
from chroma_plugin.model.backbone import AudioEmbedding
from chroma_plugin.model.depth import DepthDecoder
from tests.host_reads import NoHostReads
from tests.model.test_layers import PLAIN, copy_stack, error, llama, noise, shake

CODEBOOKS, VOCABULARY, WIDTH = 8, 19, 30
CONFIG = dataclasses.replace(PLAIN, rope_theta=10.0)  # neighbours are turned far apart


@pytest.fixture(scope="module")
def reference() -> Any:
    return llama(CONFIG)


@pytest.fixture(scope="module")
def depth(reference: Any) -> DepthDecoder:
    embedding = AudioEmbedding(CODEBOOKS, VOCABULARY, WIDTH)
    depth = DepthDecoder(CONFIG, CODEBOOKS, VOCABULARY, embedding, WIDTH)
    shake(depth, seed=1)
    copy_stack(depth.transformer, reference)
    return depth


def best(scores: Tensor, codebook: int) -> Tensor:
    return scores.argmax(dim=-1)


def likely(scores: Tensor, codebook: int) -> Tensor:
    """Codes of some variety, by the scores and the codebook."""
    return scores.topk(3).indices[:, codebook % 3]


def loop(
    reference: Any, depth: DepthDecoder, hidden: Tensor, code0: Tensor, positions: list[int]
) -> tuple[Tensor, list[Tensor]]:
    """One frame of some rows, read from the beginning for every code."""
    table = depth.audio_embedding.table.weight
    codes, scores = [code0], []
    inputs = [hidden]
    for codebook in range(1, CODEBOOKS):
        inputs.append(table[(codebook - 1) * VOCABULARY + codes[-1]])
        x = torch.stack(inputs, dim=1) @ depth.projection.weight.T
        length = codebook + 1
        out = reference(
            inputs_embeds=x,
            position_ids=torch.tensor(positions[:length]).expand(len(x), -1),
            attention_mask=torch.ones(len(x), length, dtype=torch.int64),
            use_cache=False,
        ).last_hidden_state[:, -1]
        scores.append(out @ depth.heads[codebook - 1])
        codes.append(likely(scores[-1], codebook))
    return torch.stack(codes, dim=1), scores


class TestFrame:
    @pytest.mark.parametrize(
        ("numbering", "positions"),
        [("generate", [0, 0, 1, 2, 3, 4, 5, 6]), ("training", [0, 1, 2, 3, 4, 5, 6, 7])],
    )
    def test_equal_to_transformers(
        self,
        reference: Any,
        depth: DepthDecoder,
        numbering: DepthPositions,
        positions: list[int],
    ) -> None:
        hidden, code0 = noise(5, WIDTH), torch.tensor([0, 3, 18, 7, 7])
        wanted, scores = loop(reference, depth, hidden, code0, positions)
        seen: list[tuple[int, Tensor]] = []

        def pick(found: Tensor, codebook: int) -> Tensor:
            seen.append((codebook, found))
            return likely(found, codebook)

        codes = depth.frame(hidden, code0, depth.new_steps(5, numbering), pick)
        assert codes.dtype == torch.int64
        assert torch.equal(codes, wanted)
        assert [codebook for codebook, _ in seen] == list(range(1, CODEBOOKS))
        for (_, found), score in zip(seen, scores, strict=True):
            assert error(found, score) < 1e-5
        other, _ = loop(reference, depth, hidden, code0, [*positions[1:], 7])
        assert not torch.equal(other, wanted)  # the numbering matters

    def test_as_the_released_model_generates_unless_told(self, depth: DepthDecoder) -> None:
        hidden, code0 = noise(5, WIDTH), torch.arange(5)
        steps = depth.new_steps(5)
        default = depth.frame(hidden, code0, steps, best)
        assert torch.equal(
            default, depth.frame(hidden, code0, depth.new_steps(5, "generate"), best)
        )
        assert not torch.equal(
            default, depth.frame(hidden, code0, depth.new_steps(5, "training"), best)
        )

    def test_every_input_counts(self, depth: DepthDecoder) -> None:
        """The hidden state, code 0, and every code picked on the way."""
        hidden, code0, steps = noise(1, WIDTH), torch.tensor([4]), depth.new_steps(1)

        def after(change: int, hidden: Tensor = hidden, code0: Tensor = code0) -> Tensor:
            scores: list[Tensor] = []

            def pick(found: Tensor, codebook: int) -> Tensor:
                scores.append(found)
                return torch.tensor([11 if codebook == change else codebook])

            depth.frame(hidden, code0, steps, pick)
            return torch.cat(scores)

        plain = after(0)
        assert (after(0, hidden=noise(1, WIDTH, seed=1)) - plain).abs().amax(1).min() > 1e-2
        assert (after(0, code0=torch.tensor([5])) - plain).abs().amax(1).min() > 1e-2
        for codebook in range(1, CODEBOOKS - 1):
            moved = (after(codebook) - plain).abs().amax(1)
            assert not moved[:codebook].any()
            assert moved[codebook:].min() > 1e-2


class TestRows:
    def test_a_row_equals_itself_alone(self, depth: DepthDecoder) -> None:
        hidden, code0 = noise(4, WIDTH), torch.tensor([1, 2, 3, 4])
        together = depth.frame(hidden, code0, depth.new_steps(6), likely)
        for row in range(4):
            one = slice(row, row + 1)
            alone = depth.frame(hidden[one], code0[one], depth.new_steps(1), likely)
            assert torch.equal(alone, together[one])

    def test_frames_know_nothing_of_one_another(self, depth: DepthDecoder) -> None:
        hidden, code0, steps = noise(2, WIDTH), torch.tensor([1, 2]), depth.new_steps(3)
        first = depth.frame(hidden, code0, steps, likely)
        depth.frame(noise(2, WIDTH, seed=1), torch.tensor([3, 9]), steps, likely)
        cache = steps[0].cache
        cache.k.copy_(noise(*cache.k.shape, seed=2))
        cache.v.copy_(noise(*cache.v.shape, seed=3))
        assert torch.equal(depth.frame(hidden, code0, steps, likely), first)

    def test_nothing_is_read_back(self, depth: DepthDecoder) -> None:
        hidden, code0, steps = noise(2, WIDTH), torch.tensor([1, 2]), depth.new_steps(2)
        with NoHostReads():
            depth.frame(hidden, code0, steps, likely)


class TestCache:
    def test_holds_one_frame(self, depth: DepthDecoder) -> None:
        steps = depth.new_steps(3)
        assert len({id(step.cache) for step in steps}) == 1
        cache = steps[0].cache
        assert (cache.rows, cache.positions) == (3, CODEBOOKS)
        assert cache.k.dtype == torch.float32

    def test_has_the_weights_dtype(self) -> None:
        embedding = AudioEmbedding(CODEBOOKS, VOCABULARY, WIDTH)
        half = DepthDecoder(CONFIG, CODEBOOKS, VOCABULARY, embedding, WIDTH).bfloat16()
        assert half.new_steps(1)[0].cache.k.dtype == torch.bfloat16


class TestAudioEmbedding:
    def test_a_code_has_a_row_per_codebook(self, depth: DepthDecoder) -> None:
        table = depth.audio_embedding.table.weight
        assert torch.equal(depth.audio_embedding.code(torch.tensor([0, 18]), 0), table[[0, 18]])
        got = depth.audio_embedding.code(torch.tensor([[4]]), 3)
        assert torch.equal(got, table[None, None, 3 * VOCABULARY + 4])

    def test_a_frame_is_the_sum_of_its_codes(self, depth: DepthDecoder) -> None:
        codes = torch.randint(VOCABULARY, (2, 3, CODEBOOKS))
        got = depth.audio_embedding.frame(codes)
        wanted = sum(depth.audio_embedding.code(codes[..., k], k) for k in range(CODEBOOKS))
        assert isinstance(wanted, Tensor)
        assert error(got, wanted) < 1e-6
