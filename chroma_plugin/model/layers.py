"""The blocks that thinker, backbone and depth decoder share: one pre-norm Llama/Qwen2 stack.

Every batch row stands at its own positions in its own cache row; shapes are fixed and nothing is
read back to the host, so that a step can be captured as a CUDA graph. The modules know nothing of
turns, voices or schedules.

Sources: Llama (arXiv 2302.13971), RoPE (2104.09864), llama3 frequency scaling (Meta's llama-models,
`apply_scaling`), multimodal RoPE (Qwen2-VL, 2409.12191, section 2.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """How llama3 stretches the slow rotations of RoPE."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """Sizes of one stack.

    Attributes:
        mrope_section: frequencies that follow the time, height and width axis; None for plain RoPE.
        qkv_bias: Qwen2 has a bias on queries, keys and values; Llama has none.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    rope_scaling: Llama3Scaling | None = None
    mrope_section: tuple[int, int, int] | None = None
    qkv_bias: bool = False


@dataclass(slots=True)
class KVCache:
    """Keys and values of every layer, one row a conversation.

    Attributes:
        k: `[layers, rows, kv_heads, positions, head_dim]`.
        v: like `k`.
    """

    k: Tensor
    v: Tensor

    @classmethod
    def empty(
        cls, config: TransformerConfig, rows: int, positions: int, like: Tensor | None = None
    ) -> KVCache:
        """A zeroed cache with the dtype and device of `like` (float32 on the CPU without it)."""
        shape = (config.layers, rows, config.kv_heads, positions, config.head_dim)
        like = torch.empty(0) if like is None else like
        return cls(like.new_zeros(shape), like.new_zeros(shape))

    @property
    def rows(self) -> int:
        return self.k.shape[1]

    @property
    def positions(self) -> int:
        return self.k.shape[3]

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def copy_prefix(self, source: KVCache, source_row: int, row: int, length: int) -> None:
        """Copies the first `length` positions of a row of another cache into a row of this one."""
        self.k[:, row, :, :length].copy_(source.k[:, source_row, :, :length])
        self.v[:, row, :, :length].copy_(source.v[:, source_row, :, :length])


def rope_frequencies(config: TransformerConfig) -> Tensor:
    """Angular steps per position, float32 `[head_dim / 2]`, llama3 scaling applied."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_positions / wavelengths
    band = scaling.high_freq_factor - scaling.low_freq_factor
    blend = ((turns - scaling.low_freq_factor) / band).clamp(0, 1)  # 0: stretched, 1: as it was
    return frequencies * (blend + (1 - blend) / scaling.factor)


class Rope(nn.Module):
    """Rotary positions: the cosines and sines of a batch's positions."""

    frequencies: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("frequencies", rope_frequencies(config), persistent=False)
        self.axis_of = None
        if config.mrope_section is not None:
            axes = [axis for axis, n in enumerate(config.mrope_section) for _ in range(n)]
            self.axis_of = axes  # which of the three position axes turns a frequency

    def reset(self) -> None:
        """Computes the frequencies anew, after the module was moved off the meta device."""
        self.frequencies.copy_(rope_frequencies(self.config))

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, float32 `[B, 1, T, head_dim]`.

        Args:
            positions: `[B, T]`, or `[3, B, T]` (time, height, width) for multimodal RoPE.
        """
        angles = positions[..., None].float() * self.frequencies  # [(3,) B, T, D/2]
        if positions.dim() == 3:
            if self.axis_of is None:
                raise ValueError("three position axes given to a stack without mrope_section")
            angles = torch.stack(
                [angles[axis, ..., i] for i, axis in enumerate(self.axis_of)], dim=-1
            )
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns `[B, heads, T, D]` by its positions, in the half-split layout of transformers."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class RMSNorm(nn.Module):
    """Root mean square norm, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


class Linear(nn.Linear):
    """A linear layer that is quick for a few rows on a CPU, too.

    For 2 to 128 rows the product is taken the other way round, weight times inputs: the threads of
    the BLAS library (MKL) then share the weight's rows among them. The usual way it works with one
    thread: with two threads and 8 rows it takes 1.4 to 2.9 times as long.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs]` -> `[..., outputs]`."""
        rows = x.numel() // self.in_features
        if x.device.type != "cpu" or x.dtype is not torch.float32 or not 2 <= rows <= 128:
            return super().forward(x)
        y = (self.weight @ x.reshape(rows, -1).t()).t().contiguous()
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)


