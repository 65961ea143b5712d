"""Mimi's transformer: causal attention over a sliding window, as a stream.

Every row stands at its own position in its own ring of keys and values. The modules know nothing
of audio and codes. Module names follow the released weights.

Sources: Mimi (arXiv 2410.00037, section 3.3.2); kyutai moshi `modules/transformer.py`; transformers
`modeling_mimi.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chroma_plugin.model.layers import rotate


@dataclass(frozen=True, slots=True)
class WindowConfig:
    """Sizes of one transformer; `window` is how many positions one sees, itself included."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    head_dim: int
    window: int
    norm_eps: float
    rope_theta: float


@dataclass(slots=True, eq=False)
class KeyRing:
    """What one transformer remembers: the keys and values of the newest positions of each row.

    Attributes:
        keys: float32 `[rows, layers, heads, capacity, head_dim]`; position p lies at p % capacity.
        values: like `keys`.
        offset: int64 `[rows]`: positions that each row has seen.
    """

    keys: Tensor
    values: Tensor
    offset: Tensor

    @classmethod
    def empty(cls, config: WindowConfig, rows: int, longest: int, device: torch.device) -> KeyRing:
        """A zeroed ring that holds the window for each of at most `longest` new positions."""
        capacity = config.window + longest - 1
        shape = (rows, config.layers, config.heads, capacity, config.head_dim)
        return cls(
            torch.zeros(shape, dtype=torch.float32, device=device),
            torch.zeros(shape, dtype=torch.float32, device=device),
            torch.zeros(rows, dtype=torch.int64, device=device),
        )


class LayerScale(nn.Module):
    """A learnt factor per channel on what a residual branch adds."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((size,), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


@dataclass(slots=True)
class _Window:
    """What all layers of one transformer step share."""

    cos: Tensor  # [B, 1, T, head_dim]
    sin: Tensor
    slots: Tensor  # int64 [B, heads, T, head_dim]: where in the ring the new keys go
    visible: Tensor  # bool [B, 1, T, capacity]
    active: Tensor  # bool [B, 1, 1, 1]

    def write(self, ring: Tensor, new: Tensor) -> Tensor:
        """Puts `[B, heads, T, head_dim]` into the active rows of a ring; returns these rows."""
        rows = ring[: new.shape[0]]
        kept = rows.gather(2, self.slots)
        return rows.scatter_(2, self.slots, torch.where(self.active, new, kept))


class WindowAttention(nn.Module):
    """Causal attention over the newest positions."""

    def __init__(self, config: WindowConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        wide = self.heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, wide, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, wide, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, wide, bias=False)
        self.o_proj = nn.Linear(wide, config.hidden_size, bias=False)

    def forward(self, x: Tensor, window: _Window, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )  # [B, heads, T, head_dim]
        keys = window.write(keys, rotate(k, window.cos, window.sin))
        values = window.write(values, v)
        q = rotate(q, window.cos, window.sin)
        y = F.scaled_dot_product_attention(q, keys, values, window.visible)
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Two layers with a GELU between them."""

    def __init__(self, config: WindowConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each after its norm and scaled into a residual."""

    def __init__(self, config: WindowConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = WindowAttention(config)
        self.self_attn_layer_scale = LayerScale(config.hidden_size)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = FeedForward(config)
        self.mlp_layer_scale = LayerScale(config.hidden_size)

    def forward(self, x: Tensor, window: _Window, keys: Tensor, values: Tensor) -> Tensor:
        seen = self.self_attn(self.input_layernorm(x), window, keys, values)
        x = x + self.self_attn_layer_scale(seen)
        return x + self.mlp_layer_scale(self.mlp(self.post_attention_layernorm(x)))


class WindowTransformer(nn.Module):
    """The transformer at 25 Hz between convolutions and quantizer; each row at its own position."""

    def __init__(self, config: WindowConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))

    def forward(self, x: Tensor, ring: KeyRing, active: Tensor) -> Tensor:
        """The next positions of each row; batch row i goes on where row i of the ring stands.

        Args:
            x: float32 `[B, hidden, T]`, T at most the longest that the ring was made for.
            ring: the new keys and values are written into its active rows.
            active: bool `[B]`.

        Returns:
            float32 `[B, hidden, T]`.
        """
        x = x.transpose(1, 2)
        window = self._window(x, ring, active)
        rows, steps, _ = x.shape
        for i, layer in enumerate(self.layers):
            x = layer(x, window, ring.keys[:rows, i], ring.values[:rows, i])
        ring.offset[:rows].add_(active * steps)
        return x.transpose(1, 2)

    def _window(self, x: Tensor, ring: KeyRing, active: Tensor) -> _Window:
        config, (rows, steps, _) = self.config, x.shape
        capacity = ring.keys.shape[3]
        positions = ring.offset[:rows, None] + torch.arange(steps, device=x.device)  # [B, T]
        last = positions[:, -1:]
        held = last - (last - torch.arange(capacity, device=x.device)) % capacity  # [B, capacity]
        age = positions[:, :, None] - held[:, None]  # [B, T, capacity]
        visible = (held[:, None] >= 0) & (age >= 0) & (age < config.window)

        exponents = torch.arange(0, config.head_dim, 2, device=x.device).float() / config.head_dim
        angles = positions[..., None].float() * (1.0 / config.rope_theta**exponents)
        angles = torch.cat((angles, angles), dim=-1)[:, None]  # [B, 1, T, head_dim]
        slots = (positions % capacity)[:, None, :, None]
        return _Window(
            cos=angles.cos(),
            sin=angles.sin(),
            slots=slots.expand(-1, config.heads, -1, config.head_dim),
            visible=visible[:, None],
            active=active[:, None, None, None],
        )
