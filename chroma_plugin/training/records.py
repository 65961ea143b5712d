"""Training records as they lie on disk, and their reader.

A folder holds shards. Shard 7 of the split "train" is

- `train-00007.safetensors`: int16 audio end to end: `user` (16 kHz), `target` and `reference`
  (24 kHz);
- `train-00007.jsonl`: a line for each speaker (voice and reference clips), then one for each
  dialogue (speaker, and for each turn its texts and spans of audio);
- `train-00007.broken.jsonl`: what was set aside, with the reason, if anything was;
- `train-00007.codes.safetensors`: codes of `target` and `reference`, once a codec has made them.

A record is one turn: what the user says, the dialogue so far, the answer and how it sounds, and
reference clips of the same voice. Knows nothing of how records are made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from chroma_plugin.audio import Samples
from chroma_plugin.errors import ChromaError

Kind = Literal["user", "target", "reference"]
Codes = NDArray[np.int16]


class Shard:
    """One shard, read lazily.

    Args:
        path: its path without any suffix: `folder / "train-00007"`.

    Raises:
        ChromaError: its index cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.speakers: list[dict[str, Any]] = []
        self.dialogues: list[dict[str, Any]] = []
        try:
            for text in index_of(path).read_text(encoding="utf-8").splitlines():
                line = json.loads(text)
                (self.dialogues if "turns" in line else self.speakers).append(line)
        except (OSError, ValueError) as error:
            raise ChromaError(
                f"{index_of(path)}: cannot be read ({error}). Delete the shard's files and build "
                "again; only what is missing is made."
            ) from error

    def audio(self, kind: Kind, start: int, end: int) -> Samples:
        """A stretch of audio, float32 in [-1, 1]."""
        pcm = np.asarray(self._audio.get_slice(kind)[start:end])
        return pcm.astype(np.float32) / np.float32(32768)

    @cached_property
    def spans(self) -> dict[Kind, list[tuple[int, int]]]:
        """Where each target and reference clip lies, in the order in which codes are kept."""
        return {
            "target": [tuple(t["target"]) for d in self.dialogues for t in d["turns"]],
            "reference": [tuple(r["span"]) for s in self.speakers for r in s["references"]],
        }

    @cached_property
    def encoded(self) -> Encoded:
        """The shard's codes.

        Raises:
            ChromaError: no codec has made them.
        """
        return Encoded(codes_of(self.path))

    @cached_property
    def _audio(self) -> Any:
        return _opened(self.path.with_name(self.path.name + ".safetensors"))


