"""Trains a small thinker: to answer what it hears, and to write it down.

Next-token loss on whole conversations through the served chat template. Beside it a head that is
thrown away afterwards spells what is heard from the audio tower's embeddings alone (CTC): without
it the tower learns to tell questions apart long before it learns to hear words.

The released thinker is never trained here: it stays frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chroma_plugin.errors import ConfigError
from chroma_plugin.model.prompt import PromptFormat
from chroma_plugin.model.thinker import Thinker
from chroma_plugin.training.bank import Bank
from chroma_plugin.training.lessons import (
    IGNORED,
    LETTERS,
    SYSTEM,
    Asked,
    Heard,
    Lesson,
    LessonBatch,
    answering,
    collate,
    typed,
    writing_down,
)
from chroma_plugin.training.loop import Progress, decayed
from chroma_plugin.training.sequence import read_whole

TURNS, TURN_SHARES = (1, 2, 3, 6, 10), (0.3, 0.2, 0.25, 0.15, 0.1)
"""How long the conversations of a batch are: a tenth turn must be answered as a first one is."""
LENGTHS = 4
"""Lengths that clips to be written down are sorted into."""
HEARING_STEPS = 2
"""Letters that the hearing head may spell in a position: 25 positions a second are too few."""
Texts = Callable[[np.random.Generator, int], Sequence[tuple[str, str]]]
"""Questions and their answers, at most so many, one following from the other."""


class ThinkerModule(nn.Module):
    """The thinker and the head that is thrown away.

    Args:
        thinker: is trained in place.
        audio_token: stands for a position of audio.
    """

    def __init__(self, thinker: Thinker, audio_token: int) -> None:
        super().__init__()
        self.thinker, self.audio_token = thinker, audio_token
        width = thinker.embedding.embedding_dim
        self.hearing = nn.Linear(width, HEARING_STEPS * (len(LETTERS) + 1))

    def embed(self, batch: LessonBatch) -> tuple[Tensor, Tensor]:
        """The thinker's input `[B, T, hidden]`, and the audio's part of it, `[heard, hidden]`."""
        tower = self.thinker.audio_tower
        blocks = [(batch.mel, batch.frames), (batch.short_mel, batch.short_frames)]
        embeds = [tower(mel, frames).flatten(0, 1) for mel, frames in blocks if len(mel)]
        x = self.thinker.embedding(batch.ids)
        audio = torch.cat(embeds)[batch.heard_at] if embeds else x.new_zeros(0, x.shape[-1])
        return x.masked_scatter(batch.is_audio[..., None], audio.to(x.dtype)), audio

    def states(self, batch: LessonBatch) -> tuple[Tensor, Tensor]:
        """The thinker's last states `[B, T, hidden]`, and the audio's embeddings on the way."""
        x, audio = self.embed(batch)
        return read_whole(self.thinker.transformer, x), audio

    def spelling_loss(self, audio: Tensor, batch: LessonBatch) -> Tensor:
        """CTC of the letters of each clip, per letter."""
        scores = self.hearing(audio)[batch.clip_at]  # [C, P, 2 * letters]
        clips = len(scores)
        scores = scores.view(clips, -1, len(LETTERS) + 1).transpose(0, 1)  # [2 P, C, letters]
        loss: Tensor = F.ctc_loss(
            scores.float().log_softmax(dim=-1),
            batch.letters,
            batch.clip_positions * HEARING_STEPS,
            batch.letter_counts,
            zero_infinity=True,
        )
        return loss


@dataclass(frozen=True, slots=True)
class ThinkerPlan:
    """What a step of the thinker's training is made of.

    Attributes:
        turns: spoken questions in a batch of conversations.
        typed: typed questions beside them. They cost little, and the stack learns from them what
            follows from what, by text alone.
        clips: in a batch of clips to be written down; the two kinds of batches alternate.
        write_down: share of the conversations whose last question is to be written down.
        spelling: weight of the hearing head's loss at the beginning; it ends at a tenth of that.
        calm: batches in which nothing is noisy; the noise then rises for as many. In noise from
            the start, hearing was not learnt in 700 steps; without it, it began after 160.
        noisy: share of the questions heard by a microphone somewhere, in the end.
        disturbance: strength of further noise and level changes, in the end.
        evaluated: conversations and clips of each kind in an evaluation.
    """

    turns: int = 24
    typed: int = 24
    clips: int = 28
    write_down: float = 0.25
    spelling: float = 0.6
    calm: int = 1500
    noisy: float = 0.6
    disturbance: float = 1.0
    evaluated: int = 150

    def __post_init__(self) -> None:
        if self.turns < max(TURNS):
            raise ConfigError(
                f"ThinkerPlan.turns is {self.turns}; it must be {max(TURNS)} or more."
            )


class ThinkerTask:
    """The thinker as the loop trains it.

    Args:
        module: thinker and head.
        prompt: how messages are spelt.
        bank: what it learns from.
        held_out: voices and phrasings that it never learns from.
        plan: the make-up of a step.
        seed: of the batches.
        texts: draws at most so many typed questions with their answers, ever new ones: text costs
            nothing, and what follows from what is learnt by the number of conversations. None:
            the questions of the bank are typed.
    """

    def __init__(
        self,
        module: ThinkerModule,
        prompt: PromptFormat,
        bank: Bank,
        held_out: Bank,
        plan: ThinkerPlan | None = None,
        seed: int = 0,
        texts: Texts | None = None,
    ) -> None:
        if not bank.dialogues:
            raise ConfigError("the bank of clips holds no dialogues; make some")
        self.module: nn.Module = module
        self._own = module
        self.plan = plan or ThinkerPlan()
        self._prompt, self._bank, self._held_out, self._seed = prompt, bank, held_out, seed
        self._texts = texts or (lambda rng, turns: _words(self._talk(rng, turns, 0.0)))
        self._questions = [
            [turn.question for talk in talks for turn in talk]
            for talks in (bank.dialogues, bank.noisy)
        ]

    def groups(self) -> list[dict[str, Any]]:
        return decayed(self.module)

    def batch(self, number: int) -> LessonBatch:
        rng = np.random.default_rng((self._seed, number))
        calm = self.plan.calm
        storm = min(max(number - calm, 0) / calm, 1.0) if calm else 1.0
        lessons = (self._conversations if number % 2 else self._dictation)(rng, storm)
        return collate(lessons, self._own.audio_token, rng, storm * self.plan.disturbance)

    def losses(self, batch: LessonBatch, progress: Progress) -> Mapping[str, Tensor]:
        states, audio = self._own.states(batch)
        learnt = batch.next_ids != IGNORED
        scores = self._own.thinker.lm_head(states[learnt]).float()
        wanted = batch.next_ids[learnt]
        text = F.cross_entropy(scores, wanted)
        spelling = self._own.spelling_loss(audio, batch)
        weight = self.plan.spelling * max(0.1, 1 - progress.fraction)
        right = (scores.argmax(dim=-1) == wanted).float().mean()
        return {
            "loss": text + weight * spelling,
            "text": text,
            "spelling": spelling,
            "right": right,
        }

    def evaluate(self) -> Mapping[str, float]:
        """Shares of whole answers that are right to the letter, on held-out voices and phrasings.

        `answers` to first questions, `follow_ups` to later ones, both also heard in noise;
        `typed_answers` and `typed_follow_ups`: to the same questions, typed; `written_questions`
        and `written_replies`: clips written down.
        """
        bank, prompt, token = self._held_out, self._prompt, self._own.audio_token
        most = self.plan.evaluated
        figures = {}
        asked = {
            "": [answering(prompt, token, SYSTEM[0], talk) for talk in bank.dialogues[:most]],
            "noisy_": [answering(prompt, token, SYSTEM[0], talk) for talk in bank.noisy[:most]],
            "typed_": [typed(prompt, SYSTEM[0], _words(talk)) for talk in bank.dialogues[:most]],
        }
        for name, lessons in asked.items():
            marks = self.marks(lessons)
            figures[f"{name}answers"] = _mean([row[0] for row in marks])
            figures[f"{name}follow_ups"] = _mean([mark for row in marks for mark in row[1:]])
        questions = [d[0].question for d in bank.dialogues[:most]]
        for name, clips in (("questions", questions), ("replies", bank.sayings[:most])):
            told = self.marks([writing_down(prompt, token, clip) for clip in clips])
            figures[f"written_{name}"] = _mean([row[0] for row in told])
        return figures

    @torch.no_grad()
    def marks(self, lessons: Sequence[Lesson], size: int = 16) -> list[list[bool]]:
        """For each lesson, which of the things told in it would be told exactly so.

        Every token is the likeliest one after the right ones before it, which is the same as being
        picked by the greedy loop.
        """
        device = self._own.hearing.weight.device
        marks: list[list[bool]] = []
        for first in range(0, len(lessons), size):
            group = lessons[first : first + size]
            batch = LessonBatch(*(t.to(device) for t in collate(group, self._own.audio_token)))
            picked = self._own.thinker.lm_head(self._own.states(batch)[0]).argmax(dim=-1)
            right = (picked == batch.next_ids).cpu()
            for row, lesson in zip(right, group, strict=True):
                marks.append([bool(row[at - 1 : at - 1 + n].all()) for at, n in lesson.told])
        return marks

    # -- what a batch is made of -------------------------------------------------------------

    def _conversations(self, rng: np.random.Generator, storm: float) -> list[Lesson]:
        turns = int(rng.choice(TURNS, p=TURN_SHARES))
        lessons = []
        for _ in range(self.plan.turns // turns):
            lessons.append(
                answering(
                    self._prompt,
                    self._own.audio_token,
                    _system(rng),
                    self._talk(rng, turns, storm * self.plan.noisy),
                    write_down=bool(rng.random() < self.plan.write_down),
                )
            )
        turns *= 2  # a typed question takes half the positions of a spoken one
        for _ in range(self.plan.typed // turns):
            words: list[tuple[str, str]] = []
            while len(words) < turns:
                words += self._texts(rng, turns - len(words))
            lessons.append(typed(self._prompt, _system(rng), words[:turns]))
        return lessons

    def _talk(self, rng: np.random.Generator, turns: int, noisy: float) -> list[Asked]:
        """One dialogue after another: each begins with an opener."""
        talk: list[Asked] = []
        while len(talk) < turns:
            talks = self._bank.noisy if rng.random() < noisy else self._bank.dialogues
            talk += talks[rng.integers(len(talks))]
        return talk[:turns]

    def _dictation(self, rng: np.random.Generator, storm: float) -> list[Lesson]:
        """Clips of about the same length: a batch is as long as its longest."""

        def drawn(place: int) -> Heard:
            noisy = rng.random() < storm * self.plan.noisy
            clips: Sequence[Heard] = self._questions[noisy]
            if not place % 2:
                clips = self._bank.sayings or clips
            return clips[int(rng.integers(len(clips)))]

        count = self.plan.clips
        many = [drawn(place) for place in range(LENGTHS * count)]
        many.sort(key=lambda clip: clip.raw.shape[1])
        first = int(rng.integers(LENGTHS)) * count
        token = self._own.audio_token
        return [writing_down(self._prompt, token, clip) for clip in many[first : first + count]]


def _words(talk: Sequence[Asked]) -> list[tuple[str, str]]:
    return [(turn.question.text, turn.answer) for turn in talk]


def _system(rng: np.random.Generator) -> str:
    return SYSTEM[0] if rng.random() < 0.5 else SYSTEM[rng.integers(1, len(SYSTEM))]


def _mean(marks: Sequence[bool]) -> float:
    return float(np.mean(marks)) if marks else 0.0
