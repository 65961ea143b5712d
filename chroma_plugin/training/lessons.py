"""What a thinker learns from: conversations heard and answered, and clips written down, as the
token ids that the served chat template spells. Knows no weights.

Spectrograms are kept as the energies that `LogMel` gives; level and noise are changed there, which
costs nothing, and the rest of the features (floor, scale, blocks of 2 s) is as in `Listener`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chroma_plugin.audio import Samples
from chroma_plugin.config import DEFAULT_INSTRUCTIONS, TRANSCRIPT_INSTRUCTIONS
from chroma_plugin.model.listener import FLOOR, LogMel
from chroma_plugin.model.prompt import PromptFormat
from chroma_plugin.model.thinker import BLOCK_FRAMES, audio_positions

WRITE_DOWN = TRANSCRIPT_INSTRUCTIONS
"""The instruction that makes a thinker trained here transcribe the user instead of answering."""
SYSTEM = (
    DEFAULT_INSTRUCTIONS,
    "You are Chroma, a friendly voice assistant.",
    "You are a friendly guide.",
    "Answer in one short sentence.",
)
"""System prompts of training; the first is as frequent as the others together."""
IGNORED = -100
"""A position whose next token is not learnt."""
SHORT_FRAMES = BLOCK_FRAMES // 2
LETTERS = "abcdefghijklmnopqrstuvwxyz' "
"""What the hearing head spells; 0 is its blank."""

Energies = NDArray[np.float16]
"""Log10 mel energies of a clip, `[mels, frames]`."""


def energies(mel: LogMel, samples: Samples) -> Energies:
    """The spectrogram of a whole clip as `Listener` hears it, before its floor.

    Args:
        mel: the checkpoint's spectrogram.
        samples: float32 mono at 16 kHz, longer than half a window.

    Returns:
        float16 `[mels, ceil(n / hop) + 2]`; the last two frames count for the peak only.
    """
    half = mel.window_samples // 2
    wanted = -(-len(samples) // mel.hop)
    length = (wanted + 1) * mel.hop + mel.window_samples
    padded = np.zeros(length, np.float32)
    heard = np.concatenate([samples[half:0:-1], samples])
    padded[: len(heard)] = heard[:length]
    return np.asarray(mel(torch.from_numpy(padded)).numpy(), dtype=np.float16)


def features(raw: NDArray[np.floating]) -> Tensor:
    """What the audio tower reads: floor and scale put on, the two last frames dropped.

    Args:
        raw: of `energies`.

    Returns:
        float32 `[mels, frames]`.
    """
    whole = torch.from_numpy(raw.astype(np.float32))
    floor = whole.max() - FLOOR
    scaled: Tensor = (whole[:, :-2].clamp(min=floor) + 4.0) / 4.0
    return scaled


def disturbed(
    rng: np.random.Generator, raw: Energies, strength: float = 1.0
) -> NDArray[np.floating]:
    """The clip louder or softer, in noise, and with a stripe missing, each at times.

    Args:
        rng: what it is drawn by.
        raw: of `energies`.
        strength: how likely, and how much louder or softer; 0 leaves it as it is.
    """
    if strength <= 0:
        return raw
    mels, frames = raw.shape
    out = raw.astype(np.float32)
    out += rng.uniform(-1.0, 0.6) * strength
    if rng.random() < 0.6 * strength:
        tilt = np.interp(np.arange(mels), np.linspace(0, mels - 1, 5), rng.normal(0, 0.5, 5))
        speech = np.percentile(out.max(axis=0), 80)
        level = speech - rng.uniform(1.2, 4.0)  # log10: 12 to 40 dB below the louder frames
        noise = level + tilt[:, None] + rng.normal(0, 0.25, (mels, frames))
        out = np.logaddexp(out * np.log(10), noise * np.log(10)) / np.log(10)
    lowest = float(out.max() - FLOOR)
    if rng.random() < 0.3 * strength:
        width = int(rng.integers(1, 13))
        at = int(rng.integers(0, mels - width))
        out[at : at + width] = lowest
    if rng.random() < 0.3 * strength:
        width = int(rng.integers(1, 9))
        at = int(rng.integers(0, max(frames - width, 1)))
        out[:, at : at + width] = lowest
    return out


def words_of(text: str) -> str:
    """Text as transcripts are compared: small letters, no punctuation, single blanks."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    return " ".join("".join(c if c.isalnum() or c == "'" else " " for c in plain).split())


