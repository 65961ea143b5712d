"""The shared stack: equal to transformers' Llama, Qwen2 and Qwen2.5-Omni, in pieces, row by row."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chroma_plugin.model.layers import (
    KVCache,
    Llama3Scaling,
    RMSNorm,
    Rope,
    Transformer,
    TransformerConfig,
    rope_frequencies,
)
from tests.host_reads import NoHostReads

PLAIN = TransformerConfig(
    hidden_size=48,
    intermediate_size=80,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=20,  # wider than hidden_size / heads
    norm_eps=1e-5,
    rope_theta=500.0,
)
STRETCHED = dataclasses.replace(
    PLAIN,
    rope_scaling=Llama3Scaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=64
    ),
)
BIASED = dataclasses.replace(PLAIN, head_dim=12, qkv_bias=True)
THREE_AXES = dataclasses.replace(BIASED, rope_theta=50.0, mrope_section=(2, 1, 3))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


def error(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, in parts of the largest value."""
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


@torch.no_grad()
def shake(module: nn.Module, seed: int = 0) -> None:
    """Random weights of which none is zero, one or too small to matter."""
    generator = seeded(seed)
    for name, tensor in module.named_parameters():
        values = torch.randn(tensor.shape, generator=generator)
        if "norm" in name or "ln_" in name:
            tensor.copy_(1 + 0.3 * values)
        elif tensor.dim() >= 2:
            tensor.copy_(1.5 * values * tensor[0].numel() ** -0.5)
        else:
            tensor.copy_(0.5 * values)
    module.eval().requires_grad_(False)


