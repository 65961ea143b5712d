"""The audio tower as a step of fixed shape: one block of a user's turn at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from chroma_plugin.engine.graphs import DeviceMode, Graphs
from chroma_plugin.model.thinker import AudioTower, AudioTowerConfig


class StaticTower:
    """Stands before the tower; a `Listener` cannot tell them apart.

    Args:
        tower: the thinker's.
        graphs: where `hear` may have been captured.
        mode: whether shapes are to be few.
    """

    def __init__(self, tower: AudioTower, graphs: Graphs, mode: DeviceMode) -> None:
        self._tower, self._graphs, self._few_shapes = tower, graphs, mode.few_shapes
        weight, config = tower.proj.weight, tower.config
        self._mel = torch.zeros(1, config.mel_bins, config.block_frames, device=weight.device)
        self._length = torch.full((1,), config.block_frames, device=weight.device)

    @property
    def config(self) -> AudioTowerConfig:
        return self._tower.config

    @torch.inference_mode()
    def __call__(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Embeds blocks; see `AudioTower.forward`.

        Args:
            mel: `[N, mel_bins, block_frames]`, on the host.
            lengths: int64 `[N]`, on the host.
        """
        if not self._few_shapes:
            embeds: Tensor = self._tower(mel, lengths)
            return embeds
        blocks = []
        for block, length in zip(mel, lengths.tolist(), strict=True):
            self._mel.copy_(block[None])
            self._length.fill_(length)
            blocks.append(self._graphs.run(self.hear).clone())
        return torch.cat(blocks)

    def hear(self) -> Tensor:
        """The block that lies in the buffer, `[1, positions, output]`."""
        embeds: Tensor = self._tower(self._mel, self._length)
        return embeds
