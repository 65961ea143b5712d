"""Trains backbone and depth decoder, with the thinker frozen.

Both read what they will read when they serve: `spoken` lays it out, the served blocks compute it.
Stage one learns code 0 (backbone) and codes 1 to 7 (depth decoder) half and half, the depth decoder
from a random share of the frames, as CSM does to save memory; stage two goes on with the depth
decoder alone.

Sources: Chroma 1.0, arXiv 2601.11141, training; CSM, "Crossing the uncanny valley of voice"
(Sesame 2025), compute amortization.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chroma_plugin.config import DepthPositions
from chroma_plugin.errors import ConfigError
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.config import ChromaConfig
from chroma_plugin.training.loop import Progress, decayed
from chroma_plugin.training.lora import add_lora, fold_lora
from chroma_plugin.training.sequence import compute_dtype, read_whole, recompute_blocks
from chroma_plugin.training.spoken import SpeechBatch, Spoken, collate

Stage = Literal["both", "depth"]
Draw = Callable[[np.random.Generator, int], Sequence[Spoken]]
"""Draws so many replies after one and the same voice prompt."""

LENGTHS = 4
"""Lengths that replies are sorted into before they are put side by side."""


@dataclass(frozen=True, slots=True)
class SpeakingPlan:
    """What is trained, and how a step is made up.

    Attributes:
        stage: `both`, or `depth` with the backbone and the embeddings frozen.
        replies: in a batch.
        together: of them, those that share a voice prompt, which is then read once for all.
        depth_share: of the frames that the depth decoder learns in a step; CSM takes 1/16.
        wrong: share of the codes read that are replaced by others in training.
        lora: rank of LoRA on both stacks, heads and embeddings frozen; 0 trains all weights.
        recompute: gradient checkpointing.
        numbering: positions of the depth decoder; must be what the engine will be told.
        max_positions: longer replies are refused.
    """

    stage: Stage = "both"
    replies: int = 18
    together: int = 3
    depth_share: float = 0.5
    wrong: float = 0.05
    lora: int = 0
    recompute: bool = False
    numbering: DepthPositions = "generate"
    max_positions: int = 2048

    def __post_init__(self) -> None:
        if self.stage not in ("both", "depth"):
            raise ConfigError(f"SpeakingPlan.stage is {self.stage!r}; use both or depth.")
        for name, low, high in (("depth_share", 0.0, 1.0), ("wrong", 0.0, 0.5)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"SpeakingPlan.{name} is {value}; use {low} to {high}.")
        for name in ("replies", "together"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"SpeakingPlan.{name} is {getattr(self, name)}; it must be 1 or more."
                )


class SpeechModule(nn.Module):
    """Backbone and depth decoder, as they learn.

    Args:
        model: its parts are trained in place.
        plan: which of them, and how.
    """

    def __init__(self, model: ChromaModel, plan: SpeakingPlan) -> None:
        super().__init__()
        self.plan = plan
        self.text_embedding = model.thinker.embedding.requires_grad_(False)
        self.backbone, self.depth = model.backbone, model.depth
        self.backbone.requires_grad_(plan.stage == "both" and not plan.lora)
        self.depth.requires_grad_(not plan.lora)
        shared = self.depth.audio_embedding is self.backbone.audio_embedding
        if shared and plan.stage == "depth":  # or the backbone would hear its own frames change
            self.backbone.audio_embedding.requires_grad_(False)
        if plan.lora:
            add_lora(self.depth.transformer, plan.lora)
            if plan.stage == "both":
                add_lora(self.backbone.transformer, plan.lora)
        if plan.recompute:
            recompute_blocks(self.backbone.transformer)
            recompute_blocks(self.depth.transformer)

    def forward(self, batch: SpeechBatch) -> tuple[Tensor, Tensor]:
        """What both would say with the right frames before.

        Returns:
            Scores of code 0, `[M, V]`, and of codes 1 to 7, `[C, 7, V]`.
        """
        learns = self.plan.stage == "both"
        with nullcontext() if learns else torch.no_grad():
            states = self._read(batch)
        return self.backbone.codebook0_head(states), self._complete(states, batch)

    def finish(self) -> None:
        """Folds LoRA in and frees the weights: what is left are the model's parts, as they were."""
        fold_lora(self.backbone.transformer)
        fold_lora(self.depth.transformer)
        for stack in (self.backbone.transformer, self.depth.transformer):
            for block in stack.blocks:
                vars(block).pop("forward", None)  # of recompute_blocks

    def _read(self, batch: SpeechBatch) -> Tensor:
        """The backbone's states from which frames are said, `[M, hidden]`."""
        frames = self.backbone.audio_embedding.frame(batch.frames)
        text = self.text_embedding(batch.ids).to(frames.dtype)
        zero = torch.zeros_like(frames[:1])
        vectors = torch.cat([zero, text, batch.states.to(frames.dtype), frames])
        out = read_whole(
            self.backbone.transformer,
            vectors[batch.order],
            positions=batch.positions,
            branches=batch.branches,
        )
        return out.flatten(0, 1)[batch.places]

    def _complete(self, states: Tensor, batch: SpeechBatch) -> Tensor:
        depth, codes = self.depth, batch.wanted[batch.chosen]  # [C, K]
        before = codes[:, :-1]
        offsets = torch.arange(before.shape[1], device=codes.device)
        embeds = depth.audio_embedding.table(before + offsets * depth.audio_embedding.vocabulary)
        inputs = torch.cat([states[batch.chosen][:, None].to(embeds.dtype), embeds], dim=1)
        shift = 1 if self.plan.numbering == "generate" else 0
        out = read_whole(depth.transformer, depth.projection(inputs), shift=shift)[:, 1:]
        kind = compute_dtype(out)
        return torch.einsum("cki,kiv->ckv", out.to(kind), depth.heads.to(kind))


