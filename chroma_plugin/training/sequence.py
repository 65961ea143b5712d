"""Whole sequences through the served stacks, as training needs them: no cache, every position at
once, gradients. Knows nothing of what the positions mean.

The blocks are the very ones that serve; only where keys and values come from differs: those of the
sequence itself instead of a cache's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from chroma_plugin.model.layers import KVCache, Step, Transformer


@dataclass(slots=True)
class WholeStep(Step):
    """All positions of a batch at once: what is attended to is what was just computed."""

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return k, v


def read_whole(
    stack: Transformer,
    x: Tensor,
    *,
    shift: int = 0,
    positions: Tensor | None = None,
    branches: Tensor | None = None,
) -> Tensor:
    """Hidden states of whole sequences, each position seeing itself and those before.

    Rows of a batch may be shorter than others if they are filled up at their end: a position never
    sees what comes after it. A row may also be a tree: one beginning, and several branches that go
    on from it and do not see one another.

    Args:
        stack: its blocks may recompute their activations, see `recompute_blocks`.
        x: `[B, T, hidden]`.
        shift: rotations count from so many positions later on, and never below 0, as in
            `Transformer.shared_step`.
        positions: int64 `[B, T]`: what rotations count by; None: 0, 1, 2, ...
        branches: int64 `[B, T]`: 0 in the beginning, then the number of each position's branch;
            None: rows have none.

    Returns:
        Hidden states after the final norm, `[B, T, hidden]`.
    """
    length, device = x.shape[1], x.device
    order = torch.arange(length, device=device)
    cos, sin = stack.rope(((order[None] if positions is None else positions) - shift).clamp(min=0))
    kind = compute_dtype(x)
    mask = (order <= order[:, None])[None]
    if branches is not None:
        seen = branches[:, None]
        mask = mask & ((seen == 0) | (seen == branches[:, :, None]))
    mask = mask.repeat(1, stack.group, 1)[:, None]
    nothing = KVCache(x.new_empty(0), x.new_empty(0))
    return stack.run(x, WholeStep(cos.to(kind), sin.to(kind), mask, length, nothing))


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products of `x` come out as: autocast's type inside of it, else its own."""
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def recompute_blocks(stack: Transformer) -> None:
    """Gradient checkpointing: a block's activations are computed anew in the backward pass.

    Memory falls from every activation to one `[B, T, hidden]` a block, for about a third more
    computation. In place; names and weights stay.
    """
    for block in stack.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
