"""What backbone and depth decoder learn from: replies, laid out position by position as they will
be served. Knows no weights.

A row holds numbers of vectors instead of vectors, so that a batch is embedded in one go: 0 is the
vector of zeros, then come text embeddings, thinker states and frames of codes. Replies after the
same voice prompt share a row: the prompt, most of what there is to read, is read once for them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chroma_plugin.model.config import CODEBOOKS, ChromaConfig
from chroma_plugin.model.prompt import lay_out_voice

Codes = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Spoken:
    """One reply with all that it is made from.

    Attributes:
        transcript: tokens of what is said in the reference clip.
        reference: its codes, `[K, P]`.
        tokens: what is said, im_end last.
        states: the thinker's state from which each token was picked, `[tokens, hidden]`.
        codes: of the reply, `[K, F]`, without an end frame.
    """

    transcript: Sequence[int]
    reference: Codes
    tokens: Sequence[int]
    states: NDArray[np.floating]
    codes: Codes

    @property
    def positions(self) -> int:
        """Positions of the backbone that it takes."""
        frames, heard = int(self.codes.shape[1]), int(self.reference.shape[1])
        pairs = min(len(self.tokens), frames // 2 + 1)
        return len(self.transcript) + 3 + heard + 2 * pairs + frames


class SpeechBatch(NamedTuple):
    """Voice prompts side by side, each with the replies that go on from it.

    Attributes:
        ids: int64 `[I]`: text tokens to embed.
        states: float32 `[S, hidden]`: the thinker's.
        frames: int64 `[N, K]`: codes that are read.
        order: int64 `[B, T]`: what stands at each place of a row, as numbers of vectors.
        positions: int64 `[B, T]`: where it stands for the backbone: every reply begins where its
            prompt ends.
        branches: int64 `[B, T]`: which reply of its row it belongs to: 0 is the prompt, -1 filling.
        places: int64 `[M]`: the places, of all `B * T`, from which a frame is said.
        wanted: int64 `[M, K]`: those frames; a reply's last one is the end of speech.
        chosen: int64 `[C]`: which of these the depth decoder learns in this step.
    """

    ids: Tensor
    states: Tensor
    frames: Tensor
    order: Tensor
    positions: Tensor
    branches: Tensor
    places: Tensor
    wanted: Tensor
    chosen: Tensor


def schedule(
    states: Sequence[int], tokens: Sequence[int], frames: Sequence[int]
) -> tuple[list[int], list[int]]:
    """A reply after its voice prompt: one token and its state to two frames.

    Args:
        states: numbers of the thinker's states.
        tokens: numbers of the tokens picked from them.
        frames: numbers of the frames.

    Returns:
        What stands at each position; and the positions from which each frame, and then the end of
        speech, is said.
    """
    order: list[int] = []
    places: list[int] = []
    for step in range(len(frames) + 1):
        if step:
            order.append(frames[step - 1])
        pair = step // 2
        if step % 2 == 0 and pair < len(tokens):
            order += [states[pair], tokens[pair]]
        places.append(len(order) - 1)
    return order, places


def collate(
    replies: Sequence[Spoken],
    config: ChromaConfig,
    rng: np.random.Generator | None = None,
    *,
    depth_share: float = 1.0,
    wrong: float = 0.0,
) -> SpeechBatch:
    """Puts replies side by side, those of one voice prompt in one row, filled up at their ends.

    Args:
        replies: one or more.
        config: for the ids around a voice prompt, and the end of speech.
        rng: what shares are drawn by; None: all frames, no wrong codes.
        depth_share: of the frames that the depth decoder learns; ends of speech always are.
        wrong: share of the codes read that are replaced by any other, so that the model learns to
            go on from its own mistakes.
    """
    voices: dict[tuple[tuple[int, ...], bytes], list[Spoken]] = {}
    for reply in replies:
        prompt = tuple(reply.transcript), reply.reference.tobytes()
        voices.setdefault(prompt, []).append(reply)
    groups = list(voices.values())
    in_order = [reply for group in groups for reply in group]
    ids = [i for group in groups for i in _ids(group, config)]
    frames = np.concatenate(
        [part for g in groups for part in (g[0].reference.T, *(reply.codes.T for reply in g))]
    ).astype(np.int64)

    first_state = 1 + len(ids)
    first_frame = first_state + sum(len(reply.tokens) for reply in in_order)
    numbers = _Numbers(count(1), count(first_state), count(first_frame))
    rows = [_row(group, numbers) for group in groups]
    length = max(len(row.order) for row in rows)
    places = [length * i + place for i, row in enumerate(rows) for place in row.places]
    ends = np.cumsum([reply.codes.shape[1] + 1 for reply in in_order]) - 1

    end = np.full((1, CODEBOOKS), config.eos_code)
    wanted = np.concatenate([part for r in in_order for part in (r.codes.T, end)]).astype(np.int64)
    chosen = np.ones(len(wanted), bool)
    if rng is not None:
        chosen = rng.random(len(wanted)) < depth_share
        chosen[ends] = True
        swapped = rng.random(frames.shape) < wrong
        others = rng.integers(1, config.codebook_size, frames.shape)
        frames = np.where(swapped, others, frames)
    return SpeechBatch(
        ids=torch.tensor(ids),
        states=torch.from_numpy(np.concatenate([r.states for r in in_order]).astype(np.float32)),
        frames=torch.from_numpy(frames),
        order=_filled([row.order for row in rows], 0),
        positions=_filled([row.positions for row in rows], 0),
        branches=_filled([row.branches for row in rows], -1),
        places=torch.tensor(places),
        wanted=torch.from_numpy(wanted),
        chosen=torch.from_numpy(np.flatnonzero(chosen)),
    )


class _Numbers(NamedTuple):
    """Of the vectors that come next, of each kind."""

    text: Iterator[int]
    state: Iterator[int]
    frame: Iterator[int]


class _Row(NamedTuple):
    order: list[int]
    positions: list[int]
    branches: list[int]
    places: list[int]


def _ids(group: Sequence[Spoken], config: ChromaConfig) -> list[int]:
    """All text of a row: the transcript in its brackets, then what is said in each reply."""
    said = [token for reply in group for token in reply.tokens]
    return [config.text_start, *group[0].transcript, config.text_end, *said]


def _row(group: Sequence[Spoken], numbers: _Numbers) -> _Row:
    """A voice prompt, and after it all replies that have it; takes numbers as `_ids` has text."""
    text = torch.tensor(_next(numbers.text, len(group[0].transcript) + 2))[:, None]
    heard = torch.tensor(_next(numbers.frame, group[0].reference.shape[1]))[:, None]
    # of numbers instead of vectors, this lays out the voice that serves: zero is number 0
    order = lay_out_voice(text[1:-1], heard, text[0], text[-1])[:, 0].tolist()
    row = _Row(order, list(range(len(order))), [0] * len(order), [])
    prompt = len(order)
    for branch, reply in enumerate(group, 1):
        begin = len(row.order)
        said, places = schedule(
            _next(numbers.state, len(reply.tokens)),
            _next(numbers.text, len(reply.tokens)),
            _next(numbers.frame, reply.codes.shape[1]),
        )
        row.order.extend(said)
        row.positions.extend(range(prompt, prompt + len(said)))
        row.branches.extend([branch] * len(said))
        row.places.extend(begin + place for place in places)
    return row


def _next(numbers: Iterator[int], many: int) -> list[int]:
    return list(islice(numbers, many))


def _filled(rows: Sequence[Sequence[int]], filling: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=filling
    )
