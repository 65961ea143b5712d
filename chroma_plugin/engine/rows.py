"""What the device knows of every row of the batch: static buffers, one entry a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chroma_plugin.model.config import CODEBOOKS
from chroma_plugin.model.sampling import RowSampling

MAX_SAID = 4096
"""Tokens of the longest text that can be spoken word for word."""


@dataclass(slots=True)
class Rows:
    """Row i of each belongs to slot i of the scheduler; see `Runner.start`."""

    active: Tensor  # bool: a reply speaks here and makes frames now
    texting: Tensor  # bool: its text goes on
    fresh: Tensor  # bool: its first pair has not been given, nor any frame made
    hidden: Tensor  # [R, hidden]: the thinker's state for the next pair
    token: Tensor  # int64: the newest text token
    state: Tensor  # [R, hidden]: the backbone's newest
    codes: Tensor  # int64 [R, K]: the newest frame
    undecoded: Tensor  # int64 [R, K, codec_frames]: frames that the codec has not had yet
    position: Tensor  # int64: the next backbone position
    thinker_row: Tensor  # int64: the conversation's row in the thinker's cache
    thinker_position: Tensor  # int64: where the newest token goes
    said: Tensor  # int64 [R, MAX_SAID]: tokens to speak word for word
    said_next: Tensor  # int64: the next of them; -1 where the thinker chooses
    sampling: RowSampling

    @classmethod
    def empty(cls, rows: int, codec_frames: int, hidden: Tensor, eos_code: int) -> Rows:
        """Rows that do nothing, with the device and dtype of `hidden`, `[..., hidden]`."""
        device = hidden.device

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(rows, *shape, dtype=dtype, device=device)

        return cls(
            active=zeros(dtype=torch.bool),
            texting=zeros(dtype=torch.bool),
            fresh=zeros(dtype=torch.bool),
            hidden=zeros(hidden.shape[-1], dtype=hidden.dtype),
            token=zeros(),
            state=zeros(hidden.shape[-1], dtype=hidden.dtype),
            codes=zeros(CODEBOOKS),
            undecoded=zeros(CODEBOOKS, codec_frames),
            position=zeros(),
            thinker_row=zeros(),
            thinker_position=zeros(),
            said=zeros(MAX_SAID),
            said_next=zeros(),
            sampling=RowSampling.greedy(rows, device, eos_code),
        )
