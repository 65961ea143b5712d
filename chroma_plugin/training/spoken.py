"""What backbone and depth decoder learn from: replies, laid out position by position as they will
be served. Knows no weights.

A row holds numbers of vectors instead of vectors, so that a batch is embedded in one go: 0 is the
vector of zeros, then come text embeddings, thinker states and frames of codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """Replies side by side.

    Attributes:
        ids: int64 `[I]`: text tokens to embed.
        states: float32 `[S, hidden]`: the thinker's.
        frames: int64 `[N, K]`: codes that are read.
        order: int64 `[B, T]`: what stands at each position, as numbers of vectors.
        places: int64 `[M]`: the positions, of all `B * T`, from which a frame is said.
        wanted: int64 `[M, K]`: those frames; a reply's last one is the end of speech.
        chosen: int64 `[C]`: which of these the depth decoder learns in this step.
    """

    ids: Tensor
    states: Tensor
    frames: Tensor
    order: Tensor
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
    """Puts replies side by side, filled up at their ends.

    Args:
        replies: one or more.
        config: for the ids around a voice prompt, and the end of speech.
        rng: what shares are drawn by; None: all frames, no wrong codes.
        depth_share: of the frames that the depth decoder learns; ends of speech always are.
        wrong: share of the codes read that are replaced by any other, so that the model learns to
            go on from its own mistakes.
    """
    ids: list[int] = []
    for reply in replies:
        ids += [config.text_start, *reply.transcript, config.text_end, *reply.tokens]
    frames = np.concatenate(
        [part for reply in replies for part in (reply.reference.T, reply.codes.T)]
    ).astype(np.int64)
    first_state = 1 + len(ids)
    first_frame = first_state + sum(len(reply.tokens) for reply in replies)

    next_id, next_state, next_frame = 1, first_state, first_frame
    rows: list[Tensor] = []
    places: list[int] = []
    ends: list[int] = []
    length = max(reply.positions for reply in replies)
    for number, reply in enumerate(replies):
        text = torch.arange(next_id, next_id + len(reply.transcript) + 2)[:, None]
        next_id += len(text)
        heard = torch.arange(next_frame, next_frame + reply.reference.shape[1])[:, None]
        next_frame += len(heard)
        # of numbers instead of vectors, this lays out the voice that serves: zero is number 0
        voice = lay_out_voice(text[1:-1], heard, text[0], text[-1])[:, 0]
        count, said = len(reply.tokens), reply.codes.shape[1]
        order, own = schedule(
            range(next_state, next_state + count),
            range(next_id, next_id + count),
            range(next_frame, next_frame + said),
        )
        next_id, next_state, next_frame = next_id + count, next_state + count, next_frame + said
        rows.append(torch.cat([voice, torch.tensor(order)]))
        places += [number * length + len(voice) + place for place in own]
        ends.append(len(places) - 1)

    end = np.full((1, CODEBOOKS), config.eos_code)
    wanted = np.concatenate([part for r in replies for part in (r.codes.T, end)]).astype(np.int64)
    chosen = np.ones(len(wanted), bool)
    if rng is not None:
        chosen = rng.random(len(wanted)) < depth_share
        chosen[ends] = True
        swapped = rng.random(frames.shape) < wrong
        others = rng.integers(1, config.codebook_size, frames.shape)
        frames = np.where(swapped, others, frames)
    return SpeechBatch(
        ids=torch.tensor(ids),
        states=torch.from_numpy(np.concatenate([r.states for r in replies]).astype(np.float32)),
        frames=torch.from_numpy(frames),
        order=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        places=torch.tensor(places),
        wanted=torch.from_numpy(wanted),
        chosen=torch.from_numpy(np.flatnonzero(chosen)),
    )