class Encoded:
    """Codes of a shard's targets and references, each in several variants.

    Args:
        path: the file that `codes.encode_shard` has written.

    Raises:
        ChromaError: there is no such file, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file = _opened(path)
        self.key: str = (self._file.metadata() or {}).get("codec", "")
        self._firsts = {}
        for kind in ("target", "reference"):
            frames = self._file.get_tensor(f"{kind}_frames")  # [variants, clips]
            ends = np.cumsum(frames).reshape(frames.shape)
            self._firsts[kind] = np.stack([ends - frames, ends])
        self.variants: int = frames.shape[0]

    def codes(self, kind: Kind, clip: int, variant: int) -> Codes:
        """int16 `[K, F]` of a clip; variant 0 is the clip as it is."""
        start, end = self._firsts[kind][:, variant, clip]
        return np.asarray(self._file.get_slice(f"{kind}_codes")[:, int(start) : int(end)])


@dataclass(frozen=True, slots=True)
class Clip:
    """Something said, that is read when it is asked for.

    Attributes:
        text: what is said.
        shard: where it lies.
        kind: `user` (16 kHz), `target` or `reference` (24 kHz).
        span: its samples among those of its kind.
        place: its number among the shard's clips of its kind.
    """

    text: str
    shard: Shard
    kind: Kind
    span: tuple[int, int]
    place: int

    def __len__(self) -> int:
        return self.span[1] - self.span[0]

    def samples(self) -> Samples:
        """float32 `[n]`, mono; 16 kHz of a user, else 24 kHz."""
        return self.shard.audio(self.kind, *self.span)

    def codes(self, variant: int = 0) -> Codes:
        """int16 `[K, F]`; variant 0 is of the clip as it is, others of it shifted by less than a
        frame and at another level.

        Raises:
            ChromaError: a user's clip, or no codec has made codes yet.
        """
        if self.kind == "user":
            raise ChromaError("What a user says has no codes; only targets and references do.")
        return self.shard.encoded.codes(self.kind, self.place, variant)


@dataclass(frozen=True, slots=True)
class Turn:
    """A question as it was spoken, clean, and the answer as it is to be spoken."""

    question: Clip
    answer: Clip


@dataclass(frozen=True, slots=True)
class Record:
    """One turn and all that is known when it is answered.

    Attributes:
        turns: the dialogue so far; the last one is to be answered.
        references: clips of the voice that answers, none of them an answer.
        voice: that voice in words.
        speaker: its name, of the split's own.
        user_voice: the voice that asks.
    """

    turns: tuple[Turn, ...]
    references: tuple[Clip, ...]
    voice: str
    speaker: str
    user_voice: str


class Records(Sequence[Record]):
    """The records of one split.

    Args:
        folder: what `data.build` has filled.
        split: whose records.
        seed: what `batch` and `order` are drawn by.

    Raises:
        ChromaError: there are none.
    """

    def __init__(self, folder: str | Path, split: str = "train", seed: int = 0) -> None:
        names = sorted(path.stem for path in Path(folder).glob(f"{split}-[0-9]*[0-9].jsonl"))
        if not names:
            raise ChromaError(f"{folder}: holds no records of {split!r}; make them with build().")
        self.shards = [Shard(Path(folder) / name) for name in names]
        self._seed = seed
        self._places: list[tuple[Shard, int, int, int]] = []  # dialogue, turn, target clip
        for shard in self.shards:
            clip = 0
            for number, dialogue in enumerate(shard.dialogues):
                for turn in range(len(dialogue["turns"])):
                    self._places.append((shard, number, turn, clip))
                    clip += 1
        self._drawn: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        """A record by its number; its audio is read when it is asked for."""
        shard, number, last, clip = self._places[index]
        dialogue = shard.dialogues[number]
        speaker = shard.speakers[dialogue["speaker"]]
        first = clip - last
        turns = tuple(
            Turn(
                Clip(turn["question"], shard, "user", tuple(turn["user"]), first + place),
                Clip(turn["answer"], shard, "target", tuple(turn["target"]), first + place),
            )
            for place, turn in enumerate(dialogue["turns"][: last + 1])
        )
        name = f"{shard.path.name}/{dialogue['speaker']}"
        references = tuple(self._references(shard, dialogue["speaker"]))
        return Record(turns, references, speaker["voice"], name, dialogue["user_voice"])

    @cached_property
    def dialogues(self) -> list[int]:
        """The numbers of the records that are the last turn of their dialogue: all of it."""
        ends = [place[:2] for place in self._places]
        return [i for i in range(len(ends)) if i + 1 == len(ends) or ends[i] != ends[i + 1]]

    @cached_property
    def clips(self) -> list[Clip]:
        """Every target and reference clip: what a codec learns from."""
        found = [self[number].turns[-1].answer for number in range(len(self))]
        for shard in self.shards:
            for speaker in range(len(shard.speakers)):
                found += self._references(shard, speaker)
        return found

    def order(self, epoch: int) -> NDArray[np.int64]:
        """All numbers once, shuffled: the same for the same seed and epoch."""
        if self._drawn is None or self._drawn[0] != epoch:
            rng = np.random.default_rng([self._seed, epoch])
            self._drawn = epoch, rng.permutation(len(self))
        return self._drawn[1]

    def batch(self, number: int, size: int) -> list[int]:
        """The records of batch `number`, without an end: epoch after epoch, each in its order."""
        first = number * size
        return [
            int(self.order(place // len(self))[place % len(self)])
            for place in range(first, first + size)
        ]

    def rng(self, number: int) -> np.random.Generator:
        """Chance for batch `number`, for whatever is drawn while it is put together."""
        return np.random.default_rng([self._seed, number, 1])

    @staticmethod
    def _references(shard: Shard, speaker: int) -> Iterator[Clip]:
        before = sum(len(s["references"]) for s in shard.speakers[:speaker])
        for place, clip in enumerate(shard.speakers[speaker]["references"]):
            yield Clip(clip["text"], shard, "reference", tuple(clip["span"]), before + place)


def index_of(path: Path) -> Path:
    """A shard's index; it is written last, so where it is the shard is whole."""
    return path.with_name(path.name + ".jsonl")


def codes_of(path: Path) -> Path:
    """A shard's codes."""
    return path.with_name(path.name + ".codes.safetensors")


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except FileNotFoundError as error:
        made = "encode_shard()" if path.name.endswith(".codes.safetensors") else "build()"
        raise ChromaError(f"{path}: no such file; {made} makes it.") from error
    except (OSError, SafetensorError) as error:
        raise ChromaError(
            f"{path}: cannot be read ({error}). Delete it and make it anew."
        ) from error