@torch.no_grad()
def copy_stack(ours: Transformer, theirs: Any) -> None:
    """Gives a stack of ours the weights of transformers' Llama, Qwen2 or Qwen2.5-Omni."""
    ours.norm.weight.copy_(theirs.norm.weight)
    for block, layer in zip(ours.blocks, theirs.layers, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
        block.attention.qkv.weight.copy_(torch.cat([p.weight for p in qkv]))
        if block.attention.qkv.bias is not None:
            block.attention.qkv.bias.copy_(torch.cat([p.bias for p in qkv]))
        block.attention.out.weight.copy_(attention.o_proj.weight)
        block.mlp.gate_up.weight.copy_(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
        block.mlp.down.weight.copy_(mlp.down_proj.weight)
        block.attention_norm.weight.copy_(layer.input_layernorm.weight)
        block.mlp_norm.weight.copy_(layer.post_attention_layernorm.weight)
    ours.eval().requires_grad_(False)


def sizes(config: TransformerConfig) -> dict[str, Any]:
    """A configuration in the words of transformers."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_positions,
        }
    if config.mrope_section is not None:
        rope["mrope_section"] = list(config.mrope_section)
    return {
        "vocab_size": 11,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "max_position_embeddings": 8192,
    }


def llama(config: TransformerConfig) -> Any:
    from transformers import LlamaConfig, LlamaModel

    model = LlamaModel(LlamaConfig(**sizes(config)))
    shake(model)
    return model


def qwen2(config: TransformerConfig) -> Any:
    from transformers import Qwen2Config, Qwen2Model

    model = Qwen2Model(Qwen2Config(**sizes(config)))
    shake(model)
    return model


def omni(config: TransformerConfig) -> Any:
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniTextConfig
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerTextModel

    model = Qwen2_5OmniThinkerTextModel(Qwen2_5OmniTextConfig(**sizes(config)))
    shake(model)
    return model


def places(length: int, start: int = 0, rows: int = 1) -> Tensor:
    return torch.arange(start, start + length).expand(rows, length)


def read(
    stack: Transformer, x: Tensor, cache: KVCache | None = None, start: int = 0, **options: Any
) -> Tensor:
    """Runs `[B, T, hidden]`, every row from `start` on."""
    cache = cache or KVCache.empty(stack.config, x.shape[0], start + x.shape[1])
    return stack(x, places(x.shape[1], start, x.shape[0]), cache, **options)


@pytest.fixture(scope="module")
def stack() -> Transformer:
    stack = Transformer(PLAIN)
    shake(stack)
    return stack


class TestEqualToTransformers:
    @pytest.mark.parametrize("config", [PLAIN, STRETCHED], ids=["plain", "llama3"])
    def test_llama(self, config: TransformerConfig) -> None:
        theirs, ours = llama(config), Transformer(config)
        copy_stack(ours, theirs)
        x = noise(2, 150, 48)
        wanted = theirs(inputs_embeds=x, use_cache=False).last_hidden_state
        assert error(read(ours, x), wanted) < 1e-5
        if config is STRETCHED:  # it does bite at these positions
            unscaled = Transformer(PLAIN)
            copy_stack(unscaled, theirs)
            assert error(read(unscaled, x), wanted) > 0.05

    def test_qwen2(self) -> None:
        theirs, ours = qwen2(BIASED), Transformer(BIASED)
        copy_stack(ours, theirs)
        x = noise(2, 60, 48)
        wanted = theirs(inputs_embeds=x, use_cache=False).last_hidden_state
        assert error(read(ours, x), wanted) < 1e-5

    def test_far_positions(self) -> None:
        """Angles in float32, as there, even where they are large."""
        theirs, ours = llama(PLAIN), Transformer(PLAIN)
        copy_stack(ours, theirs)
        x = noise(1, 40, 48)
        far = torch.randint(3000, 4000, (1, 40), generator=seeded(1)).sort().values
        mask = torch.ones(1, 40, dtype=torch.int64)
        wanted = theirs(
            inputs_embeds=x, position_ids=far, attention_mask=mask, use_cache=False
        ).last_hidden_state
        assert error(read(ours, x, rope_positions=far), wanted) < 1e-5

    def test_norm_in_bfloat16(self) -> None:
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        theirs, ours = LlamaRMSNorm(48, 1e-5), RMSNorm(48, 1e-5)
        shake(theirs)
        ours.load_state_dict(theirs.state_dict())
        x = noise(5, 48).bfloat16() * 20
        got = ours.bfloat16()(x)
        assert got.dtype == torch.bfloat16
        assert torch.equal(got, theirs.bfloat16()(x))


class TestFrequencies:
    def test_llama3_has_three_bands(self) -> None:
        plain, stretched = rope_frequencies(PLAIN), rope_frequencies(STRETCHED)
        ratio = plain / stretched
        assert torch.equal(ratio[:2], torch.ones(2))  # fast ones stay
        assert torch.allclose(ratio[-3:], torch.full((3,), 8.0))  # slow ones are stretched
        between = ratio[(ratio > 1.01) & (ratio < 7.9)]
        assert len(between) >= 2  # and some lie between
        assert (ratio.diff() >= 0).all()

    def test_reset_makes_them_anew(self) -> None:
        rope = Rope(STRETCHED)
        rope.frequencies.fill_(7.0)
        rope.reset()
        assert torch.equal(rope.frequencies, rope_frequencies(STRETCHED))

    def test_they_are_not_in_the_weights(self, stack: Transformer) -> None:
        assert not [name for name in stack.state_dict() if "rope" in name]


@pytest.fixture
def axes() -> Tensor:
    """Time, height and width, each on its own way: `[3, 2, 30]`."""
    return torch.randint(0, 40, (3, 2, 30), generator=seeded(3))


class TestThreeAxes:
    def test_equal_to_qwen25_omni(self, axes: Tensor) -> None:
        theirs, ours = omni(THREE_AXES), Transformer(THREE_AXES)
        copy_stack(ours, theirs)
        x = noise(2, 30, 48)

        def wanted(positions: Tensor) -> Tensor:
            return theirs(
                inputs_embeds=x, position_ids=positions, use_cache=False
            ).last_hidden_state

        assert error(read(ours, x, rope_positions=axes), wanted(axes)) < 1e-5
        for axis in range(3):  # each of them matters
            other = axes.clone()
            other[axis] += 1 + places(30, rows=2)
            assert error(wanted(other), wanted(axes)) > 1e-2
            assert error(read(ours, x, rope_positions=other), wanted(other)) < 1e-5

    def test_equal_axes_are_plain_positions(self) -> None:
        ours = Transformer(THREE_AXES)
        shake(ours)
        plain = Transformer(BIASED)
        plain.load_state_dict(ours.state_dict())
        plain.rope = Rope(dataclasses.replace(THREE_AXES, mrope_section=None))
        x, same = noise(2, 30, 48), places(30, rows=2).expand(3, 2, 30)
        wanted = read(plain, x)
        assert torch.equal(read(ours, x, rope_positions=same), wanted)
        assert torch.equal(read(ours, x), wanted)

    def test_an_axis_turns_its_own_frequencies(self) -> None:
        rope = Rope(THREE_AXES)
        positions = torch.tensor([3, 5, 7])[:, None, None]
        cos, sin = rope(positions)
        steps = [3, 3, 5, 7, 7, 7]
        angles = torch.tensor(steps) * rope_frequencies(THREE_AXES)
        angles = torch.cat([angles, angles])
        assert torch.allclose(cos[0, 0, 0], angles.cos(), atol=1e-6)
        assert torch.allclose(sin[0, 0, 0], angles.sin(), atol=1e-6)

    def test_refused_by_a_plain_stack(self, stack: Transformer, axes: Tensor) -> None:
        with pytest.raises(ValueError, match="mrope_section"):
            read(stack, noise(2, 30, 48), rope_positions=axes)


class TestInPieces:
    @pytest.mark.parametrize("pieces", [[1] * 40, [7] * 5 + [5], [39, 1], [1, 30, 9]])
    def test_equal_to_the_whole(self, stack: Transformer, pieces: list[int]) -> None:
        x = noise(2, 40, 48)
        cache, start, heard = KVCache.empty(PLAIN, 2, 64), 0, []
        for piece in x.split(pieces, dim=1):
            heard.append(read(stack, piece, cache, start))
            start += piece.shape[1]
        assert error(torch.cat(heard, dim=1), read(stack, x)) < 1e-5

    def test_nothing_sees_what_follows(self, stack: Transformer) -> None:
        x = noise(1, 40, 48)
        other = x.clone()
        other[:, 25:] = noise(1, 15, 48, seed=1)
        one, two = read(stack, x), read(stack, other)
        assert torch.equal(one[:, :25], two[:, :25])
        assert error(two[:, 25:], one[:, 25:]) > 0.1

    def test_what_lay_in_the_cache_before_does_not_matter(self, stack: Transformer) -> None:
        x = noise(2, 20, 48)
        used = KVCache.empty(PLAIN, 2, 50)
        read(stack, noise(2, 50, 48, seed=1), used)
        assert error(read(stack, x, used), read(stack, x)) < 1e-5

    @pytest.mark.parametrize("span", [21, 32, 99, 1000])
    def test_a_shorter_span(self, stack: Transformer, span: int) -> None:
        """Beyond the span nothing is read, not even numbers that would spoil everything."""
        x = noise(2, 21, 48)
        cache = KVCache.empty(PLAIN, 2, 100)
        read(stack, x[:, :20], cache)
        cache.k[..., span:, :] = cache.v[..., span:, :] = torch.nan
        got = read(stack, x[:, 20:], cache, 20, span=span)
        assert error(got, read(stack, x)[:, 20:]) < 1e-5

    def test_rotations_may_count_differently_from_the_cache(self, stack: Transformer) -> None:
        """Attention depends on the distance of rotations alone, and on order by the cache."""
        x = noise(1, 20, 48)
        wanted = read(stack, x)
        assert error(read(stack, x, rope_positions=places(20, start=9)), wanted) < 1e-4
        assert error(read(stack, x, rope_positions=places(20).flip(1)), wanted) > 1e-2


class TestRows:
    """A row of a batch equals the same conversation alone."""

    LENGTHS = (3, 17, 40)

    def alone(self, stack: Transformer, new: int) -> list[tuple[Tensor, KVCache, Tensor]]:
        """Per conversation: its input, the cache of all but the `new` last, the last outputs."""
        found = []
        for row, length in enumerate(self.LENGTHS):
            x = noise(1, length + new, 48, seed=row)
            cache = KVCache.empty(PLAIN, 1, 64)
            read(stack, x[:, :length], cache)
            found.append((x, cache, read(stack, x)[:, length:]))
        return found

    def batch(
        self, stack: Transformer, new: int, rows: Iterable[int], total: int
    ) -> tuple[Tensor, Tensor, KVCache, Tensor]:
        """All of them in one batch: inputs, positions, cache, the outputs alone."""
        cache = KVCache.empty(PLAIN, total, 64)
        read(stack, noise(total, 64, 48, seed=9), cache)  # somebody was there before
        found = self.alone(stack, new)
        for row, (_, own, _), length in zip(rows, found, self.LENGTHS, strict=True):
            cache.copy_prefix(own, 0, row, length)
        x = torch.cat([x[:, -new:] for x, _, _ in found])
        positions = torch.cat([places(new, length) for length in self.LENGTHS])
        return x, positions, cache, torch.cat([out for _, _, out in found])

    @pytest.mark.parametrize("new", [1, 3])
    def test_at_different_positions(self, stack: Transformer, new: int) -> None:
        x, positions, cache, wanted = self.batch(stack, new, range(3), 4)
        assert error(stack(x, positions, cache), wanted) < 1e-5
        assert error(stack(x, positions, cache, span=44), wanted) < 1e-5

    @pytest.mark.parametrize("new", [1, 3])
    def test_in_any_cache_row(self, stack: Transformer, new: int) -> None:
        rows = torch.tensor([4, 0, 2])
        x, positions, cache, wanted = self.batch(stack, new, rows.tolist(), 5)
        before = cache.k.clone(), cache.v.clone()
        assert error(stack(x, positions, cache, rows=rows, span=44), wanted) < 1e-5
        for old, tensor in zip(before, (cache.k, cache.v), strict=True):
            assert torch.equal(tensor[:, [1, 3]], old[:, [1, 3]])  # other rows stay as they were
            for row, length in zip(rows, self.LENGTHS, strict=True):
                changed = (tensor[:, row] != old[:, row]).any(-1).any(0).any(0)
                assert changed.nonzero().flatten().tolist() == list(range(length, length + new))

    def test_in_order_by_name(self, stack: Transformer) -> None:
        x, positions, cache, _ = self.batch(stack, 2, range(3), 3)
        other = KVCache(cache.k.clone(), cache.v.clone())
        named = stack(x, positions, other, rows=torch.arange(3))
        assert torch.equal(named, stack(x, positions, cache))
        assert torch.equal(other.k, cache.k)

    def test_a_row_that_does_not_act(self, stack: Transformer) -> None:
        """It writes to a scratch position, which neither it nor the others ever read."""
        x, positions, cache, wanted = self.batch(stack, 1, range(3), 3)
        scratch = cache.positions - 1
        idle = positions.clone()
        idle[1] = scratch
        junk = x.clone()
        junk[1] = 100 * noise(1, 48, seed=5)
        before = cache.k[:, 1].clone()
        out = stack(junk, idle, cache, span=48)
        assert out.isfinite().all()
        assert error(out[[0, 2]], wanted[[0, 2]]) < 1e-5
        assert torch.equal(cache.k[:, 1, :, :scratch], before[:, :, :scratch])
        later = stack(x[1:2], positions[1:2], cache, rows=torch.tensor([1]), span=48)
        assert error(later, wanted[1:2]) < 1e-5


class TestCache:
    def test_sizes(self) -> None:
        cache = KVCache.empty(PLAIN, 3, 10, torch.zeros(1, dtype=torch.bfloat16))
        assert cache.k.shape == cache.v.shape == (3, 3, 2, 10, 20)
        assert (cache.rows, cache.positions) == (3, 10)
        assert cache.nbytes == 2 * 3 * 3 * 2 * 10 * 20 * 2
        assert cache.k.dtype == cache.v.dtype == torch.bfloat16
        assert not cache.k.any()
        assert KVCache.empty(PLAIN, 1, 1).k.dtype == torch.float32

    def test_copying_a_prefix_touches_nothing_else(self) -> None:
        source = KVCache(noise(3, 2, 2, 10, 20), noise(3, 2, 2, 10, 20, seed=1))
        target = KVCache.empty(PLAIN, 4, 20)
        target.copy_prefix(source, 1, 2, 7)
        for to, of in ((target.k, source.k), (target.v, source.v)):
            assert torch.equal(to[:, 2, :, :7], of[:, 1, :, :7])
            to[:, 2, :, :7] = 0
            assert not to.any()


@pytest.mark.parametrize("rows", [None, torch.tensor([2, 0])])
@pytest.mark.parametrize("config", [STRETCHED, THREE_AXES], ids=["llama3", "three axes"])
def test_a_step_reads_nothing_back(config: TransformerConfig, rows: Tensor | None) -> None:
    stack = Transformer(config)
    shake(stack)
    cache = KVCache.empty(config, 3, 16)
    x, positions = noise(2, 3, 48), places(3, 4, rows=2)
    axes = None if config.mrope_section is None else positions.expand(3, 2, 3)
    with NoHostReads():
        stack(x, positions, cache, rows=rows, span=8, rope_positions=axes)
    with pytest.raises(AssertionError, match="reads back"), NoHostReads():
        bool(torch.ones(1))
