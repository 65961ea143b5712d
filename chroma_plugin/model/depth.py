"""The depth decoder: codebooks 1..7 inside one frame.

It reads the backbone's hidden state and code 0, then each code it has picked, and starts anew with
every frame. The table of audio embeddings is the backbone's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from chroma_plugin.config import DepthPositions
from chroma_plugin.model.backbone import AudioEmbedding
from chroma_plugin.model.layers import KVCache, Linear, SharedStep, Transformer, TransformerConfig

Pick = Callable[[Tensor, int], Tensor]
"""Picks a code: logits `[B, V]` and its codebook to codes int64 `[B]`."""


class DepthDecoder(nn.Module):
    """A small Llama over the codebooks of one frame.

    Args:
        config: sizes of the stack.
        codebooks: codes in a frame, K.
        vocabulary: ids per codebook, special ones included.
        embedding: the backbone's table, or a table of its own.
        embedding_size: width of the table and of the backbone.
    """

    def __init__(
        self,
        config: TransformerConfig,
        codebooks: int,
        vocabulary: int,
        embedding: AudioEmbedding,
        embedding_size: int,
    ) -> None:
        super().__init__()
        self.codebooks = codebooks
        self.audio_embedding = embedding
        self.projection = Linear(embedding_size, config.hidden_size, bias=False)
        self.transformer = Transformer(config)
        self.heads = nn.Parameter(torch.empty(codebooks - 1, config.hidden_size, vocabulary))

    def new_steps(self, rows: int, numbering: DepthPositions = "generate") -> list[SharedStep]:
        """What the passes of a frame share, made once for a batch of at most so many rows.

        Args:
            rows: the largest batch.
            numbering: `generate` gives hidden state and code 0 the same position, as the released
                model's generation does; `training` counts from 0 on.
        """
        shift = 1 if numbering == "generate" else 0
        cache = KVCache.empty(self.transformer.config, rows, self.codebooks, self.heads)
        bounds = [(0, 2), *((i, i + 1) for i in range(2, self.codebooks))]
        return [self.transformer.shared_step(a, b, cache, shift) for a, b in bounds]

    def frame(self, hidden: Tensor, code0: Tensor, steps: list[SharedStep], pick: Pick) -> Tensor:
        """Completes a frame.

        Args:
            hidden: the backbone's last hidden states, `[B, hidden]`.
            code0: int64 `[B]`.
            steps: of `new_steps`, for at least B rows.
            pick: how a code is chosen from its logits.

        Returns:
            The codes of the frame, int64 `[B, K]`.
        """
        codes = [code0]
        inputs = torch.stack([hidden, self.audio_embedding.code(code0, 0)], dim=1)  # [B, 2, H]
        for codebook, step in enumerate(steps, start=1):
            out = self.transformer.run(self.projection(inputs), step)
            codes.append(pick(out[:, -1] @ self.heads[codebook - 1], codebook))
            inputs = self.audio_embedding.code(codes[-1], codebook)[:, None]  # [B, 1, H]
        return torch.stack(codes, dim=1)
