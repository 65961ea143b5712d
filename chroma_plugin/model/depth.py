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
from chroma_plugin.model.layers import KVCache, Transformer, TransformerConfig

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
        self.projection = nn.Linear(embedding_size, config.hidden_size, bias=False)
        self.transformer = Transformer(config)
        self.heads = nn.Parameter(torch.empty(codebooks - 1, config.hidden_size, vocabulary))

    def new_cache(self, rows: int) -> KVCache:
        """A cache of one frame's positions."""
        return KVCache.empty(self.transformer.config, rows, self.codebooks, self.heads)

    def frame(
        self,
        hidden: Tensor,
        code0: Tensor,
        cache: KVCache,
        pick: Pick,
        numbering: DepthPositions = "generate",
    ) -> Tensor:
        """Completes a frame.

        Args:
            hidden: the backbone's last hidden states, `[B, hidden]`.
            code0: int64 `[B]`.
            cache: of `new_cache`, at least B rows; what is in it does not matter.
            pick: how a code is chosen from its logits.
            numbering: `generate` gives hidden state and code 0 the same position, as the released
                model's generation does; `training` counts from 0 on.

        Returns:
            The codes of the frame, int64 `[B, K]`.
        """
        batch, device = code0.shape[0], code0.device
        shift = 1 if numbering == "generate" else 0
        codes = [code0]
        inputs = torch.stack([hidden, self.audio_embedding.code(code0, 0)], dim=1)  # [B, 2, H]
        positions = torch.arange(2, device=device).expand(batch, 2)
        for codebook in range(1, self.codebooks):
            out = self.transformer(
                self.projection(inputs),
                positions,
                cache,
                span=codebook + 1,
                rope_positions=(positions - shift).clamp(min=0),
            )
            codes.append(pick(out[:, -1] @ self.heads[codebook - 1], codebook))
            inputs = self.audio_embedding.code(codes[-1], codebook)[:, None]  # [B, 1, H]
            positions = torch.full((batch, 1), codebook + 1, device=device)
        return torch.stack(codes, dim=1)
