"""The backbone: thinker states and audio frames in, codebook 0 out.

One Llama stack whose inputs are vectors, not ids: text embeddings and hidden states of the thinker
as they are (the widths are equal), and audio frames as the sum of their codes' embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chroma_plugin.model.layers import Linear, Transformer, TransformerConfig


class AudioEmbedding(nn.Module):
    """One table for all codebooks: codebook k's code c stands in row `k * vocabulary + c`."""

    def __init__(self, codebooks: int, vocabulary: int, size: int) -> None:
        super().__init__()
        self.codebooks, self.vocabulary = codebooks, vocabulary
        self.table = nn.Embedding(codebooks * vocabulary, size)

    def frame(self, codes: Tensor) -> Tensor:
        """A frame as one vector: codes `[..., K]` to `[..., hidden]`."""
        offsets = torch.arange(codes.shape[-1], device=codes.device) * self.vocabulary
        return self.table(codes + offsets).sum(dim=-2)

    def code(self, codes: Tensor, codebook: int) -> Tensor:
        """Codes `[...]` of one codebook to `[..., hidden]`."""
        return self.table(codes + codebook * self.vocabulary)


class Backbone(nn.Module):
    """Reads voice prompt, text pairs and frames; says codebook 0 of the next frame."""

    def __init__(self, config: TransformerConfig, codebooks: int, vocabulary: int) -> None:
        super().__init__()
        self.transformer = Transformer(config)
        self.audio_embedding = AudioEmbedding(codebooks, vocabulary, config.hidden_size)
        self.codebook0_head = Linear(config.hidden_size, vocabulary, bias=False)
