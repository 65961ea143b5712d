"""What a reply is judged by: its words, its end, its pitch and its voice.

Its words are written down by the ear of a thinker that learnt to (`training.ear`); whose voice it
is, is asked of one clip each of a dozen voices. Recordings can be judged as replies are: what they
reach is the most that these judges ever find. Knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from chroma_plugin.audio import Samples
from chroma_plugin.errors import AudioError
from chroma_plugin.evaluation.conversation import Reply, Talk
from chroma_plugin.evaluation.speakers import SpeakerMeasure
from chroma_plugin.evaluation.voice_traits import Vector
from chroma_plugin.reply import EndReason
from chroma_plugin.training.codec.judge import pitches
from chroma_plugin.training.lessons import words_of
from chroma_plugin.training.records import Clip, Records

VOICES = 12
"""Among so many voices the prompt's is to be the nearest."""
PITCH_WITHIN = 0.10

WriteDown = Callable[[Samples], str]
"""What is said in a reply, float32 at 24 kHz."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A reply, judged.

    Attributes:
        talk: the number of its conversation.
        turn: its place there, from 1 on.
        long: the conversation is made of several dialogues.
        question, wanted: what was asked, and the right answer.
        text: what the thinker chose to say.
        written: what the ear understood.
        right: the text is the right answer.
        understood: what was written down is the text, a word or more.
        answered: what was written down is the right answer.
        ended: the reply ended by itself.
        pitch: its median pitch is within 10% of the prompt's.
        pitch_hz, prompt_hz: these; None where there is none.
        voice: the prompt's voice is the nearest of twelve; None with fewer voices than that.
        seconds: its length.
        made_s: wall time of its making.
        error: why it failed; "" if it did not.
    """

    talk: int
    turn: int
    long: bool
    question: str
    wanted: str
    text: str
    written: str
    right: bool
    understood: bool
    answered: bool
    ended: bool
    pitch: bool
    pitch_hz: float | None
    prompt_hz: float | None
    voice: bool | None
    seconds: float
    made_s: float
    error: str


class Gallery:
    """One clip each of several voices, to find a voice among.

    Args:
        records: whose speakers they are.
        measure: of the likeness of voices.
        seed: what the others beside a voice are drawn by.
        voices: how many there are to choose from.
        through: what is done to the clips before: the codec that replies come out of. It colours
            all voices alike, which is no likeness and no difference.
    """

    def __init__(
        self,
        records: Records,
        measure: SpeakerMeasure,
        seed: int = 0,
        voices: int = VOICES,
        through: Callable[[Samples], Samples] = lambda samples: samples,
    ) -> None:
        self._measure, self._seed, self._voices = measure, seed, voices
        self._through = through
        self._known: dict[tuple[str, int], Vector] = {}
        self._speakers: dict[str, tuple[str, tuple[Clip, ...]]] = {}
        for number in records.dialogues:
            record = records[number]
            self._speakers[record.speaker] = record.voice, record.references

    @property
    def full(self) -> bool:
        """Whether there are as many different voices as should be chosen from."""
        return len({voice for voice, _ in self._speakers.values()}) >= self._voices

    def beside(self, talk: Talk) -> tuple[Clip, list[Clip]]:
        """Another clip of the talk's voice than its prompt, if there is one, and the others'."""
        voice, own = self._speakers[talk.speaker]
        clip = next((c for c in own if _place(c) != _place(talk.prompt)), talk.prompt)
        others: dict[str, Clip] = {}
        for other, clips in self._speakers.values():
            if other != voice:
                others.setdefault(other, clips[0])
        names = sorted(others)
        rng = np.random.default_rng([self._seed, crc32(talk.speaker.encode())])
        drawn = rng.permutation(len(names))[: self._voices - 1]
        return clip, [others[names[i]] for i in sorted(drawn)]

    def nearest(self, audio: Samples, talk: Talk) -> bool:
        """Whether the talk's own voice is the nearest one; not if none can be heard."""
        try:
            heard = self._measure.embed(audio)
        except AudioError:
            return False
        own, others = self.beside(talk)
        likeness = self._measure.compare(heard, self._vector(own))
        return all(self._measure.compare(heard, self._vector(c)) < likeness for c in others)

    def _vector(self, clip: Clip) -> Vector:
        if _place(clip) not in self._known:
            self._known[_place(clip)] = self._measure.embed(self._through(clip.samples()))
        return self._known[_place(clip)]


class Judge:
    """Judges replies.

    Args:
        write_down: the ear.
        gallery: of voices.
    """

    def __init__(self, write_down: WriteDown, gallery: Gallery) -> None:
        self._write_down, self._gallery = write_down, gallery
        self._pitches: dict[str, float | None] = {}

    def judge(self, talks: Sequence[Talk], replies: Sequence[Sequence[Reply]]) -> list[Judged]:
        """All replies of some conversations.

        Args:
            talks: the conversations.
            replies: of each as many as it has turns.
        """
        return [
            self._judged(number, place, talk, reply)
            for number, (talk, row) in enumerate(zip(talks, replies, strict=True))
            for place, reply in zip(range(1, len(talk.turns) + 1), row, strict=True)
        ]

    def _judged(self, number: int, place: int, talk: Talk, reply: Reply) -> Judged:
        turn = talk.turns[place - 1]
        wanted, text = words_of(turn.answer.text), words_of(reply.text)
        written = self._write_down(reply.audio)
        if talk.speaker not in self._pitches:
            self._pitches[talk.speaker] = median_pitch(talk.voice.samples)
        prompt_hz, pitch_hz = self._pitches[talk.speaker], median_pitch(reply.audio)
        alike = False
        if prompt_hz is not None and pitch_hz is not None:
            alike = abs(pitch_hz / prompt_hz - 1) <= PITCH_WITHIN
        return Judged(
            talk=number,
            turn=place,
            long=talk.long,
            question=turn.question.text,
            wanted=turn.answer.text,
            text=reply.text,
            written=written,
            right=not reply.error and text == wanted,
            understood=words_of(written) == text != "",
            answered=words_of(written) == wanted,
            ended=reply.ended,
            pitch=alike,
            pitch_hz=pitch_hz,
            prompt_hz=prompt_hz,
            voice=self._gallery.nearest(reply.audio, talk) if self._gallery.full else None,
            seconds=reply.seconds,
            made_s=reply.made_s,
            error=reply.error,
        )


def recordings(
    talks: Sequence[Talk], through: Callable[[Samples], Samples] = lambda samples: samples
) -> list[list[Reply]]:
    """The recorded answers of some talks in the place of replies: the best there can be.

    Args:
        talks: the conversations.
        through: what is done to them before: a codec.
    """
    return [
        [
            Reply(turn.answer.text, through(turn.answer.samples()), EndReason.END_OF_SPEECH)
            for turn in talk.turns
        ]
        for talk in talks
    ]


def median_pitch(samples: Samples) -> float | None:
    """In Hz, of the voiced windows; None if there are none.

    Args:
        samples: float32, 24 kHz.
    """
    found = pitches(samples)
    voiced = found[~np.isnan(found)]
    return float(np.median(voiced)) if len(voiced) else None


def _place(clip: Clip) -> tuple[str, int]:
    return str(clip.shard.path), clip.place
