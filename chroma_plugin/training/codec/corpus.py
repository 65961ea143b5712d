"""Speech for a codec to learn from: clips of many voices in one file, cut at random.

A codec must carry whatever is said in it, so beside the questions and answers of a domain there
are sentences of random words, chosen so that every sound of English meets every other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chroma_plugin.audio import FRAME_SAMPLES, OUTPUT_RATE_HZ, Samples
from chroma_plugin.errors import ChromaError
from chroma_plugin.training import domain
from chroma_plugin.training.codec.losses import CEPSTRA, cepstra
from chroma_plugin.training.speech import EspeakSpeaker, Speaker, speak_all

_WORDS = """
the a my your his her our this that every some old young small big red blue green quick slow happy
sad quiet loud warm cold boy girl man woman child dog cat bird horse fish house door window table
chair garden river mountain city village street market school teacher doctor farmer king queen book
letter paper music voice light water bread milk apple cheese sugar coffee morning evening night
week month year winter summer weather rain snow wind storm fire stone wood glass iron gold silver
sees finds takes makes gives brings opens closes reads writes sings plays works sleeps walks runs
jumps falls breaks builds paints washes cooks eats drinks buys sells loves thinks knows says asks
answers hears shows under over behind between near with without before after because although and
but or never always often soon today yesterday tomorrow usually very really vision measure pleasure
usual beige though they bathe breathe smooth thing thumb thick path bath youth judge change choose
watch large orange shoe sugar ocean special cash zoo buzz noise easy young yellow few cute huge
ear year care chair tour poor hour flower power fire choir joy oil voice enjoy cow mouth sound
spring strength splash scream twelfth sixth months clothes texts tasks films helped asked worlds
"""
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHARES = {"answer": 0.4, "question": 0.15, "reference": 0.15, "words": 0.25, "letters": 0.05}
"""How often a clip is of which kind."""
AUDIO, INDEX = "speech.i16", "speech.json"


def sentences(rng: np.random.Generator, *, held_out: bool = False) -> Iterator[str]:
    """Texts to be spoken, without an end.

    Args:
        rng: what they are drawn by.
        held_out: questions that training never asks; the answers are the same ones.
    """
    answers, vocabulary = domain.answers(), _WORDS.split()
    kinds, shares = list(SHARES), np.array(list(SHARES.values()))
    while True:
        kind = kinds[rng.choice(len(kinds), p=shares)]
        if kind == "answer":
            yield answers[rng.integers(len(answers))]
        elif kind == "question":
            said = domain.dialogue(rng, "heldout" if held_out else "train", 2)
            yield said[rng.integers(2)].question
        elif kind == "reference":
            yield domain.reference_text(rng, 1)
        elif kind == "words":
            words = rng.choice(vocabulary, rng.integers(4, 10))
            yield " ".join(words).capitalize() + rng.choice([".", ".", "?", "!"])
        else:
            yield ", ".join(rng.choice(list(_LETTERS), rng.integers(3, 7))) + "."


class Segments(NamedTuple):
    """A batch.

    Attributes:
        samples: float32 `[B, n]`.
        cepstrum_means: float32 `[B, 12]`, of the whole clips.
    """

    samples: Tensor
    cepstrum_means: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Clips one after another.

    Attributes:
        audio: int16 `[n]`, 24 kHz, on disk or in memory.
        starts: int64 `[clips + 1]`: where each begins, and the end.
        means: float32 `[clips, 12]`: cepstra averaged over each clip.
        texts: what is said in each.
        voices: who says it, in words.
    """

    audio: NDArray[np.int16]
    starts: NDArray[np.int64]
    means: NDArray[np.float32]
    texts: tuple[str, ...] = ()
    voices: tuple[str, ...] = ()

    @property
    def clips(self) -> int:
        return len(self.starts) - 1

    @property
    def minutes(self) -> float:
        return float(self.starts[-1]) / OUTPUT_RATE_HZ / 60

    def clip(self, number: int) -> Samples:
        """One clip, float32 `[n]`."""
        first, last = self.starts[number : number + 2]
        return self.audio[first:last].astype(np.float32) / 32768.0

    def segments(self, rng: np.random.Generator, rows: int, frames: int) -> Segments:
        """Segments from anywhere, at random levels; silence lies before and after each clip.

        Args:
            rng: what they are drawn by; longer clips are drawn more often.
            rows: how many.
            frames: how long each is, in frames of 80 ms.
        """
        length = frames * FRAME_SAMPLES
        samples = np.zeros((rows, length), np.float32)
        picks = np.searchsorted(self.starts, rng.integers(self.starts[-1], size=rows), "right") - 1
        for row, pick in zip(samples, picks, strict=True):
            clip = self.audio[self.starts[pick] : self.starts[pick + 1]]
            first = int(rng.integers(-length // 4, max(1, len(clip) - length // 2)))
            part = clip[max(0, first) : first + length]
            gain = 10 ** rng.uniform(-0.25, 0.15)
            row[max(0, -first) :][: len(part)] = part * np.float32(gain / 32768)
        return Segments(torch.from_numpy(samples), torch.from_numpy(self.means[picks]))


def make_corpus(
    folder: Path,
    minutes: float,
    *,
    seed: int = 0,
    held_out: bool = False,
    speaker: Speaker[Any] | None = None,
    workers: int = 2,
    say: Callable[[str], None] = print,
) -> Corpus:
    """Speaks a corpus and writes it to a folder, or reads the one that is there.

    Args:
        folder: made if missing.
        minutes: how much speech; every clip has a voice of its own.
        seed: of texts and voices.
        held_out: texts and voices that training never meets.
        speaker: who speaks; None: espeak-ng.
        workers: threads that speak.
        say: gets a line of progress at a time.

    Raises:
        ChromaError: nothing speaks here, or the folder holds another corpus.
    """
    words = {"minutes": minutes, "seed": seed, "held_out": held_out}
    if (folder / INDEX).exists():
        return _read(folder, words)
    folder.mkdir(parents=True, exist_ok=True)
    source: Speaker[Any] = speaker or EspeakSpeaker()
    rng = np.random.default_rng((seed, int(held_out)))
    jobs: list[tuple[str, Any]] = []

    def drawn() -> Iterator[tuple[str, Any]]:
        for text in sentences(rng, held_out=held_out):
            jobs.append((text, source.draw(rng, held_out=held_out)))
            yield jobs[-1]

    wanted = int(minutes * 60 * OUTPUT_RATE_HZ)
    starts, means = [0], []
    with (folder / AUDIO).open("wb") as file:
        for samples in speak_all(source, drawn(), workers):
            pcm = (samples * 32767).astype(np.int16)
            file.write(pcm.tobytes())
            starts.append(starts[-1] + len(pcm))
            means.append(cepstra(torch.from_numpy(samples)[None])[0].mean(dim=0).tolist())
            if len(means) % 1000 == 0:
                spoken = starts[-1] / OUTPUT_RATE_HZ / 60
                say(f"{len(means):,} clips, {spoken:.0f} of {minutes:g} minutes of speech")
            if starts[-1] >= wanted:
                break
    index = {
        "of": words,
        "starts": starts,
        "means": means,
        "texts": [text for text, _ in jobs[: len(means)]],
        "voices": [source.describe(voice) for _, voice in jobs[: len(means)]],
    }
    part = folder / f".{INDEX}.part"
    part.write_text(json.dumps(index), encoding="utf-8")
    os.replace(part, folder / INDEX)
    return _read(folder, words)


def _read(folder: Path, words: dict[str, Any]) -> Corpus:
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    if index["of"] != words:
        raise ChromaError(
            f"{folder}: holds a corpus of {index['of']}, not of {words}. Take another folder."
        )
    means = np.array(index["means"], np.float32).reshape(-1, CEPSTRA - 1)
    audio = np.memmap(folder / AUDIO, np.int16, "r")
    starts = np.array(index["starts"], np.int64)
    return Corpus(audio, starts, means, tuple(index["texts"]), tuple(index["voices"]))
