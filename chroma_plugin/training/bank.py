"""Clips for a thinker to learn from, as spectrograms in one file: the dialogues of training
records and further ones, clean and as a microphone hears them, and the replies and reference clips
of the records.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chroma_plugin.audio import INPUT_RATE_HZ, OUTPUT_RATE_HZ, Samples, replace_file, resample
from chroma_plugin.errors import AudioError, CheckpointError
from chroma_plugin.model.listener import LogMel
from chroma_plugin.training import domain
from chroma_plugin.training.answers import Answers, BrokenAnswer
from chroma_plugin.training.lessons import SYSTEM, WRITE_DOWN, Asked, Heard, energies
from chroma_plugin.training.microphone import Conditions, heard, with_silence
from chroma_plugin.training.records import Records
from chroma_plugin.training.speech import Speaker

Talk = tuple[Asked, ...]
NEAR = Conditions(room=0, band=0, clipped=0, noise=1, snr_db=(45.0, 70.0))
"""A good microphone close by."""
QUIET = 1e-4
"""RMS of the noise in a reply: -80 dBFS, so that silence is not digital."""


@dataclass(frozen=True, slots=True)
class Bank:
    """What there is to learn from.

    Attributes:
        dialogues: spoken questions and their answers; the first of each stands for itself.
        noisy: the same dialogues as a microphone hears them.
        sayings: clips of other texts, replies and reference sentences.
    """

    dialogues: tuple[Talk, ...]
    noisy: tuple[Talk, ...]
    sayings: tuple[Heard, ...]

    @property
    def clips(self) -> Iterator[Heard]:
        for dialogue in (*self.dialogues, *self.noisy):
            for turn in dialogue:
                yield turn.question
        yield from self.sayings

    @property
    def minutes(self) -> float:
        """Of audio, at 100 frames a second."""
        return sum(int(clip.raw.shape[1]) for clip in self.clips) / 6000

    def save(self, path: Path, key: str = "") -> None:
        """Writes `path`, the spectrograms, and beside it a `.json` of the texts.

        Args:
            path: ends in .npy.
            key: says what the clips are of.
        """
        words = {
            "key": key,
            "dialogues": [[[t.question.text, t.answer] for t in d] for d in self.dialogues],
            "sayings": [clip.text for clip in self.sayings],
            "frames": [clip.raw.shape[1] for clip in self.clips],
        }
        part = path.with_suffix(".part.npy")  # who has the old file open keeps it
        kept = np.lib.format.open_memmap(  # so that a large bank is never twice in memory
            part,
            mode="w+",
            dtype=np.float16,
            shape=(sum(words["frames"]), next(self.clips).raw.shape[0]),
        )
        end = 0
        for clip in self.clips:
            kept[end : end + clip.raw.shape[1]] = clip.raw.T
            end += clip.raw.shape[1]
        kept.flush()
        part.replace(path)
        replace_file(path.with_suffix(".json"), json.dumps(words).encode())

    @classmethod
    def load(cls, path: Path, key: str = "") -> Bank | None:
        """Reads what `save` wrote; None if there is nothing, or it is of another key.

        The spectrograms stay on the disk until they are used.

        Raises:
            CheckpointError: a file is damaged.
        """
        try:
            words = json.loads(path.with_suffix(".json").read_bytes())
            if words["key"] != key:
                return None
            flat = np.load(path, mmap_mode="r")
            ends = np.cumsum(words["frames"])
            if len(flat) != (ends[-1] if len(ends) else 0):
                raise ValueError(f"{len(flat)} frames instead of {ends[-1]}")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error}). Delete it, and the clips are made anew."
            ) from error
        raws = (flat[end - n : end].T for end, n in zip(ends, words["frames"], strict=True))
        talks = [
            tuple(Asked(Heard(next(raws), question), answer) for question, answer in dialogue)
            for dialogue in words["dialogues"] * 2
        ]
        sayings = tuple(Heard(next(raws), text) for text in words["sayings"])
        half = len(talks) // 2
        return cls(tuple(talks[:half]), tuple(talks[half:]), sayings)


def make_bank(
    records: Records,
    mel: LogMel,
    *,
    seed: int = 0,
    through: Callable[[Samples], Samples] | None = None,
    copies: float = 0.5,
    further: Iterable[tuple[Talk, Talk]] = (),
    say: Callable[[str], None] = print,
) -> Bank:
    """Hears the records.

    Args:
        records: of one split.
        mel: the checkpoint's spectrogram.
        seed: the same seed, the same rooms and noises.
        through: what some of the replies go through at 24 kHz, such as a codec.
        copies: how many of them, a share.
        further: dialogues that are in no record, as `further_questions` makes them; they come
            after those of the records.
        say: gets a line of progress at a time.
    """
    rng = np.random.default_rng((seed, 3))
    dialogues: list[Talk] = []
    noisy: list[Talk] = []
    for number in records.dialogues:
        turns = records[number].turns
        spoken = [(t.question.samples(), t.question.text, t.answer.text) for t in turns]
        near, far = _asked(spoken, mel, rng)
        dialogues.append(near)
        noisy.append(far)
        if len(dialogues) % 500 == 0:
            say(f"heard: {len(dialogues):,} dialogues of {len(records.dialogues):,}")
    sayings = []
    for place, clip in enumerate(records.clips):
        samples = clip.samples()
        if through is not None and int((place + 1) * copies) > int(place * copies):
            samples = through(samples)
        sayings.append(Heard(energies(mel, as_heard(rng, samples)), clip.text))
        if len(sayings) % 1000 == 0:
            say(f"heard: {len(sayings):,} replies and references of {len(records.clips):,}")
    for near, far in further:
        dialogues.append(near)
        noisy.append(far)
    return Bank(tuple(dialogues), tuple(noisy), tuple(sayings))


def further_questions(
    count: int,
    answers: Answers,
    speaker: Speaker[Any],
    mel: LogMel,
    *,
    seed: int = 0,
    turns: tuple[int, int] = (1, 3),
    workers: int = 2,
    say: Callable[[str], None] = print,
) -> Iterator[tuple[Talk, Talk]]:
    """Dialogues of training of which only the questions are spoken, each in a voice of its own.

    They cost a thinker's ear much less than whole records do, in time and on the disk.

    Args:
        count: how many.
        answers: where they come from.
        speaker: who speaks them.
        mel: the checkpoint's spectrogram.
        seed: the same seed, the same dialogues.
        turns: fewest and most exchanges of each.
        workers: speak at a time.
        say: gets a line of progress at a time.

    Yields:
        Each dialogue twice: close by, and as a microphone in a room hears it. One that cannot be
        answered or spoken is left out.

    Raises:
        ChromaError: nobody can answer or speak here.
    """

    def ask(number: int) -> tuple[Talk, Talk] | None:
        rng = np.random.default_rng((seed, 4, number))
        voice = speaker.draw(rng)
        try:
            talk = answers.dialogue(rng, False, int(rng.integers(turns[0], turns[1] + 1)))
            said = [speaker.speak(exchange.question, voice) for exchange in talk]
        except (AudioError, BrokenAnswer):
            return None
        clips = [resample(clip, OUTPUT_RATE_HZ, INPUT_RATE_HZ) for clip in said]
        spoken = [(clip, e.question, e.answer) for clip, e in zip(clips, talk, strict=True)]
        return _asked(spoken, mel, rng)

    with ThreadPoolExecutor(workers) as pool:  # espeak-ng and resampling leave the lock alone
        for number, made in enumerate(pool.map(ask, range(count)), 1):
            if made is not None:
                yield made
            if number % 500 == 0:
                say(f"asked: {number:,} further dialogues of {count:,}")


def _asked(
    spoken: Sequence[tuple[Samples, str, str]], mel: LogMel, rng: np.random.Generator
) -> tuple[Talk, Talk]:
    """Questions of 16 kHz with their texts and answers, heard close by and in a room."""

    def talk(conditions: Conditions) -> Talk:
        return tuple(
            Asked(Heard(energies(mel, heard(clip, rng, conditions)), question), answer)
            for clip, question, answer in spoken
        )

    return talk(NEAR), talk(Conditions())


def as_heard(rng: np.random.Generator, samples: Samples) -> Samples:
    """A clip of 24 kHz at 16 kHz, with near silence around it."""
    speech = resample(samples, OUTPUT_RATE_HZ, INPUT_RATE_HZ)
    whole = with_silence(speech, rng, INPUT_RATE_HZ, (0.0, 0.3), (0.0, 0.4))
    noise = rng.normal(0, QUIET * 10 ** rng.uniform(-1, 1), len(whole))
    return (whole + noise).astype(np.float32)


def vocabulary_texts(seed: int = 0) -> list[str]:
    """What a small tokenizer learns its entries from: the small world, each word as often as it
    is said there, and what the chat template and the usual system prompts say."""
    rng = np.random.default_rng((seed, 2))
    talks = [domain.dialogue(rng, "train", 3) for _ in range(4000)]
    texts = [text for talk in talks for e in talk for text in (e.question, e.answer)]
    texts += [domain.reference_text(rng) for _ in range(1500)]
    texts += domain.answers() * 20
    texts += ["system", "user", "assistant", WRITE_DOWN] * 300
    return texts + [SYSTEM[0]] * 400 + list(SYSTEM[1:]) * 100
