"""Writes down what a model computes while an engine makes a reply on its only row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chroma_plugin.config import EngineConfig
from chroma_plugin.engine.engine import Engine
from chroma_plugin.engine.parts import Parts
from chroma_plugin.model.chroma import ChromaModel


class Tape:
    """Scores and codes of every frame, and the text tokens picked on the way.

    Attributes:
        code0: scores of code 0, `[V]` a frame.
        others: those of codes 1 to 7, `[7, V]` a frame.
        codes: `[K]` a frame.
        tokens: the thinker's picks, one to two frames.
    """

    def __init__(self, model: ChromaModel) -> None:
        self.code0: list[Tensor] = []
        self.others: list[Tensor] = []
        self.codes: list[Tensor] = []
        self.tokens: list[int] = []
        plain = model.depth.frame

        def code0(_: nn.Module, __: object, scores: Tensor) -> None:
            self.code0.append(scores[0].float().clone())

        def token(_: nn.Module, __: object, scores: Tensor) -> None:
            self.tokens.append(int(scores[0].argmax()))

        def frame(hidden: Tensor, first: Tensor, steps: object, pick: object) -> Tensor:
            heard: list[Tensor] = []

            def picked(scores: Tensor, codebook: int) -> Tensor:
                heard.append(scores[0].float().clone())
                return pick(scores, codebook)  # type: ignore[operator, no-any-return]

            made = plain(hidden, first, steps, picked)  # type: ignore[arg-type]
            self.others.append(torch.stack(heard))
            self.codes.append(made[0].clone())
            return made

        model.backbone.codebook0_head.register_forward_hook(code0)
        model.thinker.lm_head.register_forward_hook(token)
        model.depth.frame = frame  # type: ignore[method-assign]

    def begin(self) -> None:
        """Forgets what was computed before: an engine warms up when it starts."""
        for part in (self.code0, self.others, self.codes, self.tokens):
            part.clear()


def taped_engine(parts: Parts, frames: int) -> tuple[Engine, Tape]:
    """An engine of one row on these parts, whose replies have so many frames at most."""
    config = EngineConfig(device="cpu", max_replies=1, max_reply_s=frames * 0.08, num_threads=1)
    return Engine(config, load=lambda _: parts), Tape(parts.model)
