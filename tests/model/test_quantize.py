"""Quantised layers: how close they are, what they hold, and that a model is filled with them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from chroma_plugin.config import EngineConfig, Quantize
from chroma_plugin.errors import ConfigError
from chroma_plugin.model import quantize
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.layers import KVCache
from chroma_plugin.model.quantize import (
    Kind,
    QuantLinear,
    count_bytes,
    count_weights,
    named_weights,
    quantize_layers,
    require_support,
)
from chroma_plugin.model.weights import load_checkpoint, released_layout
from tests.host_reads import NoHostReads
from tests.miniature import MINIATURE

KINDS: tuple[Kind, ...] = get_args(Kind)
OFF = {"int8": 0.01, "fp8": 0.04, "int4": 0.13}
"""How far weights and results may be off, by the size of all of them."""
CPU = torch.device("cpu")


def made(
    weight: Tensor, kind: Kind, bias: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> QuantLinear:
    layer = QuantLinear(weight.shape[1], weight.shape[0], kind, bias=bias is not None)
    layer.allocate(CPU, dtype)
    layer.weight.copy_(weight)
    if bias is not None:
        assert layer.bias is not None
        layer.bias.copy_(bias)
    return layer


def off(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.float().norm())


# -- one layer -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_close_to_the_one_it_replaces(kind: Kind, dtype: torch.dtype) -> None:
    weight, bias, x = torch.randn(40, 256), torch.randn(40), torch.randn(3, 5, 256)
    layer = made(weight, kind, bias, dtype)
    y = layer(x.to(dtype))
    assert y.dtype == dtype
    assert y.shape == (3, 5, 40)
    assert off(layer.dequantized(), weight) < OFF[kind]
    assert off(y, F.linear(x, weight, bias)) < OFF[kind]
    exact = F.linear(x.to(dtype), layer.dequantized(), layer.bias)
    assert off(y, exact) < (1e-5 if dtype == torch.float32 else 0.01)


def test_weights_of_the_grid_are_exact() -> None:
    eight, four = torch.randint(-127, 128, (6, 64)).float(), torch.randint(0, 16, (6, 64)).float()
    eight[:, 9] = -127
    assert torch.allclose(made(0.25 * eight, "int8").dequantized(), 0.25 * eight)
    four[:, 0], four[:, 63] = 0, 15
    assert torch.allclose(made(0.5 * four - 3, "int4").dequantized(), 0.5 * four - 3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros_and_of_one_value_are_kept(kind: Kind) -> None:
    weight = torch.zeros(3, 64)
    weight[1], weight[2] = 0.7, -0.3
    layer = made(weight, kind, dtype=torch.bfloat16)
    assert torch.isfinite(layer.dequantized()).all()
    assert torch.equal(layer.dequantized()[0], torch.zeros(64, dtype=torch.bfloat16))
    assert torch.allclose(layer.dequantized().float(), weight, rtol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_change_nothing(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = torch.randn(50, 64), torch.randn(4, 64)
    whole = made(weight, kind)
    y = whole(x)
    monkeypatch.setattr(quantize, "PIECE", 64 * 7)
    pieces = made(weight, kind)
    assert torch.equal(whole.dequantized(), pieces.dequantized())
    assert torch.allclose(pieces(x), y, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_filled_one_tensor_after_the_other(kind: Kind) -> None:
    above, below = torch.randn(5, 96), torch.randn(3, 96)
    layer = made(torch.zeros(8, 96), kind)
    layer.weight[5:8].copy_(below.bfloat16())
    layer.weight[:5].copy_(above)
    together = made(torch.cat([above, below.bfloat16().float()]), kind)
    assert torch.equal(layer.dequantized(), together.dequantized())
    assert layer.weight[5:8].shape == (3, 96)
    assert layer.weight[5:8].device == CPU
    assert torch.equal(layer.weight[5:8].detach(), together.dequantized(slice(5, 8)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_a_batch_equals_itself_alone(kind: Kind) -> None:
    layer, x = made(torch.randn(24, 96), kind), torch.randn(6, 96)
    alone = torch.cat([layer(row[None]) for row in x])
    assert torch.allclose(layer(x), alone, atol=1e-5)


class Largest(TorchDispatchMode):
    """The largest tensor that anything made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors: Sequence[Any] = out if isinstance(out, tuple | list) else [out]
        made_here = [t.nbytes for t in tensors if isinstance(t, Tensor) and t._base is None]
        self.bytes = max([self.bytes, *made_here])
        return out