def spelt(text: str) -> list[int]:
    """Text as ids of the hearing head, 1 and up; what it has no letter for is left out."""
    return [LETTERS.index(c) + 1 for c in words_of(text) if c in LETTERS]


@dataclass(frozen=True, slots=True)
class Heard:
    """Something said.

    Attributes:
        raw: of `energies`.
        text: what was said.
    """

    raw: Energies
    text: str

    @property
    def positions(self) -> int:
        """Thinker positions that it takes."""
        return sum(audio_positions(n) for n in self.blocks)

    @property
    def blocks(self) -> list[int]:
        """Mel frames of each of its blocks."""
        frames = self.raw.shape[1] - 2
        return [min(BLOCK_FRAMES, frames - i) for i in range(0, frames, BLOCK_FRAMES)]


@dataclass(frozen=True, slots=True)
class Asked:
    """A spoken question and the text that answers it."""

    question: Heard
    answer: str


@dataclass(slots=True)
class Lesson:
    """One sequence of the thinker.

    Attributes:
        ids: its tokens; the audio token at every position of audio.
        learnt: bool for each: whether it is learnt to come next.
        clips: what is heard, in order.
        told: for each piece that is learnt: the first of its tokens, and how many.
    """

    ids: list[int] = field(default_factory=list)
    learnt: list[bool] = field(default_factory=list)
    clips: list[Heard] = field(default_factory=list)
    told: list[tuple[int, int]] = field(default_factory=list)

    def read(self, ids: Sequence[int]) -> None:
        self.ids += ids
        self.learnt += [False] * len(ids)

    def hear(self, prompt: PromptFormat, clip: Heard, audio_token: int) -> None:
        self.read(prompt.audio_before)
        self.read([audio_token] * clip.positions)
        self.read(prompt.audio_after)
        self.clips.append(clip)

    def tell(self, prompt: PromptFormat, text: str) -> None:
        """The assistant's message; what follows the token that ends it is not learnt."""
        self.read(prompt.reply_open)
        ids, close = prompt.encode(text), prompt.reply_close
        self.told.append((len(self.ids), len(ids) + 1))
        self.ids += [*ids, *close]
        self.learnt += [True] * (len(ids) + 1) + [False] * (len(close) - 1)


def answering(
    prompt: PromptFormat,
    audio_token: int,
    system: str,
    turns: Sequence[Asked],
    *,
    write_down: bool = False,
) -> Lesson:
    """A conversation, every answer learnt.

    Args:
        prompt: how messages are spelt.
        audio_token: stands for a position of audio.
        system: the system prompt.
        turns: questions and answers in order.
        write_down: the last question is to be written down instead of answered, by an instruction
            for this one reply, as `Session.respond(instructions=...)` gives it.
    """
    lesson = Lesson()
    lesson.read(prompt.system(system))
    for place, turn in enumerate(turns):
        lesson.hear(prompt, turn.question, audio_token)
        if write_down and place == len(turns) - 1:
            lesson.read(prompt.system(WRITE_DOWN))
            lesson.tell(prompt, turn.question.text)
        else:
            lesson.tell(prompt, turn.answer)
    return lesson


def typed(prompt: PromptFormat, system: str, turns: Sequence[tuple[str, str]]) -> Lesson:
    """A conversation with its questions typed, every answer learnt.

    Args:
        prompt: how messages are spelt.
        system: the system prompt.
        turns: questions and answers in order.
    """
    lesson = Lesson()
    lesson.read(prompt.system(system))
    for question, answer in turns:
        lesson.read(prompt.user(question))
        lesson.tell(prompt, answer)
    return lesson


def writing_down(prompt: PromptFormat, audio_token: int, clip: Heard) -> Lesson:
    """One clip, written down because the system prompt says so."""
    lesson = Lesson()
    lesson.read(prompt.system(WRITE_DOWN))
    lesson.hear(prompt, clip, audio_token)
    lesson.tell(prompt, clip.text)
    return lesson


