"""Choosing codes from logits, on the device, every row by its own settings.

The noise is a function of (seed, frame, codebook, code) alone, so a conversation draws the same
codes whatever runs beside it, in whichever row of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class RowSampling:
    """The sampling settings of a batch, one entry a row.

    Attributes:
        temperature: float32 `[B]`; 0 takes the likeliest code.
        top_k: int64 `[B]`; 0 for all.
        top_p: float32 `[B]`; 1 for all.
        seed: int64 `[B]`.
        frame: int64 `[B]`, counted from 0 in each reply.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    seed: Tensor
    frame: Tensor

    @classmethod
    def greedy(cls, rows: int, device: torch.device | str = "cpu") -> RowSampling:
        """Settings that take the likeliest code in every row."""
        return cls(
            temperature=torch.zeros(rows, device=device),
            top_k=torch.zeros(rows, dtype=torch.int64, device=device),
            top_p=torch.ones(rows, device=device),
            seed=torch.zeros(rows, dtype=torch.int64, device=device),
            frame=torch.zeros(rows, dtype=torch.int64, device=device),
        )

    def first(self, rows: int) -> RowSampling:
        """A view of the first rows."""
        return RowSampling(
            self.temperature[:rows],
            self.top_k[:rows],
            self.top_p[:rows],
            self.seed[:rows],
            self.frame[:rows],
        )


def pick_codes(
    logits: Tensor,
    codebook: int,
    sampling: RowSampling,
    codebook_size: int,
    noise: Tensor | None = None,
) -> Tensor:
    """Picks a code per row.

    Greedy rows take the likeliest id, special ones included, as the official greedy generation
    does. Rows that draw never draw a special id (from `codebook_size` on): the released model can,
    and its codec breaks on them.

    Args:
        logits: `[B, V]`.
        codebook: which codebook, 0..7: part of the noise's counter.
        sampling: settings of the B rows.
        codebook_size: codes that the codec knows.
        noise: what `frame_noise` gives for this frame, if it is at hand.

    Returns:
        int64 `[B]`.
    """
    logits = logits.float()
    if noise is None:
        noise = frame_noise(sampling, codebook_size, range(codebook, codebook + 1))[:, 0]
    else:
        noise = noise[:, codebook]
    cold = sampling.temperature <= 0
    heat = sampling.temperature.masked_fill(cold, 1.0)
    drawable = logits[:, :codebook_size] / heat[:, None]
    ranked = drawable.sort(dim=-1, descending=True).values
    ranks = torch.arange(codebook_size, device=logits.device)
    top_k = sampling.top_k.masked_fill(sampling.top_k <= 0, codebook_size)
    weights = ranked.masked_fill(ranks >= top_k[:, None], -torch.inf).softmax(dim=-1)
    before = weights.cumsum(dim=-1) - weights  # probability of the likelier codes
    kept = (before < sampling.top_p[:, None]).sum(dim=-1).minimum(top_k)
    least = ranked.gather(1, kept.clamp(1, codebook_size)[:, None] - 1)  # of those that are kept
    drawn = (drawable + noise).masked_fill(drawable < least, -torch.inf).argmax(dim=-1)
    return torch.where(cold, logits.argmax(dim=-1), drawn)


def frame_noise(sampling: RowSampling, codebook_size: int, codebooks: range = range(8)) -> Tensor:
    """Gumbel noise for the codes of a frame, float32 `[B, codebooks, codebook_size]`."""
    device = sampling.seed.device
    books = torch.arange(codebooks.start, codebooks.stop, device=device)[None, :, None]
    codes = torch.arange(codebook_size, device=device)[None, None]
    return gumbel(sampling.seed[:, None, None], sampling.frame[:, None, None], books, codes)


def gumbel(seed: Tensor, frame: Tensor, codebook: Tensor | int, code: Tensor) -> Tensor:
    """Gumbel noise from a counter instead of a generator's state; the arguments broadcast.

    The counter is mixed by the finaliser of splitmix64 (Steele, Lea, Flood 2014), whose 64-bit
    products wrap as int64 products do.
    """
    counter = (frame * 8 + codebook) * 65536 + code
    bits = _mix(_mix(seed) + _mix(counter))
    uniform = ((bits >> 40) & 0xFFFFFF).double() + 0.5  # 24 bits, never 0 or 1
    return (-torch.log(-torch.log(uniform / 2**24))).float()


def _mix(x: Tensor) -> Tensor:
    x = x + -7046029254386353131
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """A logical right shift: int64's own copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