class Attention(nn.Module):
    """Grouped-query attention over a cache; queries, keys and values in one projection."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        wide = (config.heads + 2 * config.kv_heads) * config.head_dim
        self.qkv = Linear(config.hidden_size, wide, bias=config.qkv_bias)
        self.out = Linear(config.heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, step: Step, layer: int) -> Tensor:
        b, t, _ = x.shape
        qkv = self.qkv(x).view(b, t, self.heads + 2 * self.kv_heads, self.head_dim).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        q, k = rotate(q, step.cos, step.sin), rotate(k, step.cos, step.sin)  # [B, heads, T, D]
        keys, values = step.write(layer, k, v)
        # the heads that share keys stand in line as further queries: each key is read once
        q = q.reshape(b, self.kv_heads, -1, self.head_dim)  # [B, kv_heads, group * T, D]
        y = F.scaled_dot_product_attention(q, keys, values, step.mask)
        return self.out(y.reshape(b, self.heads, t, -1).transpose(1, 2).reshape(b, t, -1))


class SwiGLU(nn.Module):
    """Gated feed-forward; gate and up in one projection."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_up = Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Attention and feed-forward, each after its norm and around a residual."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, step: Step, layer: int) -> Tensor:
        x = x + self.attention(self.attention_norm(x), step, layer)
        return x + self.mlp(self.mlp_norm(x))


@dataclass(slots=True)
class Step:
    """What all layers of one forward share: rotations, mask, and where keys and values go."""

    cos: Tensor  # [B, 1, T, D]
    sin: Tensor
    mask: Tensor  # [B, 1, group * T, span], added to scores: for each query head of a group in turn
    span: int
    cache: KVCache

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Puts new keys and values `[B, kv_heads, T, D]` at their positions.

        Returns:
            Keys and values of the span, `[B, kv_heads, span, D]`.
        """
        raise NotImplementedError


@dataclass(slots=True)
class RowStep(Step):
    """Every row at its own positions."""

    positions: Tensor  # [B, T]
    rows: Tensor  # [B]
    in_order: bool  # batch row i is cache row i

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        at = (self.rows[:, None], slice(None), self.positions)
        out = []
        for cache, new in ((self.cache.k[layer], k), (self.cache.v[layer], v)):
            cache[at] = new.transpose(1, 2)
            if self.in_order:
                out.append(cache[: new.shape[0], :, : self.span])
            else:
                out.append(cache[:, :, : self.span].index_select(0, self.rows))
        return out[0], out[1]


@dataclass(slots=True)
class SharedStep(Step):
    """All rows at the same positions, the last ones of the span; cos, sin and mask broadcast."""

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        rows, first = k.shape[0], self.span - k.shape[2]
        keys, values = (c[layer, :rows, :, : self.span] for c in (self.cache.k, self.cache.v))
        keys[:, :, first:].copy_(k)
        values[:, :, first:].copy_(v)
        return keys, values


def _bias(seen: Tensor, like: Tensor) -> Tensor:
    """0 where `seen`, -inf elsewhere: made once, where attention would make it in every layer."""
    return like.new_zeros(()).where(seen, -torch.inf)


class Transformer(nn.Module):
    """The stack with its final norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.rope = Rope(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.group = config.heads // config.kv_heads  # query heads that share keys and values

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        cache: KVCache,
        *,
        rows: Tensor | None = None,
        span: int | None = None,
        rope_positions: Tensor | None = None,
    ) -> Tensor:
        """Runs new positions of some conversations through the stack.

        Args:
            x: `[B, T, hidden]`.
            positions: int64 `[B, T]`: where in its cache row each input goes. An input sees the
                cache up to and including its own position.
            cache: keys and values so far; the new ones are written into it.
            rows: int64 `[B]`: the cache row of each batch row; None: row i is cache row i.
            span: read the cache up to here only, at least the largest position in use + 1; all
                of it if None.
            rope_positions: `[B, T]` or `[3, B, T]`, if rotations count differently from the cache.

        Returns:
            Hidden states after the final norm, `[B, T, hidden]`.
        """
        span = cache.positions if span is None else min(span, cache.positions)
        cos, sin = self.rope(positions if rope_positions is None else rope_positions)
        keys = torch.arange(span, device=x.device)
        step = RowStep(
            cos=cos.to(x.dtype),
            sin=sin.to(x.dtype),
            mask=_bias(keys <= positions[:, None, :, None], x).repeat(1, 1, self.group, 1),
            span=span,
            cache=cache,
            positions=positions,
            rows=torch.arange(x.shape[0], device=x.device) if rows is None else rows,
            in_order=rows is None,
        )
        return self.run(x, step)

    def shared_step(self, first: int, last: int, cache: KVCache, shift: int = 0) -> SharedStep:
        """A step in which all rows read the positions from `first` up to `last`, exclusive.

        Args:
            first: the first position to read; what lies before it is in the cache.
            last: where the positions end.
            cache: keys and values so far.
            shift: rotations count from so many positions later on, and never below 0.
        """
        positions = torch.arange(first, last, device=cache.k.device)
        cos, sin = self.rope((positions - shift).clamp(min=0)[None])
        keys = torch.arange(last, device=cache.k.device)
        mask = _bias(keys <= positions[:, None], cache.k).repeat(self.group, 1)[None, None]
        return SharedStep(cos.to(cache.k.dtype), sin.to(cache.k.dtype), mask, last, cache)

    def run(self, x: Tensor, step: Step) -> Tensor:
        """All layers over `[B, T, hidden]`; `step` says where the inputs stand."""
        for layer, block in enumerate(self.blocks):
            x = block(x, step, layer)
        out: Tensor = self.norm(x)
        return out