class SpeakingTask:
    """Backbone and depth decoder as the loop trains them.

    Args:
        module: what learns.
        config: of the model.
        draw: gives replies to learn from.
        held_out: replies that it never learns from.
        seed: of the batches.
        rank, ranks: of a process among several, each of which has its own batches.
    """

    def __init__(
        self,
        module: SpeechModule,
        config: ChromaConfig,
        draw: Draw,
        held_out: Sequence[Spoken] = (),
        *,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.module: nn.Module = module
        self.plan, self._config = module.plan, config
        self._draw, self._held_out = draw, held_out
        self._seed, self._rank, self._ranks = seed, rank, ranks

    def groups(self) -> list[dict[str, Any]]:
        return decayed(self.module)

    def batch(self, number: int) -> SpeechBatch:
        """Rows of about the same length: a batch is as long as its longest."""
        rng = np.random.default_rng((self._seed, number * self._ranks + self._rank))
        plan = self.plan
        voices = -(-plan.replies // plan.together)
        many = [self._fitting(rng, -(-plan.replies // voices)) for _ in range(LENGTHS * voices)]
        many.sort(key=lambda replies: sum(reply.positions for reply in replies))
        first = int(rng.integers(LENGTHS)) * voices
        chosen = [reply for replies in many[first : first + voices] for reply in replies]
        return collate(
            chosen[: plan.replies],
            self._config,
            rng,
            depth_share=plan.depth_share,
            wrong=plan.wrong,
        )

    def losses(self, batch: SpeechBatch, progress: Progress) -> Mapping[str, Tensor]:
        scores, depth_scores = self.module(batch)
        wanted = batch.wanted
        depth = F.cross_entropy(
            depth_scores.float().flatten(0, 1), wanted[batch.chosen][:, 1:].flatten()
        )
        backbone = F.cross_entropy(scores.float(), wanted[:, 0])
        loss = depth if self.plan.stage == "depth" else 0.5 * backbone + 0.5 * depth
        right = (scores.argmax(dim=-1) == wanted[:, 0]).float().mean()
        return {"loss": loss, "backbone": backbone, "depth": depth, "right": right}

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Losses, and shares of right codes, on held-out replies with the right frames before."""
        device = next(self.module.parameters()).device
        sums = np.zeros(5)
        size = self.plan.replies
        for first in range(0, len(self._held_out), size):
            batch = collate(self._held_out[first : first + size], self._config)
            batch = SpeechBatch(*(tensor.to(device) for tensor in batch))
            scores, depth_scores = self.module(batch)
            first_codes, others = batch.wanted[:, 0], batch.wanted[:, 1:]
            sums += [
                float(F.cross_entropy(scores.float(), first_codes, reduction="sum")),
                float((scores.argmax(dim=-1) == first_codes).sum()),
                float(
                    F.cross_entropy(
                        depth_scores.float().flatten(0, 1), others.flatten(), reduction="sum"
                    )
                )
                / others.shape[1],
                float((depth_scores.argmax(dim=-1) == others).float().mean(dim=1).sum()),
                len(first_codes),
            ]
        names = ("backbone", "right_0", "depth", "right_1_7")
        return {name: total / max(sums[4], 1) for name, total in zip(names, sums[:4], strict=True)}

    def _fitting(self, rng: np.random.Generator, count: int) -> Sequence[Spoken]:
        for _ in range(100):
            drawn = self._draw(rng, count)
            fitting = [reply for reply in drawn if reply.positions <= self.plan.max_positions]
            if fitting:
                return fitting
        raise ConfigError(
            f"replies drawn a hundred times take more than {self.plan.max_positions} positions; "
            "raise max_positions or cut the clips"
        )
