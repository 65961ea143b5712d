"""How the codebooks of a codec are learnt: k-means start, moving averages, dead entries anew.

The served `SplitQuantizer` holds everything that ships; this adds what only training needs.
Gradients go straight through the codes (arXiv 1711.00937); the entries themselves follow the
vectors that chose them, by the running sums that a checkpoint keeps anyway.

Entry 0 of every codebook is never chosen, so that a frame of zeros can only be the end of speech.
It lies `RESERVED` times as far out as the farthest vector: then the served search, which knows
nothing of this, finds a nearer one for any vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chroma_plugin.model.quantizer import EPSILON, Codebook, ResidualQuantizer, SplitQuantizer

RESERVED = 3.0
DEAD = 0.03
"""An entry is dead when it is chosen less often than this part of the mean."""
REBORN = 0.25
"""The usage that a dead entry begins anew with, in parts of the mean."""
KMEANS_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Latents:
    """A batch on its way to the decoder.

    Attributes:
        semantic: output of the semantic branch `[B, hidden, T]`.
        whole: both branches together, likewise; through the semantic one gradients reach its
            output projection and no further, so that what is to be copied does not lead code 0.
        commit: how far vectors are from their entries; to be made small. 0 without codebooks.
    """

    semantic: Tensor
    whole: Tensor
    commit: Tensor


class QuantizerTrainer(nn.Module):
    """The training side of a `SplitQuantizer`, which it holds and changes.

    Args:
        quantizer: its projections are trained by gradients, its sums by this module.
    """

    started: Tensor
    reach: Tensor

    def __init__(self, quantizer: SplitQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.register_buffer("started", torch.zeros(1, dtype=torch.bool))
        self.register_buffer("reach", torch.zeros(len(self.codebooks)))

    @property
    def branches(self) -> tuple[ResidualQuantizer, ResidualQuantizer]:
        """The semantic and the acoustic one."""
        own = self.quantizer
        return own.semantic_residual_vector_quantizer, own.acoustic_residual_vector_quantizer

    @property
    def codebooks(self) -> list[Codebook]:
        """All, in the order of a frame's codes."""
        return [codebook for branch in self.branches for codebook in branch.codebooks]

    def bypass(self, z: Tensor) -> Latents:
        """Both branches without their codebooks: of `[B, hidden, T]`."""
        inner = [branch.input_proj(z) for branch in self.branches]
        return self._project(inner[0], inner[1], z.new_zeros(()))

    def forward(self, z: Tensor, *, levels: Tensor, quantized: Tensor, decay: float) -> Latents:
        """Quantizes a batch, and lets the codebooks learn from it.

        Args:
            z: `[B, hidden, T]`.
            levels: int `[B]`: acoustic codebooks that each row uses, the first ones.
            quantized: bool `[B]`: rows that go through codebooks at all; the others go round them,
                but the codebooks learn from them too.
            decay: what the sums keep from step to step; 1: the codebooks stay as they are.
        """
        all_levels = torch.full_like(levels, len(self.codebooks))
        inner: list[Tensor] = []
        first, commit = 0, torch.zeros((), device=z.device)
        for branch, used in zip(self.branches, (all_levels, levels), strict=True):
            x = branch.input_proj(z).transpose(1, 2)  # [B, T, width]
            residual, total = x, torch.zeros_like(x)
            for level, codebook in enumerate(branch.codebooks):
                found = self._learn(first + level, codebook, residual.detach(), decay)
                entry = F.embedding(found, _entries(codebook))
                commit = commit + (residual - entry).square().mean() / len(branch.codebooks)
                total = total + entry * (used > level)[:, None, None]
                residual = residual - entry
            first += len(branch.codebooks)
            through = x + (total - x).detach()
            inner.append(torch.where(quantized[:, None, None], through, x).transpose(1, 2))
        return self._project(inner[0], inner[1], commit)

    def settled(self, z: Tensor) -> Tensor:
        """Both branches together, `[B, hidden, T]`; only the output projections may still learn."""
        inner: list[Tensor] = []
        for branch in self.branches:
            with torch.no_grad():
                x = branch.input_proj(z).transpose(1, 2)
                residual = x
                for codebook in branch.codebooks:
                    found = _nearest(codebook, residual.flatten(0, 1)).view(x.shape[:-1])
                    residual = residual - F.embedding(found, _entries(codebook))
            inner.append(branch.output_proj((x - residual).transpose(1, 2)))
        return inner[0] + inner[1]

    def _project(self, semantic: Tensor, acoustic: Tensor, commit: Tensor) -> Latents:
        first, second = (branch.output_proj for branch in self.branches)
        return Latents(first(semantic), first(semantic.detach()) + second(acoustic), commit)

    @torch.no_grad()
    def start(self, z: Tensor) -> None:
        """Begins the codebooks by k-means, each on what the ones before it leave over.

        Args:
            z: `[N, hidden, T]`, with a few times as many vectors as a codebook has entries.
        """
        number = 0
        for branch in self.branches:
            residual = branch.input_proj(z).transpose(1, 2).flatten(0, 1)  # [N * T, width]
            for codebook in branch.codebooks:
                entries = _kmeans(residual, codebook.size - 1)
                codebook.embed_sum[1:] = entries
                codebook.cluster_usage.fill_(1.0)
                self._reserve(number, codebook, residual)
                residual = residual - F.embedding(_nearest(codebook, residual), _entries(codebook))
                number += 1
        self.started.fill_(True)

    @torch.no_grad()
    def _learn(self, number: int, codebook: Codebook, x: Tensor, decay: float) -> Tensor:
        """Codes of `[B, T, width]`, and a step of the codebook's sums."""
        flat = x.flatten(0, 1)
        found = _nearest(codebook, flat)
        if decay < 1:
            mean_usage = len(flat) / codebook.size
            chosen = torch.zeros_like(codebook.cluster_usage)
            chosen.index_add_(0, found, torch.ones_like(flat[:, 0]))
            sums = torch.zeros_like(codebook.embed_sum).index_add_(0, found, flat)
            codebook.cluster_usage.lerp_(chosen, 1 - decay)
            codebook.embed_sum.lerp_(sums, 1 - decay)
            picks = torch.randint(len(flat), (codebook.size,), device=flat.device)
            dead = codebook.cluster_usage < DEAD * mean_usage
            reborn = flat[picks] * (REBORN * mean_usage)
            codebook.embed_sum.copy_(torch.where(dead[:, None], reborn, codebook.embed_sum))
            codebook.cluster_usage.masked_fill_(dead, REBORN * mean_usage)
            self._reserve(number, codebook, flat)
        return found.view(x.shape[:-1])

    def _reserve(self, number: int, codebook: Codebook, x: Tensor) -> None:
        """Moves entry 0 out of reach."""
        width = codebook.embed_sum.shape[1]
        farthest = torch.maximum(x.norm(dim=-1).max(), _entries(codebook)[1:].norm(dim=-1).max())
        self.reach[number] = torch.maximum(self.reach[number] * 0.999, farthest)
        codebook.cluster_usage[0] = 1.0
        codebook.embed_sum[0] = RESERVED * self.reach[number] * width**-0.5


