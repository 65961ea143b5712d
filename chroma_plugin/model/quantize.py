"""Weights in 8 or 4 bits: linear layers that store fewer bits and compute as before.

Only weights change: inputs and outputs keep their dtype. A layer is turned back into that dtype a
piece at a time while it computes, with fixed shapes and no word from the host. This saves memory,
not time. Embeddings, norms and the heads that pick codes stay as they are; so does a text head
whose matrix is the embedding itself. Where words take 4 bits, the audio tower and the depth decoder
take 8: they are small, and what they get wrong is heard.

It knows nothing of files: `weights.py` fills a layer's rows as they are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chroma_plugin.config import Quantize
from chroma_plugin.errors import ConfigError

if TYPE_CHECKING:
    from chroma_plugin.model.chroma import ChromaModel

Kind = Literal["int8", "fp8", "int4"]
GROUPS = (128, 64, 32)
"""Weights of a row that share scale and offset in 4 bits: the largest that divides its length."""
PIECE = 1 << 22
"""Weights turned back at once: 8 MB in bfloat16, so that the largest layer costs no more."""
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


class QuantLinear(nn.Module):
    """A linear layer with quantised weights; without memory until `allocate`.

    - int8: `value * scale`, one scale a row, values from -127 to 127.
    - fp8: the same with e4m3 values, for cards and comparisons that ask for it.
    - int4: `value * scale + offset`, both for a group of a row, values from 0 to 15. A byte holds
      two: column c in its low half and column c + inputs / 2 in its high half.

    Args:
        inputs: width of what goes in.
        outputs: width of what comes out.
        kind: how the weights are stored.
        bias: whether there is one; it is not quantised.

    Raises:
        ConfigError: no group of 4-bit weights divides the inputs.
    """

    values: Tensor
    scale: Tensor
    offset: Tensor | None
    bias: Tensor | None

    def __init__(self, inputs: int, outputs: int, kind: Kind, *, bias: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.kind = inputs, outputs, kind
        self.group = inputs
        if kind == "int4":
            self.group = next((size for size in GROUPS if inputs % size == 0), 0)
            if not self.group:
                raise ConfigError(
                    f"int4 needs layers whose inputs come in groups of "
                    f"{', '.join(map(str, GROUPS))}; one of this checkpoint has {inputs}. "
                    'Use quantize="int8".'
                )
        dtype = {"int8": torch.int8, "fp8": FP8, "int4": torch.uint8}[kind]
        width = inputs // 2 if kind == "int4" else inputs

        def hold(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> None:
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"))

        hold("values", outputs, width, dtype=dtype)
        hold("scale", outputs, inputs // self.group)
        self.register_buffer("offset", None)
        self.register_buffer("bias", None)
        if kind == "int4":
            hold("offset", outputs, inputs // self.group)
        if bias:
            hold("bias", outputs)

    def allocate(self, device: torch.device, dtype: torch.dtype) -> None:
        """Takes memory.

        Args:
            device: where.
            dtype: of inputs and outputs, and so of scales, offsets and bias.
        """
        for name, tensor in list(self.named_buffers()):
            kind = tensor.dtype if name == "values" else dtype
            setattr(self, name, torch.empty(tensor.shape, dtype=kind, device=device))

    @property
    def weight(self) -> QuantRows:
        """All rows of the matrix, as a place to copy weights to."""
        return QuantRows(self, 0, self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`, in the same dtype."""
        rows = max(PIECE // self.in_features, 1)
        pieces = [
            self._rows(x, slice(first, first + rows)) for first in range(0, self.out_features, rows)
        ]
        y = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)
        return y if self.bias is None else y + self.bias

    def dequantized(self, rows: slice = slice(None)) -> Tensor:
        """The weights that it computes with, `[rows, inputs]`, in the dtype of the scales."""
        scale, offset = self.scale[rows], self.offset
        if offset is None:
            return self.values[rows].to(scale.dtype) * scale
        packed, half = self.values[rows], self.in_features // 2
        values = scale.new_empty(len(packed), self.in_features)
        values[:, :half] = packed & 15
        values[:, half:] = packed >> 4
        groups = values.view(*scale.shape, self.group)
        return torch.addcmul(offset[rows, :, None], groups, scale[:, :, None]).flatten(1)

    def _rows(self, x: Tensor, rows: slice) -> Tensor:
        """Some of the outputs. One scale a row is cheaper after the product than before it."""
        if self.offset is not None:
            return F.linear(x, self.dequantized(rows))
        return F.linear(x, self.values[rows].to(x.dtype)) * self.scale[rows, 0]

    def fill(self, rows: slice, weight: Tensor) -> None:
        """Quantises float32 rows `[n, inputs]`; scales are rounded to their dtype first."""
        if self.offset is None:
            most = FP8_MAX if self.kind == "fp8" else 127.0
            scale = (weight.abs().amax(1, keepdim=True) / most).to(self.scale.dtype)
            exact = weight / scale.float().where(scale != 0, 1.0)  # [n, inputs]
            if self.kind == "int8":
                exact = exact.round()
            self.values[rows] = exact.clamp(-most, most).to(self.values.dtype)
            self.scale[rows] = scale
            return
        groups = weight.unflatten(1, (-1, self.group))  # [n, groups, group]
        low, high = groups.aminmax(dim=-1, keepdim=True)
        offset = low.to(self.scale.dtype)
        scale = ((high - offset.float()) / 15).to(self.scale.dtype)
        exact = (groups - offset.float()) / scale.float().where(scale != 0, 1.0)
        values = exact.round().clamp(0, 15).to(torch.uint8).flatten(1)
        first, second = values.chunk(2, dim=1)
        self.values[rows] = first | second << 4
        self.scale[rows], self.offset[rows] = scale[..., 0], offset[..., 0]