@pytest.mark.parametrize("kind", KINDS)
def test_no_whole_matrix_is_ever_made(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 one would take 64 kB; a piece takes 4, twice where 4 bits are unpacked."""
    monkeypatch.setattr(quantize, "PIECE", 1024)
    weight, x = torch.randn(256, 64, dtype=torch.bfloat16), torch.randn(1, 64)
    layer = made(weight, kind)
    with torch.inference_mode(), Largest() as largest:
        layer.weight.copy_(weight)
        layer(x)
    views = {"values": layer.values.nbytes, "weight": weight.nbytes}
    assert largest.bytes <= max(4096, *views.values()) < 256 * 64 * 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_asks_nothing_of_the_device(kind: Kind) -> None:
    layer, x = made(torch.randn(24, 96), kind, torch.randn(24)), torch.randn(2, 96)
    with torch.inference_mode(), NoHostReads():
        layer(x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_asks_nothing_of_the_device(kind: Kind) -> None:
    model = load_checkpoint(MINIATURE, quantize=kind)
    config, x, at = model.config.backbone, torch.randn(2, 1, 96), torch.zeros(2, 1).long()
    with torch.inference_mode():
        cache, steps = KVCache.empty(config, 2, 4), model.depth.new_steps(2)
        with NoHostReads():
            state = model.backbone.transformer(x, at, cache)[:, 0]
            code0 = model.backbone.codebook0_head(state).argmax(dim=-1)
            codes = model.depth.frame(state, code0, steps, lambda scores, _: scores.argmax(dim=-1))
    assert codes.shape == (2, 8)


def test_groups_are_the_largest_that_divide() -> None:
    assert [QuantLinear(n, 8, "int4").group for n in (256, 192, 96)] == [128, 64, 32]
    assert QuantLinear(100, 8, "int8").scale.shape == (8, 1)
    with pytest.raises(ConfigError, match=r'one of this checkpoint has 100. Use quantize="int8"'):
        QuantLinear(100, 8, "int4")


# -- what is supported -----------------------------------------------------------------------


def test_every_kind_works_here() -> None:
    for kind in get_args(Quantize):
        require_support(kind, CPU, torch.float32)


def test_a_device_that_cannot_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise NotImplementedError('"copy_" not implemented for Float8_e4m3fn\nmore')

    monkeypatch.setattr(QuantLinear, "forward", refuses)
    with pytest.raises(ConfigError) as error:
        require_support("fp8", CPU, torch.float32)
    said = str(error.value)
    assert said.startswith(f'EngineConfig.quantize is "fp8", which torch {torch.__version__}')
    assert said.endswith('not implemented for Float8_e4m3fn). Use "int8" or "int4".')
    monkeypatch.setattr(QuantLinear, "forward", lambda layer, x: x.new_zeros(2, 8))
    with pytest.raises(ConfigError, match="wrong results"):
        require_support("int8", CPU, torch.float32)


def test_a_kind_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="quantize is 'int2'; use none, int8, fp8 or int4"):
        EngineConfig(quantize="int2")  # type: ignore[arg-type]


# -- a model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain() -> ChromaModel:
    return load_checkpoint(MINIATURE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_loaded_into_quantised_layers(kind: Kind, plain: ChromaModel) -> None:
    model = load_checkpoint(MINIATURE, quantize=kind)
    weights, stored = dict(named_weights(model)), load_file(MINIATURE / "model.safetensors")
    assert weights.keys() == dict(named_weights(plain)).keys()
    assert released_layout(model).keys() == stored.keys()
    for name, tensor in named_weights(plain):
        assert isinstance(tensor, Tensor)
        mine = weights[name].detach()
        assert torch.equal(mine, tensor) or off(mine, tensor) < OFF[kind], name
    layers = {n: m.kind for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    left = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert {n for n in left if not n.startswith("codec.")} == {"backbone.codebook0_head"}
    assert layers["thinker.lm_head"] == layers["backbone.transformer.blocks.0.mlp.down"] == kind
    small = "int8" if kind == "int4" else kind
    assert layers["thinker.audio_tower.layers.0.fc1"] == layers["depth.projection"] == small
    assert {t.dtype for t in model.codec.parameters()} == {torch.float32}
    assert count_weights(model) == count_weights(plain)
    assert count_weights(plain) == sum(p.numel() for p in plain.parameters())


def test_fewer_bits_take_less_memory(plain: ChromaModel) -> None:
    def transformers(model: ChromaModel) -> int:
        return sum(count_bytes(m) for m in model.modules() if isinstance(m, nn.Linear | QuantLinear)
                   and m not in set(model.codec.modules()))  # fmt: skip

    taken = [transformers(load_checkpoint(MINIATURE, quantize=kind)) for kind in ("int8", "int4")]
    whole = transformers(plain)
    assert taken[0] < 0.3 * whole
    assert taken[1] < 0.8 * taken[0]
    assert count_bytes(load_checkpoint(MINIATURE, quantize="fp8")) < count_bytes(plain)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_is_close_to_the_one_it_replaces(kind: Kind, plain: ChromaModel) -> None:
    x, positions = torch.randn(2, 9, 96), torch.arange(9).expand(2, -1)
    out = []
    for model in (plain, load_checkpoint(MINIATURE, quantize=kind)):
        stack = model.backbone.transformer
        with torch.inference_mode():
            out.append(stack(x, positions, KVCache.empty(stack.config, 2, 9)))
    assert 0 < off(out[1], out[0]) < 3 * OFF[kind]


def test_a_head_that_is_the_embedding_stays_it(tmp_path: Path) -> None:
    shutil.copytree(MINIATURE, tmp_path / "tied")
    config = (tmp_path / "tied" / "config.json").read_text()
    tied = config.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true')
    assert tied != config
    (tmp_path / "tied" / "config.json").write_text(tied)
    tensors = load_file(MINIATURE / "model.safetensors")
    head = tensors.pop("thinker.lm_head.weight")
    save_file(tensors, tmp_path / "tied" / "model.safetensors")
    model = load_checkpoint(tmp_path / "tied", quantize="int8")
    assert model.thinker.lm_head.weight is model.thinker.embedding.weight
    # a file with another head parts the two, and then it is quantised
    save_file(tensors | {"thinker.lm_head.weight": head}, tmp_path / "tied" / "model.safetensors")
    model = load_checkpoint(tmp_path / "tied", quantize="int8")
    assert isinstance(model.thinker.lm_head, QuantLinear)
    assert off(model.thinker.lm_head.weight.detach(), head) < OFF["int8"]


def test_none_changes_nothing(plain: ChromaModel) -> None:
    before = [type(m) for m in plain.modules()]
    quantize_layers(plain, "none")
    assert [type(m) for m in plain.modules()] == before
