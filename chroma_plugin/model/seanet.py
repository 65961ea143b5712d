"""The convolutions of Mimi, as a stream: each one remembers the last inputs of every row.

They know nothing of codes and of what owns a row. Module names follow the released weights.

Sources: SEANet (arXiv 2009.02095); kyutai moshi `modules/seanet.py`, `modules/conv.py`;
transformers `modeling_mimi.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(slots=True)
class ConvStep:
    """What the convolutions of one step share; they take their contexts in order."""

    contexts: Iterator[Tensor]
    active: Tensor  # bool [B, 1, 1]: rows whose state moves on
    first: Tensor  # bool [B, 1, 1]: rows that have seen nothing yet

    def keep(self, context: Tensor, joined: Tensor) -> None:
        """Remembers the last inputs of the active rows."""
        newest = joined[..., joined.shape[-1] - context.shape[-1] :]
        context.copy_(torch.where(self.active, newest, context))


class CausalConv(nn.Module):
    """A convolution that sees the past only; before the first input there are zeros.

    Args:
        replicate: before the first input, and after the last, that input is repeated instead.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        replicate: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation, bias=bias)
        self.stride, self.replicate = stride, replicate
        self.context_shape = (inputs, (kernel - 1) * dilation + 1 - stride)

    def forward(self, x: Tensor, step: ConvStep) -> Tensor:
        """`[B, inputs, T]` -> `[B, outputs, ceil(T / stride)]`; only a last T may be uneven."""
        context = next(step.contexts)[: x.shape[0]]
        before = torch.where(step.first, x[..., :1], context) if self.replicate else context
        joined = torch.cat((before, x), dim=-1)
        step.keep(context, joined)
        missing = -x.shape[-1] % self.stride
        if missing:
            joined = F.pad(joined, (0, missing), mode="replicate" if self.replicate else "constant")
        y: Tensor = self.conv(joined)
        return y


class CausalConvTranspose(nn.Module):
    """A transposed convolution with a kernel of two strides, cut so that it sees the past only.

    Every output is then half of what its own input step makes and half of what the one before
    makes: one matrix product and one addition. PyTorch's own transposed convolution takes 15 times
    as long for the few steps of one frame on a CPU.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, *, groups: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(
            inputs, outputs, 2 * stride, stride, groups=groups, bias=bias
        )
        self.stride, self.groups = stride, groups
        self.context_shape = (inputs, 1)

    def forward(self, x: Tensor, step: ConvStep) -> Tensor:
        """`[B, inputs, T]` -> `[B, outputs, T * stride]`."""
        context = next(step.contexts)[: x.shape[0]]
        joined = torch.cat((context, x), dim=-1).unflatten(1, (self.groups, -1))
        step.keep(context, joined.flatten(1, 2))
        weight = self.conv.weight.unflatten(0, (self.groups, -1)).flatten(2)
        made = torch.einsum("bgit,gik->btgk", joined, weight)  # k: outputs / groups * 2 * stride
        made = made.flatten(2).unflatten(-1, (-1, 2, self.stride))  # [B, T + 1, outputs, 2, stride]
        y = made[:, 1:, :, 0] + made[:, :-1, :, 1]  # [B, T, outputs, stride]
        y = y.transpose(1, 2).flatten(2)
        return y if self.conv.bias is None else y + self.conv.bias[:, None]


class ResidualBlock(nn.Module):
    """A dilated and a pointwise convolution around a shortcut."""

    def __init__(self, channels: int, inner: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            (
                nn.ELU(),
                CausalConv(channels, inner, kernel, dilation=dilation),
                nn.ELU(),
                CausalConv(inner, channels, 1),
            )
        )

    def forward(self, x: Tensor, step: ConvStep) -> Tensor:
        return x + _through(self.block, x, step)


class SeaNet(nn.Module):
    """A chain of causal convolutions: audio to vectors of 25 Hz, or back."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, step: ConvStep) -> Tensor:
        return _through(self.layers, x, step)


def _through(layers: nn.ModuleList, x: Tensor, step: ConvStep) -> Tensor:
    for layer in layers:
        x = layer(x) if isinstance(layer, nn.ELU) else layer(x, step)
    return x
