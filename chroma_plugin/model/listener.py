"""Hearing a turn while it is spoken: samples in, thinker embeddings out, block by block.

Whisper's features have one term that looks at the whole clip: values more than 8 (in log10) below
its loudest one are raised to that floor. So blocks are embedded as soon as they have been spoken,
and the few that a later, louder sound would have changed are embedded anew. The result equals
that of the whole clip at once.

Source: Whisper, arXiv 2212.04356, section 2.2; transformers `WhisperFeatureExtractor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from chroma_plugin.audio import Samples
from chroma_plugin.model.thinker import AudioTowerConfig, audio_positions

FLOOR = 8.0
"""How far below the loudest value of a clip log10 energies are cut."""

SPECTRA_FRAMES = 50
"""Spectra are made half a second at a time: many small transforms cost more than a large one."""


class LogMel:
    """The spectrogram of a checkpoint's own feature extractor, without its view of the whole clip.

    Args:
        extractor: read from the checkpoint; gives the filters and the sizes.
    """

    def __init__(self, extractor: WhisperFeatureExtractor) -> None:
        self.hop: int = extractor.hop_length
        self.window_samples: int = extractor.n_fft
        filters = np.asarray(extractor.mel_filters, dtype=np.float32)
        self._filters = torch.from_numpy(filters)  # [bins, mels]
        self._window = torch.hann_window(self.window_samples)

    def __call__(self, padded: Tensor) -> Tensor:
        """Log10 mel energies of every whole window.

        Args:
            padded: float32 `[(frames - 1) * hop + window_samples]`: frame f is the window that
                starts at `f * hop`.

        Returns:
            float32 `[mels, frames]`.
        """
        windows = padded.unfold(0, self.window_samples, self.hop) * self._window
        power = torch.fft.rfft(windows).abs().square()  # [frames, bins]
        return (power @ self._filters).clamp(min=1e-10).log10().T


@dataclass(slots=True)
class _Block:
    """Up to 200 mel frames, embedded."""

    embeds: Tensor  # [positions, hidden]
    floor: float
    lowest: float


class Tower(Protocol):
    """An audio tower, or what stands before it; see `AudioTower.forward`."""

    @property
    def config(self) -> AudioTowerConfig: ...

    def __call__(self, mel: Tensor, lengths: Tensor) -> Tensor: ...


class Listener:
    """One user turn, heard piece by piece.

    Args:
        mel: the checkpoint's spectrogram.
        tower: the thinker's audio tower.
    """

    def __init__(self, mel: LogMel, tower: Tower) -> None:
        self._mel, self._tower = mel, tower
        self._block_frames = tower.config.block_frames
        self._tail = np.zeros(0, np.float32)  # padded samples that later windows still need
        self._fresh: list[Samples] = []  # samples that no window has seen
        self._heard = 0
        self._raw = torch.zeros(tower.config.mel_bins, 0)  # log10 energies
        self._peak = -torch.inf
        self._blocks: list[_Block] = []

    @property
    def samples(self) -> int:
        """How many samples were pushed."""
        return self._heard

    @property
    def positions(self) -> int:
        """Thinker positions embedded so far."""
        return sum(len(block.embeds) for block in self._blocks)

    @property
    def embeds(self) -> Tensor:
        """What was heard so far, `[positions, hidden]`."""
        return torch.cat([b.embeds for b in self._blocks])

    def push(self, samples: Samples) -> None:
        """Hears more: float32 mono at 16 kHz, any length."""
        self._fresh.append(samples)
        self._heard += len(samples)

    def update(self, *, final: bool = False) -> int:
        """Embeds every block that can be, and those again that a louder sound has changed.

        Args:
            final: the turn has ended: the last, shorter block is embedded too.

        Returns:
            The first position whose embedding is new since the last call; `positions` if none is.
        """
        known = (self._heard - self._mel.window_samples // 2) // self._mel.hop + 1
        if final:
            self._finish()
        elif known // SPECTRA_FRAMES > self._raw.shape[1] // SPECTRA_FRAMES:
            self._transform()
        frames = self._raw.shape[1]
        whole = frames // self._block_frames
        count = -(-frames // self._block_frames) if final else whole
        floor = self._peak - FLOOR
        stale = [
            i
            for i in range(count)
            if i >= len(self._blocks) or self._blocks[i].lowest < floor != self._blocks[i].floor
        ]
        if stale:
            self._embed(stale, floor)
        return sum(len(b.embeds) for b in self._blocks[: stale[0]]) if stale else self.positions

    def _transform(self) -> None:
        """Turns what was heard into mel frames, as far as there are whole windows."""
        hop, window = self._mel.hop, self._mel.window_samples
        begins = not self._raw.shape[1] and len(self._tail) <= window // 2
        self._tail = np.concatenate([self._tail, *self._fresh])
        self._fresh.clear()
        if begins and len(self._tail) > window // 2:
            # the first window's left half mirrors the beginning
            self._tail = np.concatenate([self._tail[window // 2 : 0 : -1], self._tail])
        frames = (len(self._tail) - window) // hop + 1
        if frames <= 0:
            return
        raw = self._mel(torch.from_numpy(self._tail[: (frames - 1) * hop + window]))
        self._tail = self._tail[frames * hop :]
        self._raw = torch.cat([self._raw, raw], dim=1)
        self._peak = max(self._peak, float(raw.max()))

    def _finish(self) -> None:
        """Makes the frames that look past the end: silence follows, one frame a begun hop.

        The two frames after them still see the last samples: they count for the peak, as they do
        in the padded clip of transformers, and are dropped.
        """
        half = self._mel.window_samples // 2
        if self._heard <= half:
            raise ValueError(f"a turn needs more than {half} samples, this one has {self._heard}")
        self._transform()
        wanted = -(-self._heard // self._mel.hop)
        missing = wanted - self._raw.shape[1]
        if missing > 0:
            needed = (missing + 1) * self._mel.hop + self._mel.window_samples
            self._fresh.append(np.zeros(needed - len(self._tail), np.float32))
            self._transform()
            self._raw = self._raw[:, :wanted]

    @torch.inference_mode()
    def _embed(self, stale: list[int], floor: float) -> None:
        size = self._block_frames
        pieces = [self._raw[:, i * size : (i + 1) * size] for i in stale]
        lengths = torch.tensor([p.shape[1] for p in pieces])
        mel = torch.zeros(len(pieces), self._raw.shape[0], size)
        for row, piece in enumerate(pieces):
            mel[row, :, : piece.shape[1]] = (piece.clamp(min=floor) + 4.0) / 4.0
        embeds = self._tower(mel, lengths)
        for row, i in enumerate(stale):
            length = pieces[row].shape[1]
            block = _Block(embeds[row, : audio_positions(length)], floor, float(pieces[row].min()))
            self._blocks[i : i + 1] = [block]