def _entries(codebook: Codebook) -> Tensor:
    """As `Codebook.finalize` computes them, from the sums of this very step."""
    return codebook.embed_sum / codebook.cluster_usage.clamp(min=EPSILON)[:, None]


def _nearest(codebook: Codebook, x: Tensor) -> Tensor:
    """The nearest entry of each vector but for entry 0: `[N, width]` -> int64 `[N]`."""
    entries = _entries(codebook)[1:]
    distances = entries.square().sum(dim=1) - 2 * x @ entries.T  # and the vector's own norm
    return distances.argmin(dim=1) + 1


def _kmeans(x: Tensor, size: int) -> Tensor:
    """Centres `[size, width]` of `[N, width]`; a centre that nothing is near to begins anew."""

    def some(count: int) -> Tensor:
        order = torch.randperm(len(x), device=x.device)
        return x[order.repeat(-(-count // len(x)))[:count]]

    centres = some(size)
    for _ in range(KMEANS_ROUNDS):
        found = (centres.square().sum(dim=1) - 2 * x @ centres.T).argmin(dim=1)
        counts = torch.zeros(size, device=x.device).index_add_(0, found, torch.ones_like(x[:, 0]))
        sums = torch.zeros_like(centres).index_add_(0, found, x)
        means = sums / counts.clamp(min=1)[:, None]
        centres = torch.where(counts[:, None] > 0, means, some(size))
    return centres
