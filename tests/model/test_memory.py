"""What a model takes is known before it is taken."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from chroma_plugin.bench.sizes import sizes
from chroma_plugin.config import EngineConfig, Quantize
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.config import ChromaConfig
from chroma_plugin.model.layers import KVCache, Rope, rope_frequencies
from chroma_plugin.model.memory import (
    RELEASED,
    TRANSCRIPT_ROWS,
    Needs,
    Unallocated,
    cache_bytes,
    empty_model,
    take_memory,
    weight_bytes,
)
from chroma_plugin.model.quantize import count_bytes
from chroma_plugin.model.weights import load_checkpoint
from tests.miniature import MINIATURE

CONFIG = ChromaConfig.from_folder(MINIATURE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", get_args(Quantize))
def test_the_bytes_of_weights_are_those_of_a_loaded_model(
    kind: Quantize, dtype: torch.dtype
) -> None:
    model = load_checkpoint(MINIATURE, dtype=dtype, quantize=kind)
    assert weight_bytes(CONFIG, dtype, kind) == count_bytes(model)


def test_the_released_needs_are_those_of_the_released_sizes() -> None:
    for dtype, needs in RELEASED.items():
        assert Needs.of(sizes("real"), dtype) == needs


def test_the_bytes_of_caches() -> None:
    limits = EngineConfig(max_replies=2, thinker_positions=64, backbone_positions=128)
    like = torch.empty(0, dtype=torch.bfloat16)
    thinker = KVCache.empty(CONFIG.text, 8 + TRANSCRIPT_ROWS, 64, like)
    backbone = KVCache.empty(CONFIG.backbone, 2, 128, like)
    held = thinker.nbytes + backbone.nbytes
    assert cache_bytes(CONFIG, torch.bfloat16, limits) == held
    needs = Needs.of(CONFIG, torch.bfloat16)
    assert needs.total("int8", limits) == needs.weights["int8"] + held + 10**9


def test_the_most_exact_weights_that_fit_are_named() -> None:
    needs, one = RELEASED[torch.bfloat16], EngineConfig(max_replies=1, thinker_rows=1)
    found = [needs.fitting(gigabytes * 1e9, one) for gigabytes in (12.1, 11, 7.3, 7, 5.4, 5)]
    assert found == ["none", "int8", "int8", "int4", "int4", None]


def test_an_empty_model_has_its_memory_in_the_right_dtypes() -> None:
    model = empty_model(CONFIG, torch.device("cpu"), torch.bfloat16, "int4")
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"cpu"}
    assert {p.dtype for p in model.codec.parameters()} == {torch.float32}
    assert {p.dtype for p in model.backbone.parameters()} == {torch.bfloat16}
    ropes = [m for m in model.modules() if isinstance(m, Rope)]
    assert all(torch.equal(r.frequencies, rope_frequencies(r.config)) for r in ropes)


def test_shared_weights_stay_shared() -> None:
    with Unallocated():
        model = ChromaModel(CONFIG)
        model.thinker.lm_head.weight = model.thinker.embedding.weight
    assert model.backbone.codebook0_head.weight.device.type == "meta"
    take_memory(model, torch.device("cpu"), torch.float32, "int8")
    assert model.thinker.lm_head.weight is model.thinker.embedding.weight
    assert model.depth.audio_embedding is model.backbone.audio_embedding