@dataclass(frozen=True, slots=True)
class QuantRows:
    """Rows of a quantised matrix, with as much of a tensor as loaders and savers need of one."""

    layer: QuantLinear
    first: int
    rows: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.layer.in_features

    @property
    def device(self) -> torch.device:
        return self.layer.values.device

    def __getitem__(self, rows: slice) -> QuantRows:
        first, last, _ = rows.indices(self.rows)
        return QuantRows(self.layer, self.first + first, last - first)

    def detach(self) -> Tensor:
        """The weights that these rows compute with, `[rows, inputs]`."""
        return self.layer.dequantized(slice(self.first, self.first + self.rows))

    @torch.no_grad()
    def copy_(self, weight: Tensor) -> None:
        """Quantises `[rows, inputs]` of any float dtype on any device, a piece at a time."""
        step = max(PIECE // self.layer.in_features, 1)
        for first in range(0, self.rows, step):
            piece = weight[first : first + step].to(self.device).float()
            begin = self.first + first
            self.layer.fill(slice(begin, begin + len(piece)), piece)


def quantize_layers(model: ChromaModel, kind: Quantize) -> None:
    """Puts quantised layers, without memory, in the place of the model's linear ones.

    Raises:
        ConfigError: a layer's sizes do not fit the kind.
    """
    if kind == "none":
        return
    small: Kind = "int8" if kind == "int4" else kind
    thinker = model.thinker
    _swap(thinker.transformer, kind)
    _swap(thinker.audio_tower, small)
    _swap(model.backbone.transformer, kind)
    _swap(model.depth, small)
    if thinker.lm_head.weight is not thinker.embedding.weight:
        _swap_child(thinker, "lm_head", kind)


def _swap(part: nn.Module, kind: Kind) -> None:
    for parent in list(part.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                _swap_child(parent, name, kind)


def _swap_child(parent: nn.Module, name: str, kind: Kind) -> None:
    old = getattr(parent, name)
    bias = old.bias is not None
    setattr(parent, name, QuantLinear(old.in_features, old.out_features, kind, bias=bias))


def require_support(kind: Quantize, device: torch.device, dtype: torch.dtype) -> None:
    """Quantises and runs one small layer where the model will be.

    Raises:
        ConfigError: this torch cannot compute with such weights on this device.
    """
    if kind == "none":
        return
    try:
        with torch.inference_mode():
            layer = QuantLinear(GROUPS[-1], 8, kind)
            layer.allocate(device, dtype)
            layer.weight.copy_(torch.ones(8, GROUPS[-1]))
            off = layer(torch.ones(2, GROUPS[-1], device=device, dtype=dtype)) - GROUPS[-1]
            if not bool((off.abs() < 1).all()):
                raise NotImplementedError("wrong results")
    except (RuntimeError, TypeError) as error:
        others = [f'"{other}"' for other in get_args(Quantize) if other not in (kind, "none")]
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f'EngineConfig.quantize is "{kind}", which torch {torch.__version__} cannot compute '
            f"with on {device} ({type(error).__name__}: {reason}). Use {' or '.join(others)}."
        ) from error


def named_weights(part: nn.Module) -> Iterator[tuple[str, Tensor | QuantRows]]:
    """Every weight, under the name that it has where nothing is quantised; shared ones once."""
    yield from part.named_parameters()
    for name, module in part.named_modules():
        if isinstance(module, QuantLinear):
            yield f"{name}.weight", module.weight
            if module.bias is not None:
                yield f"{name}.bias", module.bias


def count_weights(model: nn.Module) -> int:
    """How many weights a model has, whatever it stores them in; shared ones once."""
    return sum(math.prod(weight.shape) for _, weight in named_weights(model))


def count_bytes(model: nn.Module) -> int:
    """What its weights and buffers take; shared ones once."""
    return sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
