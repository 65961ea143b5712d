"""Replies to learn from: training records, their codes, and what the thinker made of them, drawn
in all the ways in which they will be asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from chroma_plugin.errors import ChromaError
from chroma_plugin.model.prompt import PromptFormat
from chroma_plugin.training.lessons import SYSTEM, Lesson
from chroma_plugin.training.reasoner import Reasoned
from chroma_plugin.training.records import Clip, Records
from chroma_plugin.training.spoken import Codes, Spoken


def saying(prompt: PromptFormat, text: str) -> Lesson:
    """A text spoken word for word, with no question before it, as `Session.say` speaks it."""
    lesson = Lesson()
    lesson.read(prompt.system(SYSTEM[0]))
    lesson.tell(prompt, text)
    return lesson


def texts_of(records: Records) -> list[str]:
    """Every text that is spoken in the records' replies and references, sorted."""
    return sorted({clip.text for clip in records.clips})


@dataclass(frozen=True)
class Replies:
    """Draws replies.

    Attributes:
        records: with codes.
        prompt: spells transcripts.
        answered: for each dialogue what was reasoned in each of its turns.
        said: for each text what was reasoned when it was to be said word for word.
        word_for_word: share of the answers that are said so.
        references: share of replies whose text is that of a reference clip.
    """

    records: Records
    prompt: PromptFormat
    answered: Sequence[Sequence[Reasoned]]
    said: Mapping[str, Reasoned]
    word_for_word: float = 0.1
    references: float = 0.15

    def __post_init__(self) -> None:
        if len(self.answered) != len(self.records.dialogues):
            raise ChromaError(
                f"{len(self.answered)} dialogues were reasoned and {len(self.records.dialogues)} "
                "recorded; reason them anew"
            )

    def draw(self, rng: np.random.Generator, count: int = 1) -> list[Spoken]:
        """Replies of one voice after one of its reference clips, each in any of its encodings.

        Args:
            rng: what is drawn by.
            count: how many.
        """
        first = int(rng.integers(len(self.records.dialogues)))
        dialogues = self._of_voice[self._voices[first]]
        references = self.records[self.records.dialogues[first]].references
        chosen = int(rng.integers(len(references)))
        reference = references[chosen]
        heard = reference.codes(_any_variant(reference, rng))
        drawn = []
        for _ in range(count):
            if len(references) > 1 and rng.random() < self.references:
                other = (chosen + int(rng.integers(1, len(references)))) % len(references)
                target = references[other]
                reasoned = self.said[target.text]
            else:
                dialogue = dialogues[int(rng.integers(len(dialogues)))]
                turn = int(rng.integers(len(self.answered[dialogue])))
                target = self.records[self.records.dialogues[dialogue]].turns[turn].answer
                exact = rng.random() < self.word_for_word
                reasoned = self.said[target.text] if exact else self.answered[dialogue][turn]
            codes = target.codes(_any_variant(target, rng))
            drawn.append(self._spoken(reference.text, heard, reasoned, codes))
        return drawn

    def first(self, count: int) -> list[Spoken]:
        """The first replies as they are, after the first reference clip: to measure by."""
        found: list[Spoken] = []
        for number, reasoned in zip(self.records.dialogues, self.answered, strict=True):
            record = self.records[number]
            for turn, one in zip(record.turns, reasoned, strict=True):
                if len(found) < count:
                    reference = record.references[0]
                    codes = turn.answer.codes()
                    found.append(self._spoken(reference.text, reference.codes(), one, codes))
        return found

    @cached_property
    def _voices(self) -> list[str]:
        """The voice that answers in each dialogue."""
        return [self.records[number].speaker for number in self.records.dialogues]

    @cached_property
    def _of_voice(self) -> dict[str, list[int]]:
        """The dialogues that each voice answers in."""
        found: dict[str, list[int]] = {}
        for dialogue, voice in enumerate(self._voices):
            found.setdefault(voice, []).append(dialogue)
        return found

    def _spoken(self, transcript: str, heard: Codes, reasoned: Reasoned, codes: Codes) -> Spoken:
        return Spoken(
            transcript=self.prompt.encode(transcript),
            reference=heard,
            tokens=reasoned.tokens,
            states=reasoned.states,
            codes=codes,
        )


def _any_variant(clip: Clip, rng: np.random.Generator) -> int:
    return int(rng.integers(clip.shard.encoded.variants))
