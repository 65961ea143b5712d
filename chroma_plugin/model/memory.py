"""Models without memory, and with it: what a model takes is known before any is taken.

It knows nothing of files; `weights.py` fills what is taken here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chroma_plugin.config import EngineConfig, Quantize
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.config import ChromaConfig
from chroma_plugin.model.layers import Rope, TransformerConfig
from chroma_plugin.model.quantize import (
    QuantLinear,
    count_bytes,
    quantize_layers,
    require_support,
)

TRANSCRIPT_ROWS = 1
"""Rows of the thinker's cache beside those lent to conversations: what users said is written down
there, a turn at a time."""
SPARE_BYTES = 10**9
"""On a GPU beside weights and caches: voices, workspaces, activations, a layer in pieces."""
ADVISED: tuple[Quantize, ...] = ("none", "int8", "int4")
"""What to try, in this order. fp8 is as large as int8 and less exact."""


class Unallocated(TorchFunctionMode):
    """Modules made inside have shapes but no memory, and no weights are drawn for them.

    `torch.device("meta")` would do, but draws and computes there by way of torch's compiler, whose
    import takes longer than loading a small checkpoint.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func in (torch.empty, torch.zeros, torch.ones, torch.full):
            kwargs = kwargs | {"device": "meta"}
        return func(*args, **kwargs)


def empty_model(
    config: ChromaConfig, device: torch.device, dtype: torch.dtype, quantize: Quantize = "none"
) -> ChromaModel:
    """A model of these sizes that has its memory but no weights yet; see `load_checkpoint`."""
    with Unallocated():
        model = ChromaModel(config)
    take_memory(model, device, dtype, quantize)
    return model


def weight_bytes(config: ChromaConfig, dtype: torch.dtype, quantize: Quantize = "none") -> int:
    """What a loaded model of these sizes takes, computed without taking it."""
    model = empty_model(config, torch.device("meta"), dtype, quantize)
    model.codec.finalize()
    return count_bytes(model)


def cache_bytes(config: ChromaConfig, dtype: torch.dtype, limits: EngineConfig) -> int:
    """What the keys and values of an engine with these limits take."""
    thinker, backbone = (_position_bytes(s, dtype) for s in (config.text, config.backbone))
    spoken = limits.max_replies * limits.backbone_positions
    return _thinker_positions(limits) * thinker + spoken * backbone


def _thinker_positions(limits: EngineConfig) -> int:
    return (limits.thinker_cache_rows + TRANSCRIPT_ROWS) * limits.thinker_positions


def _position_bytes(stack: TransformerConfig, dtype: torch.dtype) -> int:
    return 2 * stack.layers * stack.kv_heads * stack.head_dim * dtype.itemsize


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model takes, in bytes, without its memory or its files.

    Attributes:
        weights: by how they are stored.
        thinker_position: of a thinker cache.
        backbone_position: of a backbone cache.
    """

    weights: dict[Quantize, int]
    thinker_position: int
    backbone_position: int

    @classmethod
    def of(cls, config: ChromaConfig, dtype: torch.dtype) -> Needs:
        """By the sizes of a checkpoint."""
        kinds: tuple[Quantize, ...] = get_args(Quantize)
        return cls(
            {kind: weight_bytes(config, dtype, kind) for kind in kinds},
            _position_bytes(config.text, dtype),
            _position_bytes(config.backbone, dtype),
        )

    def total(self, kind: Quantize, limits: EngineConfig) -> int:
        """Weights, the caches of an engine with these limits, and what is spare."""
        thinker = _thinker_positions(limits) * self.thinker_position
        backbone = limits.max_replies * limits.backbone_positions * self.backbone_position
        return self.weights[kind] + thinker + backbone + SPARE_BYTES

    def fitting(self, free: float, limits: EngineConfig) -> Quantize | None:
        """The most exact kind of weights that fits; None if none does."""
        return next((kind for kind in ADVISED if self.total(kind, limits) <= free), None)


RELEASED = {
    torch.bfloat16: Needs(
        {"none": 10_698_221_476, "int8": 5_898_457_764, "fp8": 5_898_457_764,
         "int4": 3_992_784_804}, 36_864, 32_768,
    ),
    torch.float32: Needs(
        {"none": 21_045_587_876, "int8": 6_642_271_652, "fp8": 6_642_271_652,
         "int4": 4_860_313_508}, 73_728, 65_536,
    ),
}  # fmt: skip
"""What the released model needs, for when it is not here to be looked at."""


def take_memory(
    model: ChromaModel, device: torch.device, dtype: torch.dtype, quantize: Quantize = "none"
) -> None:
    """Takes memory for every weight, shared ones once; what it holds is loaded next.

    `Module.to_empty` would part shared weights, and `Module.to` would round buffers: rotary
    frequencies in bfloat16 are a whole radian off after a thousand positions.

    Args:
        model: made as `Unallocated`.
        device: where.
        dtype: of all weights but the codec's, which are float32 as buffers are.
        quantize: how the weights of linear layers are stored.

    Raises:
        ConfigError: the device cannot compute with quantised weights, or their sizes do not fit.
    """
    if device.type != "meta":
        require_support(quantize, device, dtype)
    quantize_layers(model, quantize)
    codec = set(model.codec.modules())
    made: dict[Tensor, nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, QuantLinear):
            module.allocate(device, dtype)
            continue
        kind = torch.float32 if module in codec else dtype
        for name, weight in module.named_parameters(recurse=False):
            if weight not in made:
                empty = torch.empty(weight.shape, dtype=kind, device=device)
                made[weight] = nn.Parameter(empty, requires_grad=False)
            setattr(module, name, made[weight])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=torch.float32, device=device))
        if isinstance(module, Rope):
            module.reset()
