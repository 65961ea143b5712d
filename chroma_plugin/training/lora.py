"""LoRA: small trainable matrices beside frozen ones, folded into them when training is over.

Source: Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chroma_plugin.errors import ConfigError
from chroma_plugin.model.layers import Transformer


class LoraLinear(nn.Linear):
    """A frozen projection and a low-rank addition to it.

    Args:
        base: keeps its weights; they are shared, not copied.
        rank: width of the addition.
        alpha: the addition counts `alpha / rank`.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.scale = alpha / rank
        # float32 whatever the weights are: the updates are too small for bfloat16
        like = base.weight.new_empty(0, dtype=torch.float32)
        self.down = nn.Parameter(like.new_empty(rank, base.in_features))
        self.up = nn.Parameter(like.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        added = F.linear(F.linear(x.to(self.down.dtype), self.down), self.up)
        return y + (self.scale * added).to(y.dtype)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """A plain projection that gives the same."""
        plain = nn.Linear(1, 1, bias=False)
        plain.in_features, plain.out_features = self.in_features, self.out_features
        added = self.scale * (self.up @ self.down)
        plain.weight = nn.Parameter((self.weight.float() + added).to(self.weight.dtype))
        plain.bias = self.bias
        return plain


def add_lora(stack: Transformer, rank: int, alpha: float | None = None) -> None:
    """Freezes a stack and puts LoRA beside all projections of its blocks, in place.

    Args:
        stack: of the model.
        rank: 8 to 64 are usual.
        alpha: strength; twice the rank if None.

    Raises:
        ConfigError: the rank is not above 0.
    """
    if rank < 1:
        raise ConfigError(f"the rank of LoRA is {rank}; it must be above 0")
    stack.requires_grad_(False)
    for block in stack.blocks:
        for part, name in _projections(block):
            base = getattr(part, name)
            setattr(part, name, LoraLinear(base, rank, 2 * rank if alpha is None else alpha))


def fold_lora(stack: Transformer) -> None:
    """Folds what LoRA has learnt into the weights, in place; without LoRA nothing happens."""
    for block in stack.blocks:
        for part, name in _projections(block):
            projection = getattr(part, name)
            if isinstance(projection, LoraLinear):
                setattr(part, name, projection.folded())


def _projections(block: nn.Module) -> list[tuple[nn.Module, str]]:
    attention, mlp = block.get_submodule("attention"), block.get_submodule("mlp")
    return [(attention, "qkv"), (attention, "out"), (mlp, "gate_up"), (mlp, "down")]
