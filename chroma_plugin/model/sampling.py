"""Choosing codes from logits, on the device, every row by its own settings.

The noise is a function of (seed, frame, codebook, code) alone, and what a row has said lately is
kept in the row, so a conversation draws the same codes whatever runs beside it, in whichever row
of the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from chroma_plugin.config import SamplingParams

REPEAT_WINDOW = 32
"""Frames that the repetition guard looks back: 2.56 s, longer than a pause for breath. A guard
that never forgets drives a long reply away from every common sound."""
ALL = 2**31
"""More than any number of codes."""
_LANES = 64  # on a CPU, rankings are cut to a multiple of this: whole vectors in every row


@dataclass(slots=True)
class RowSampling:
    """The sampling settings of a batch and what its rows have said lately, one entry a row.

    Attributes:
        temperature: float32 `[B]`; 0 takes the likeliest code.
        top_k: int64 `[B]`; 0 for all.
        top_p: float32 `[B]`; infinity for all: 1 leaves out what is too rare for float32 to add.
        seed: int64 `[B]`.
        frame: int64 `[B]`, counted from 0 in each reply.
        penalty: float32 `[B]`: what each use of a code in the last frames costs it, in nats; 0
            is off.
        recent: int64 `[B, REPEAT_WINDOW]`: a ring of the last codes of codebook 0, frame f at
            f modulo its size; the end code stands where there is none.
        ranks: how many of its likeliest codes each row looks at, at most; known to the host, and
            only used on a CPU. `ALL` is always right.
        end_code: the code of codebook 0 that says end of speech.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    seed: Tensor
    frame: Tensor
    penalty: Tensor
    recent: Tensor
    ranks: list[int]
    end_code: int = 0

    @classmethod
    def greedy(
        cls, rows: int, device: torch.device | str = "cpu", end_code: int = 0
    ) -> RowSampling:
        """Settings that take the likeliest code in every row."""
        return cls(
            temperature=torch.zeros(rows, device=device),
            top_k=torch.zeros(rows, dtype=torch.int64, device=device),
            top_p=torch.full((rows,), torch.inf, device=device),
            seed=torch.zeros(rows, dtype=torch.int64, device=device),
            frame=torch.zeros(rows, dtype=torch.int64, device=device),
            penalty=torch.zeros(rows, device=device),
            recent=torch.full((rows, REPEAT_WINDOW), end_code, dtype=torch.int64, device=device),
            ranks=[ALL] * rows,  # until `set_row` says what is enough
            end_code=end_code,
        )

    def first(self, rows: int) -> RowSampling:
        """A view of the first rows: what is written to its tensors is written to these."""
        return RowSampling(
            self.temperature[:rows],
            self.top_k[:rows],
            self.top_p[:rows],
            self.seed[:rows],
            self.frame[:rows],
            self.penalty[:rows],
            self.recent[:rows],
            self.ranks[:rows],
            self.end_code,
        )

    def set_row(self, row: int, params: SamplingParams, seed: int) -> None:
        """Begins a reply on a row: its settings, its seed, and no history. Nothing is read back."""
        self.temperature[row].fill_(params.temperature)
        self.top_k[row].fill_(params.top_k)
        self.top_p[row].fill_(params.top_p if params.top_p < 1 else torch.inf)
        self.seed[row].fill_(seed)
        self.frame[row].fill_(0)
        self.penalty[row].fill_(math.log(params.repetition_penalty))
        self.recent[row].fill_(self.end_code)
        if params.temperature == 0 or (params.top_k == 0 and params.top_p == 1):
            self.ranks[row] = 1  # the likeliest or any: no ranking is needed
        else:
            self.ranks[row] = params.top_k or ALL

    def advance(self, codes0: Tensor, active: Tensor) -> None:
        """Ends a frame: active rows count it and remember its code, the others stay as they are.

        Args:
            codes0: int64 `[B]`: what was picked in codebook 0.
            active: bool `[B]`.
        """
        place = (self.frame % REPEAT_WINDOW)[:, None]
        kept = torch.where(active[:, None], codes0[:, None], self.recent.gather(1, place))
        self.recent.scatter_(1, place, kept)
        self.frame += active


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
        codebook: which codebook, 0..7: part of the noise's counter. Codebook 0 obeys the
            repetition guard.
        sampling: settings of the B rows.
        codebook_size: codes that the codec knows.
        noise: what `frame_noise` gives for this frame, if it is at hand.

    Returns:
        int64 `[B]`.
    """
    logits = logits.float()
    if codebook == 0:
        logits = repetition_guard(logits, sampling)
    if noise is None:
        noise = frame_noise(sampling, codebook_size, range(codebook, codebook + 1))[:, 0]
    else:
        noise = noise[:, codebook]
    cold = sampling.temperature <= 0
    heat = sampling.temperature.masked_fill(cold, 1.0)
    drawable = logits[:, :codebook_size] / heat[:, None]
    least = _least_kept(drawable, sampling)
    drawn = (drawable + noise).masked_fill(drawable < least, -torch.inf).argmax(dim=-1)
    return torch.where(cold, logits.argmax(dim=-1), drawn)


def repetition_guard(logits: Tensor, sampling: RowSampling) -> Tensor:
    """Makes codes that were used lately less likely: each use divides a code's odds by the penalty.

    A classic repetition penalty (CTRL, arXiv 1909.05858) scales logits, so what it does depends on
    where their zero is, and it treats a code that was used once like one that was used thirty
    times. Here a sound that comes twice is hardly touched and one that never stops grows ever
    less likely. Repetition aware sampling (VALL-E 2, arXiv 2406.05370) draws again at random
    instead, which greedy rows cannot.

    - The end code costs nothing, however often it was picked: an end is never put off. It lies in
      codebook 0 of frames that are no end, too.
    - Silence can be left: its codes lose what the codes of speech do not. And nothing is
      forbidden: the cost is bounded by the window, and forgotten with it.

    Args:
        logits: float32 `[B, V]` of codebook 0.
        sampling: settings of the B rows.

    Returns:
        float32 `[B, V]`; equal to `logits` where the guard is off.
    """
    counted = sampling.recent != sampling.end_code
    cost = sampling.penalty[:, None] * counted  # [B, W]
    # a code's costs are all the same number, so their order, which CUDA leaves open, is no matter
    return logits.scatter_add(1, sampling.recent, -cost)


def _least_kept(drawable: Tensor, sampling: RowSampling) -> Tensor:
    """The smallest value `[B, 1]` that top-k and top-p leave of `[B, V]`; -inf leaves all."""
    ranks = size = drawable.shape[1]
    if drawable.device.type == "cpu":  # on a GPU a step is captured once, for all settings
        ranks = min((max(sampling.ranks) // _LANES + 1) * _LANES, size)
    if ranks < size:
        ranked = drawable.topk(ranks, dim=-1).values
        ranked[:, -1] = -torch.inf  # one more than anybody looks at: for those who keep all
    else:
        ranked = drawable.sort(dim=-1, descending=True).values
    last = ((sampling.top_k - 1) % ALL).clamp(max=ranks - 1)[:, None]  # of the k; of all for 0
    mass = (ranked - ranked[:, :1]).exp().cumsum(dim=-1)
    enough = sampling.top_p[:, None] * mass.gather(1, last)
    last = (mass[:, :-1] < enough).sum(dim=-1, keepdim=True).minimum(last)
    return ranked.gather(1, last)


def frame_noise(sampling: RowSampling, codebook_size: int, codebooks: range = range(8)) -> Tensor:
    """Gumbel noise for the codes of a frame, float32 `[B, codebooks, codebook_size]`."""
    device = sampling.seed.device
    books = torch.arange(codebooks.start, codebooks.stop, device=device)[None, :, None]
    codes = torch.arange(codebook_size, device=device)[None, None]
    return gumbel(sampling.seed[:, None, None], sampling.frame[:, None, None], books, codes)


def gumbel(seed: Tensor, frame: Tensor, codebook: Tensor | int, code: Tensor) -> Tensor:
    """Gumbel noise from a counter instead of a generator's state; the arguments broadcast.

    It is splitmix64 (Steele, Lea, Flood 2014) twice: output 8 * frame + codebook of the generator
    that begins at the seed begins another one, whose outputs are the codes' bits. Only the second
    is computed for every code.
    """
    key = _splitmix64(seed, frame * 8 + codebook)
    bits = _splitmix64(key, code)
    bits >>= 41
    bits &= (1 << 23) - 1
    # 23 bits and a half are whole in float32, so the uniform is never 0 or 1 and no log infinite
    uniform = bits.float().add_(0.5).mul_(2.0**-23)
    return uniform.log_().neg_().log_().neg_()


def _splitmix64(state: Tensor, index: Tensor) -> Tensor:
    """Output `index` of the generator that begins at `state`, as int64: its products wrap too.

    In place from the first sum on, for this is the widest arithmetic of a frame.
    """
    x = state + (index + 1) * -7046029254386353131
    scratch = torch.empty_like(x)
    for bits, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        torch.bitwise_right_shift(x, bits, out=scratch)
        scratch &= (1 << (64 - bits)) - 1  # a logical shift: int64's own copies the sign
        x ^= scratch
        if factor != 1:
            x *= factor
    return x
