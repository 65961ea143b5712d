"""Replies to learn from: training records, their codes, and what the thinker made of them, drawn
in all the ways in which they will be asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chroma_plugin.errors import ChromaError
from chroma_plugin.model.prompt import PromptFormat
from chroma_plugin.training.lessons import SYSTEM, Lesson
from chroma_plugin.training.reasoner import Reasoned
from chroma_plugin.training.records import Clip, Records
from chroma_plugin.training.spoken import Spoken


def saying(prompt: PromptFormat, text: str) -> Lesson:
    """A text spoken word for word, with no question before it, as `Session.say` speaks it."""
    lesson = Lesson()
    lesson.read(prompt.system(SYSTEM[0]))
    lesson.tell(prompt, text)
    return lesson


def texts_of(records: Records) -> list[str]:
    """Every text that is spoken in the records' replies and references, sorted."""
    return sorted({clip.text for clip in records.clips})


@dataclass(frozen=True, slots=True)
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

    def draw(self, rng: np.random.Generator) -> Spoken:
        """One reply, in any of its encodings, after any reference clip of its voice."""
        dialogue = int(rng.integers(len(self.records.dialogues)))
        turn = int(rng.integers(len(self.answered[dialogue])))
        record = self.records[self.records.dialogues[dialogue]]
        first = int(rng.integers(len(record.references)))
        reference = record.references[first]
        if len(record.references) > 1 and rng.random() < self.references:
            other = (first + int(rng.integers(1, len(record.references)))) % len(record.references)
            target = record.references[other]
            reasoned = self.said[target.text]
        else:
            target = record.turns[turn].answer
            exact = rng.random() < self.word_for_word
            reasoned = self.said[target.text] if exact else self.answered[dialogue][turn]
        variants = [int(rng.integers(c.shard.encoded.variants)) for c in (reference, target)]
        return self._spoken(reference, target, reasoned, variants)

    def first(self, count: int) -> list[Spoken]:
        """The first replies as they are, after the first reference clip: to measure by."""
        found: list[Spoken] = []
        for number, reasoned in zip(self.records.dialogues, self.answered, strict=True):
            record = self.records[number]
            for turn, one in zip(record.turns, reasoned, strict=True):
                if len(found) < count:
                    found.append(self._spoken(record.references[0], turn.answer, one, [0, 0]))
        return found

    def _spoken(
        self, reference: Clip, target: Clip, reasoned: Reasoned, variants: Sequence[int]
    ) -> Spoken:
        return Spoken(
            transcript=self.prompt.encode(reference.text),
            reference=reference.codes(variants[0]),
            tokens=reasoned.tokens,
            states=reasoned.states,
            codes=target.codes(variants[1]),
        )
