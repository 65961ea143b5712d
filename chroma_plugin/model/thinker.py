"""The thinker (the paper's Reasoner): hears speech, decides what to say, one text token at a time.

A Qwen2.5-Omni thinker without its eyes: an audio tower that turns log-mel blocks into embeddings,
and a Qwen2.5 text stack that reads them among the tokens of the dialogue. Its hidden states and
token embeddings are also what the backbone speaks from.

Source: Qwen2.5-Omni technical report, arXiv 2503.20215; transformers `modeling_qwen2_5_omni.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chroma_plugin.model.layers import Linear, Transformer, TransformerConfig

BLOCK_FRAMES = 200
"""Mel frames that the audio tower looks at together: 2 s, 50 positions."""


@dataclass(frozen=True, slots=True)
class AudioTowerConfig:
    """Sizes of the audio tower."""

    mel_bins: int
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    output_size: int
    max_positions: int
    block_frames: int = BLOCK_FRAMES


def audio_positions(mel_frames: int) -> int:
    """Positions that a block of mel frames takes in the thinker: a quarter, rounded as there."""
    convolved = (mel_frames - 1) // 2 + 1
    return max((convolved - 2) // 2 + 1, 0)


class AudioLayer(nn.Module):
    """A Whisper encoder layer: keys have no bias."""

    def __init__(self, config: AudioTowerConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads = config.heads
        self.self_attn_layer_norm = nn.LayerNorm(size)
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)
        self.final_layer_norm = nn.LayerNorm(size)
        self.fc1 = nn.Linear(size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, t, size = x.shape
        y = self.self_attn_layer_norm(x)
        q, k, v = (
            p(y).view(b, t, self.heads, -1).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(b, t, size)
        x = x + self.out_proj(y)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class AudioTower(nn.Module):
    """Encodes independent blocks of log-mel frames."""

    def __init__(self, config: AudioTowerConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.conv1 = nn.Conv1d(config.mel_bins, size, 3, padding=1)
        self.conv2 = nn.Conv1d(size, size, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(AudioLayer(config) for _ in range(config.layers))
        self.ln_post = nn.LayerNorm(size)
        self.proj = nn.Linear(size, config.output_size)

    def _places(self, length: int, like: Tensor) -> Tensor:
        """Sinusoidal places `[length, hidden]`, as in Whisper."""
        half = self.config.hidden_size // 2
        steps = torch.arange(half, dtype=torch.float32, device=like.device)
        rates = torch.exp(-math.log(10000.0) / (half - 1) * steps)
        angles = torch.arange(length, device=like.device)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1).to(like.dtype)

    def forward(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Embeds blocks; a result depends on nothing but its own block.

        Args:
            mel: `[N, mel_bins, frames]`, at most `block_frames`; what lies beyond a block's length
                is ignored. On any device and of any dtype.
            lengths: int64 `[N]`, mel frames of each block.

        Returns:
            `[N, audio_positions(frames), output]`; of block i the first
            `audio_positions(lengths[i])` count.
        """
        mel, lengths = mel.to(self.conv1.weight), lengths.to(self.conv1.weight.device)
        frames = torch.arange(mel.shape[-1], device=mel.device)
        spoken = (frames < lengths[:, None])[:, None]  # [N, 1, frames]
        x = F.gelu(self.conv1(mel.where(spoken, 0))) * spoken
        x = F.gelu(self.conv2(x)).transpose(1, 2)  # [N, frames / 2, hidden]
        x = x + self._places(x.shape[1], x)
        steps = torch.arange(x.shape[1], device=x.device)
        mask = steps < ((lengths - 1) // 2 + 1)[:, None]  # [N, frames / 2]
        mask = mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        x = F.avg_pool1d(x.transpose(1, 2), 2, 2).transpose(1, 2)
        return self.proj(self.ln_post(x))


class Thinker(nn.Module):
    """The audio tower, the text stack and its head."""

    def __init__(
        self, text: TransformerConfig, audio: AudioTowerConfig, vocabulary: int, *, tied: bool
    ) -> None:
        super().__init__()
        self.audio_tower = AudioTower(audio)
        self.embedding = nn.Embedding(vocabulary, text.hidden_size)
        self.transformer = Transformer(text)
        self.lm_head = Linear(text.hidden_size, vocabulary, bias=False)
        if tied:
            self.lm_head.weight = self.embedding.weight
