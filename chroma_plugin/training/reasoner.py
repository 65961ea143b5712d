"""What a frozen thinker gives to the rest of the model: for every answer its tokens, and the state
from which each was picked. Computed once, kept in one file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from chroma_plugin.audio import replace_file
from chroma_plugin.errors import CheckpointError
from chroma_plugin.training.lessons import Lesson, LessonBatch, collate
from chroma_plugin.training.thinker import ThinkerModule

BATCH = 16


@dataclass(frozen=True, slots=True)
class Reasoned:
    """One answer, reasoned.

    Attributes:
        tokens: of the answer, im_end last.
        states: float16 `[tokens, hidden]`: from state i token i was picked.
    """

    tokens: tuple[int, ...]
    states: NDArray[np.float16]


@torch.no_grad()
def reason(
    module: ThinkerModule,
    lessons: Sequence[Lesson],
    rng: np.random.Generator | None = None,
    strength: float = 0.5,
    say: Callable[[str], None] = lambda _: None,
) -> list[list[Reasoned]]:
    """Runs the thinker over whole conversations.

    Args:
        module: the thinker.
        lessons: the conversations.
        rng: draws how what is heard is disturbed; None: it is left as it is.
        strength: of that.
        say: gets a line of progress at a time.

    Returns:
        For each lesson what was told in it, in order.
    """
    device = module.thinker.embedding.weight.device
    out: list[list[Reasoned]] = []
    for first in range(0, len(lessons), BATCH):
        group = lessons[first : first + BATCH]
        batch = collate(group, module.audio_token, rng, strength)
        states, _ = module.states(LessonBatch(*(tensor.to(device) for tensor in batch)))
        kept = states.half().cpu().numpy()
        for row, lesson in zip(kept, group, strict=True):
            out.append(
                [
                    Reasoned(tuple(lesson.ids[at : at + n]), row[at - 1 : at - 1 + n].copy())
                    for at, n in lesson.told
                ]
            )
        if len(out) % (64 * BATCH) == 0 or len(out) == len(lessons):
            say(f"reasoned: {len(out):,} of {len(lessons):,} conversations")
    return out


def save_reasoned(path: Path, reasoned: Sequence[Sequence[Reasoned]], key: str) -> None:
    """Writes `path` (the states) and a `.json` beside it; `key` says what they are of."""
    words = {"key": key, "tokens": [[one.tokens for one in row] for row in reasoned]}
    np.save(path, np.concatenate([one.states for row in reasoned for one in row]))
    replace_file(path.with_suffix(".json"), json.dumps(words).encode())


def load_reasoned(path: Path, key: str) -> list[list[Reasoned]] | None:
    """Reads what `save_reasoned` wrote; None if there is nothing, or it is of another key.

    Raises:
        CheckpointError: the files are damaged.
    """
    try:
        words = json.loads(path.with_suffix(".json").read_bytes())
        if words["key"] != key:
            return None
        flat = np.load(path)
        out: list[list[Reasoned]] = []
        at = 0
        for row in words["tokens"]:
            out.append([])
            for tokens in row:
                out[-1].append(Reasoned(tuple(tokens), flat[at : at + len(tokens)]))
                at += len(tokens)
        if at != len(flat):
            raise ValueError(f"{len(flat)} states for {at} tokens")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}). Delete it, and it is made anew."
        ) from error
    return out


def key_of(module: torch.nn.Module) -> str:
    """A hash of a module's weights: equal for equal weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
