"""What training takes, at any size, without taking it: a step on the meta device, which computes
shapes only, and sums.

    python -m chroma_plugin.training.dry_run
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.config import CODEBOOKS, ChromaConfig
from chroma_plugin.training.loop import Progress
from chroma_plugin.training.speaking import SpeakingPlan, SpeakingTask, SpeechModule
from chroma_plugin.training.spoken import SpeechBatch, Spoken
from chroma_plugin.training.tiny import StackSizes, TinySizes, make_config, make_tokenizer

RELEASED = TinySizes(
    vocabulary=151_936,
    text=StackSizes(2048, 11_008, 36, 16, 2),
    audio=StackSizes(1280, 5120, 32, 20, 20),
    backbone=StackSizes(2048, 8192, 16, 32, 8),
    depth=StackSizes(1024, 8192, 4, 8, 2),
    codec=StackSizes(512, 2048, 8, 8, 8),
    num_filters=64,
    codebook_size=2048,
    codebook_dim=256,
    window=250,
)
"""Sizes of the released model."""

GIGABYTE = 1e9
BF16, F32 = 2, 4


@dataclass(frozen=True, slots=True)
class Needs:
    """What a step takes; memory in bytes.

    Attributes:
        trained: weights that learn.
        weights: memory of all weights of backbone, depth decoder and text embeddings.
        gradients: of those that learn.
        moments: of AdamW, two of each.
        activations: what the backward pass reads again.
        positions: of the backbone, in a batch.
        flops: of a step, forward and backward; with recomputation that too.
    """

    trained: int
    weights: int
    gradients: int
    moments: int
    activations: int
    positions: int
    flops: float

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.activations


def dry_run(
    config: ChromaConfig, plan: SpeakingPlan, *, frames: int = 250, tokens: int = 80
) -> Needs:
    """A whole step without memory: forward, loss and backward on the meta device.

    Weights that learn are counted in float32, the frozen ones and what is computed in bfloat16, as
    training on a GPU has them.

    Args:
        config: the sizes.
        plan: what is trained, and how.
        frames: of each reply (80 ms each), and half as many of each reference clip.
        tokens: of each reply, and a third as many of each transcript.
    """
    with torch.device("meta"):
        model = ChromaModel(config)
    module = SpeechModule(model.to(torch.bfloat16), plan)

    def draw(rng: np.random.Generator, count: int) -> list[Spoken]:  # each after its own voice
        return [_made_up(config, rng, frames, tokens) for _ in range(count)]

    task = SpeakingTask(module, config, draw)
    batch = SpeechBatch(*(tensor.to("meta") for tensor in task.batch(0)))
    with _saved_bytes(module) as saved:
        loss = task.losses(batch, Progress())["loss"]
    loss.backward()
    parameters = list(module.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    assert all(p.grad is not None for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters) - trained
    return Needs(
        trained=trained,
        weights=F32 * trained + BF16 * frozen,
        gradients=F32 * trained,
        moments=2 * F32 * trained,
        activations=sum(saved.values()),
        positions=batch.order.numel(),
        flops=_flops(module, plan, batch),
    )


def _made_up(config: ChromaConfig, rng: np.random.Generator, frames: int, tokens: int) -> Spoken:
    size = config.codebook_size
    return Spoken(
        transcript=[0] * (tokens // 3),
        reference=rng.integers(1, size, (CODEBOOKS, frames // 2)),
        tokens=[0] * tokens,
        states=np.zeros((tokens, config.text.hidden_size), np.float16),
        codes=rng.integers(1, size, (CODEBOOKS, frames)),
    )


@contextmanager
def _saved_bytes(module: SpeechModule) -> Iterator[dict[int, int]]:
    """Memory that is kept for the backward pass of what runs inside, by storage; weights are left
    out, they are there anyway."""
    own = {p.untyped_storage()._cdata for p in module.parameters()}
    saved: dict[int, int] = {}
    alive: list[Tensor] = []  # or a storage's number could be given to another one

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _flops(module: SpeechModule, plan: SpeakingPlan, batch: SpeechBatch) -> float:
    """Two for each weight of a projection and each position it sees; backward twice as many, or
    once where the weights are frozen; attention is left out, it is a hundredth of that here."""

    def blocks(stack: torch.nn.Module) -> int:
        return sum(p.numel() for p in stack.parameters() if p.dim() > 1)

    backbone = blocks(module.backbone.transformer) * batch.order.numel()
    backbone += module.backbone.codebook0_head.weight.numel() * len(batch.places)
    depth = blocks(module.depth.transformer) * len(batch.chosen) * CODEBOOKS
    depth += module.depth.heads.numel() * len(batch.chosen)
    again = 1 if plan.recompute else 0
    passes = (3 if not plan.lora else 2) + again
    if plan.stage == "depth":
        return 2.0 * (backbone + passes * depth)
    return 2.0 * passes * (backbone + depth)


PLANS = {
    "stage one, all weights": SpeakingPlan(replies=8, depth_share=1 / 16),
    "the same, recomputing": SpeakingPlan(replies=8, depth_share=1 / 16, recompute=True),
    "stage one, LoRA 32": SpeakingPlan(replies=8, depth_share=1 / 16, lora=32),
    "the same, recomputing ": SpeakingPlan(replies=8, depth_share=1 / 16, lora=32, recompute=True),
    "stage two": SpeakingPlan(stage="depth", replies=8, depth_share=1 / 4),
}


def released_config() -> ChromaConfig:
    """The released model's sizes; token ids are those of the small tokenizer."""
    return ChromaConfig.from_dict(make_config(make_tokenizer(), RELEASED), "released sizes")


def table(config: ChromaConfig, frames: int = 250, tokens: int = 80) -> Table:
    """The plans beside each other, in gigabytes and teraflops."""
    seconds = frames * 0.08
    out = Table(title=f"A step of 8 replies of {seconds:.0f} s, GB")
    for head in ("", "trained, M", "weights", "gradients", "moments", "activations", "total",
                 "positions", "TFLOP"):  # fmt: skip
        out.add_column(head, justify="left" if not head else "right")
    for name, plan in PLANS.items():
        needs = dry_run(config, plan, frames=frames, tokens=tokens)
        memory = (needs.weights, needs.gradients, needs.moments, needs.activations, needs.total)
        out.add_row(
            name,
            f"{needs.trained / 1e6:.1f}",
            *(f"{part / GIGABYTE:.1f}" for part in memory),
            f"{needs.positions:,}",
            f"{needs.flops / 1e12:.1f}",
        )
    return out


if __name__ == "__main__":
    Console(width=120).print(table(released_config()))