class LessonBatch(NamedTuple):
    """Lessons side by side, filled up at their ends.

    Attributes:
        ids: int64 `[B, T]`.
        next_ids: int64 `[B, T]`: what is learnt to come next, or `IGNORED`.
        is_audio: bool `[B, T]`.
        mel: float32 `[N, mels, 200]`: the blocks of the clips.
        frames: int64 `[N]`: mel frames of each.
        short_mel: float32 `[S, mels, 100]`: those of at most 100 frames, by themselves: a fifth
            less to compute.
        short_frames: int64 `[S]`.
        heard_at: int64 `[H]`: for the positions of all clips in order, their places among those of
            all blocks, the short ones last.
        clip_at: int64 `[C, P]`: for the positions of each clip, which of all heard ones they are.
        clip_positions: int64 `[C]`.
        letters: int64 `[C, L]`: of `spelt`, filled up with 0.
        letter_counts: int64 `[C]`.
    """

    ids: Tensor
    next_ids: Tensor
    is_audio: Tensor
    mel: Tensor
    frames: Tensor
    short_mel: Tensor
    short_frames: Tensor
    heard_at: Tensor
    clip_at: Tensor
    clip_positions: Tensor
    letters: Tensor
    letter_counts: Tensor


def collate(
    lessons: Sequence[Lesson],
    audio_token: int,
    rng: np.random.Generator | None = None,
    strength: float = 1.0,
) -> LessonBatch:
    """Puts lessons side by side.

    Args:
        lessons: one or more.
        audio_token: stands for a position of audio.
        rng: draws how clips are disturbed; None: they are left as they are.
        strength: of `disturbed`.
    """
    length = max(len(lesson.ids) for lesson in lessons)
    ids = torch.zeros(len(lessons), length, dtype=torch.int64)
    next_ids = torch.full_like(ids, IGNORED)
    for row, lesson in enumerate(lessons):
        at = len(lesson.ids)
        own = torch.tensor(lesson.ids)
        ids[row, :at] = own
        learnt = torch.tensor(lesson.learnt)[1:]
        next_ids[row, : at - 1] = own[1:].where(learnt, torch.tensor(IGNORED))
    clips = [clip for lesson in lessons for clip in lesson.clips]
    blocks: list[Tensor] = []
    for clip in clips:
        raw = clip.raw if rng is None else disturbed(rng, clip.raw, strength)
        blocks += features(raw).split(BLOCK_FRAMES, dim=1)
    (mel, frames), (short_mel, short_frames) = (
        _stacked([b for b in blocks if (b.shape[1] <= SHORT_FRAMES) is short], frames)
        for short, frames in ((False, BLOCK_FRAMES), (True, SHORT_FRAMES))
    )
    spelling = [spelt(clip.text) for clip in clips]
    return LessonBatch(
        ids=ids,
        next_ids=next_ids,
        is_audio=ids == audio_token,
        mel=mel,
        frames=frames,
        short_mel=short_mel,
        short_frames=short_frames,
        heard_at=_places([block.shape[1] for block in blocks]),
        clip_at=_filled(_runs([clip.positions for clip in clips])),
        clip_positions=torch.tensor([clip.positions for clip in clips]),
        letters=_filled(spelling),
        letter_counts=torch.tensor([len(letters) for letters in spelling]),
    )


def _stacked(blocks: Sequence[Tensor], width: int) -> tuple[Tensor, Tensor]:
    """Blocks of at most `width` frames side by side, and how many frames each has."""
    mels = blocks[0].shape[0] if blocks else 1
    mel = torch.zeros(len(blocks), mels, width)
    for row, block in enumerate(blocks):
        mel[row, :, : block.shape[1]] = block
    return mel, torch.tensor([block.shape[1] for block in blocks], dtype=torch.int64)


def _places(frames: Sequence[int]) -> Tensor:
    """Where the positions of each block stand among those of all, the short ones last."""
    wide, narrow = audio_positions(BLOCK_FRAMES), audio_positions(SHORT_FRAMES)
    long, short = 0, wide * sum(n > SHORT_FRAMES for n in frames)
    places: list[int] = []
    for count in frames:
        first = short if count <= SHORT_FRAMES else long
        places += range(first, first + audio_positions(count))
        if count <= SHORT_FRAMES:
            short += narrow
        else:
            long += wide
    return torch.tensor(places)


def _runs(counts: Sequence[int]) -> Iterator[range]:
    """0, 1, 2, ... cut into runs of so many."""
    first = 0
    for count in counts:
        yield range(first, first + count)
        first += count


def _filled(rows: Iterator[range] | Sequence[Sequence[int]]) -> Tensor:
    """Rows of different lengths as one tensor, filled up with 0."""
    kept = [torch.tensor(list(row), dtype=torch.int64) for row in rows]
    if not kept:
        return torch.zeros(0, 0, dtype=torch.int64)
    return torch.nn.utils.rnn.pad_sequence(kept, batch_first=True)
