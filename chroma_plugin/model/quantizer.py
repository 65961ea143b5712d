"""Mimi's split residual vector quantizer: vectors to codes and back. Knows no time and no state.

Sources: Mimi (Defossez et al. 2024, arXiv 2410.00037, section 3.3.3); kyutai moshi
`quantization/vq.py`; transformers `modeling_mimi.py`. Module names follow the released weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-5
"""Least usage that a codebook entry is divided by, as in training."""


class Codebook(nn.Module):
    """One table of entries, kept in a checkpoint as the running sums it was trained with."""

    initialized: Tensor
    cluster_usage: Tensor
    embed_sum: Tensor
    embed: Tensor | None

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("initialized", torch.ones(1))
        self.register_buffer("cluster_usage", torch.ones(size))
        self.register_buffer("embed_sum", torch.zeros(size, width))
        self.register_buffer("embed", None, persistent=False)

    def finalize(self) -> None:
        """Computes the entries `[size, width]` from the loaded sums."""
        self.embed = self.embed_sum / self.cluster_usage.clamp(min=EPSILON)[:, None]

    @property
    def entries(self) -> Tensor:
        if self.embed is None:
            raise RuntimeError("the codebooks are not ready: call finalize() once after loading")
        return self.embed

    def encode(self, x: Tensor) -> Tensor:
        """The nearest entry of each vector: `[B, T, width]` -> int64 `[B, T]`."""
        distances = torch.cdist(x.reshape(1, -1, x.shape[-1]), self.entries[None])[0]
        return distances.argmin(dim=-1).view(x.shape[:-1])

    def decode(self, codes: Tensor) -> Tensor:
        """Entries of codes `[B, T]` -> `[B, T, width]`; a code beyond the table is its last one."""
        return F.embedding(codes.clamp(0, self.size - 1), self.entries)


class VectorQuantizer(nn.Module):
    """One level of the residual quantizer."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.codebook = Codebook(size, width)


class ResidualQuantizer(nn.Module):
    """Levels that each quantize what the ones before left over, between two projections."""

    def __init__(self, levels: int, hidden_size: int, size: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VectorQuantizer(size, width) for _ in range(levels))
        self.input_proj = nn.Conv1d(hidden_size, width, 1, bias=False)
        self.output_proj = nn.Conv1d(width, hidden_size, 1, bias=False)

    @property
    def codebooks(self) -> list[Codebook]:
        return [level.codebook for level in self.layers if isinstance(level, VectorQuantizer)]

    def encode(self, x: Tensor) -> Tensor:
        """`[B, hidden, T]` -> int64 `[B, levels, T]`."""
        residual = self.input_proj(x).transpose(1, 2)
        codes = []
        for codebook in self.codebooks:
            codes.append(codebook.encode(residual))
            residual = residual - codebook.decode(codes[-1])
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """`[B, levels, T]` -> `[B, hidden, T]`."""
        total = torch.zeros((), device=codes.device)
        for level, codebook in enumerate(self.codebooks):
            total = total + codebook.decode(codes[:, level])
        out: Tensor = self.output_proj(total.transpose(1, 2))
        return out


class SplitQuantizer(nn.Module):
    """Semantic levels and acoustic levels side by side, each residual in itself.

    Args:
        semantic: number of semantic codebooks, the first ones of a frame.
        acoustic: number of acoustic codebooks, the rest of a frame.
        hidden_size: channels of the vectors outside.
        size: entries of a codebook.
        width: channels of an entry.
    """

    def __init__(
        self, *, semantic: int, acoustic: int, hidden_size: int, size: int, width: int
    ) -> None:
        super().__init__()
        self.semantic = semantic
        self.semantic_residual_vector_quantizer = ResidualQuantizer(
            semantic, hidden_size, size, width
        )
        self.acoustic_residual_vector_quantizer = ResidualQuantizer(
            acoustic, hidden_size, size, width
        )

    def finalize(self) -> None:
        """Computes every codebook's entries from the loaded sums."""
        for module in self.modules():
            if isinstance(module, Codebook):
                module.finalize()

    def encode(self, x: Tensor) -> Tensor:
        """`[B, hidden, T]` -> int64 codes `[B, K, T]`."""
        return torch.cat(
            (
                self.semantic_residual_vector_quantizer.encode(x),
                self.acoustic_residual_vector_quantizer.encode(x),
            ),
            dim=1,
        )

    def decode(self, codes: Tensor) -> Tensor:
        """`[B, K, T]` -> `[B, hidden, T]`."""
        return self.semantic_residual_vector_quantizer.decode(
            codes[:, : self.semantic]
        ) + self.acoustic_residual_vector_quantizer.decode(codes[:, self.semantic :])
