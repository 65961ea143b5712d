"""Whole sequences equal the cached stacks position by position."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from chroma_plugin.model.layers import KVCache, Transformer, TransformerConfig
from chroma_plugin.training.sequence import compute_dtype, read_whole, recompute_blocks

PLAIN = TransformerConfig(24, 48, 2, heads=4, kv_heads=2, head_dim=6, norm_eps=1e-5,
                          rope_theta=100.0)  # fmt: skip
MULTIMODAL = dataclasses.replace(PLAIN, mrope_section=(1, 1, 1), qkv_bias=True)


def stack(config: TransformerConfig) -> Transformer:
    made = Transformer(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


@pytest.mark.parametrize("config", [PLAIN, MULTIMODAL], ids=["plain", "multimodal"])
def test_a_whole_sequence_is_what_the_cache_gives(config: TransformerConfig) -> None:
    made = stack(config)
    x = torch.randn(3, 11, 24)
    cache = KVCache.empty(config, 3, 11)
    with torch.no_grad():
        steps = [made(x[:, i : i + 1], torch.full((3, 1), i), cache, span=i + 1) for i in range(11)]
        whole = read_whole(made, x)
    torch.testing.assert_close(whole, torch.cat(steps, dim=1), atol=1e-5, rtol=0)


def test_shifted_rotations_are_those_of_a_shared_step() -> None:
    made = stack(PLAIN)
    x = torch.randn(2, 8, 24)
    cache = KVCache.empty(PLAIN, 2, 8)
    with torch.no_grad():
        served = made.run(x, made.shared_step(0, 8, cache, shift=1))
        torch.testing.assert_close(read_whole(made, x, shift=1), served, atol=1e-5, rtol=0)
        assert not torch.allclose(read_whole(made, x), served, atol=1e-3)


def test_what_fills_a_row_up_changes_nothing_before_it() -> None:
    made = stack(PLAIN)
    x = torch.randn(1, 6, 24)
    longer = torch.cat([x, torch.randn(1, 4, 24) * 100], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(
            read_whole(made, longer)[:, :6], read_whole(made, x), atol=1e-6, rtol=0
        )


def test_recomputed_blocks_keep_fewer_activations_and_the_same_gradients() -> None:
    made, x = stack(PLAIN), torch.randn(2, 9, 24)
    found, kept = [], []
    for recompute in (False, True):
        if recompute:
            recompute_blocks(made)
        made.zero_grad()
        saved: list[int] = []

        def pack(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = read_whole(made, x)
        out.square().sum().backward()
        kept.append(sum(saved))
        found.append([p.grad.clone() for p in made.parameters() if p.grad is not None])
    assert kept[1] < kept[0] / 2
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_type_of_products_follows_autocast() -> None:
    x = torch.randn(2, 2)
    assert compute_dtype(x) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_dtype(x) == torch.bfloat16
    assert compute_dtype(x.to("meta").bfloat16()) == torch.bfloat16


def test_gradients_flow_in_bfloat16_too() -> None:
    made, x = stack(PLAIN), torch.randn(1, 5, 24)
    with torch.autocast("cpu", torch.bfloat16):
        out = read_whole(made, x)
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
