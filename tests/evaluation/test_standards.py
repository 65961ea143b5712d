"""What replies are judged by: words, ends, pitch, and the nearest voice of twelve."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from chroma_plugin.audio import OUTPUT_RATE_HZ, Samples
from chroma_plugin.evaluation.conversation import Reply, Talk, talks_of
from chroma_plugin.evaluation.speakers import LightMeasure
from chroma_plugin.evaluation.standards import Gallery, Judge, median_pitch, recordings
from chroma_plugin.reply import EndReason
from chroma_plugin.training.data import DataPlan, build
from chroma_plugin.training.records import Records
from tests.evaluation.conftest import vowels
from tests.training.test_data import Hum

VOICES = 14


class Singer(Hum):
    """Voices of vowels: pitch and tract by number, none twice; a text sets the length."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = -1

    def draw(self, rng: np.random.Generator, *, held_out: bool = False) -> int:
        self.drawn += 1
        return self.drawn

    def speak(self, text: str, voice: int) -> Samples:
        whole, count = song(voice % VOICES), max(len(text) * OUTPUT_RATE_HZ // 18, 14_400)
        return np.roll(whole, -777 * len(text))[:count]


@cache
def song(voice: int) -> Samples:
    """5 s of a voice, of which texts are pieces."""
    return vowels(5.0, 90.0 * 1.08**voice, 0.8 + 0.05 * (voice * 5 % VOICES), seed=voice)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    folder = tmp_path_factory.mktemp("records")
    plan = DataPlan(0, VOICES, turns=(1, 1), speaker_dialogues=1, shard_dialogues=VOICES)
    build(plan, folder, speaker=Singer())
    return Records(folder, "heldout")


@pytest.fixture(scope="module")
def gallery(records: Records) -> Gallery:
    return Gallery(records, LightMeasure())


@pytest.fixture
def talks(records: Records) -> list[Talk]:
    return talks_of(records)[0]


def test_a_voice_is_sought_among_twelve_by_another_clip_than_its_prompt(
    gallery: Gallery, talks: list[Talk], records: Records
) -> None:
    assert gallery.full
    for talk in talks:
        own, others = gallery.beside(talk)
        assert own.text != talk.prompt.text
        names = {(clip.shard.path, clip.place) for clip in [own, *others]}
        assert len(names) == 12 and (talk.prompt.shard.path, talk.prompt.place) not in names
        assert gallery.beside(talk) == (own, others)
    assert Gallery(records, LightMeasure(), seed=1).beside(talks[0]) != gallery.beside(talks[0])


def test_a_voice_of_one_clip_only_is_compared_with_it(records: Records, talks: list[Talk]) -> None:
    gallery = Gallery(records, LightMeasure())
    voice, clips = gallery._speakers[talks[0].speaker]
    gallery._speakers[talks[0].speaker] = voice, clips[:1]
    assert gallery.beside(talks[0])[0] == talks[0].prompt


def test_what_colours_every_reply_colours_the_voices_it_is_sought_among(
    records: Records, talks: list[Talk]
) -> None:
    def harsh(samples: Samples) -> Samples:
        return np.diff(samples, n=3, prepend=np.zeros(3, np.float32)).astype(np.float32)

    plain = Gallery(records, LightMeasure())
    through = Gallery(records, LightMeasure(), through=harsh)
    answers = [(harsh(talk.turns[0].answer.samples()), talk) for talk in talks]
    found = [sum(g.nearest(audio, talk) for audio, talk in answers) for g in (plain, through)]
    assert found[1] >= 2 * found[0], found


def test_the_right_voice_is_the_nearest_and_another_is_not(
    gallery: Gallery, talks: list[Talk]
) -> None:
    right = [gallery.nearest(talk.turns[0].answer.samples(), talk) for talk in talks]
    assert sum(right) >= 0.6 * len(talks)
    wrong = [
        gallery.nearest(talks[(n + 5) % VOICES].turns[0].answer.samples(), talk)
        for n, talk in enumerate(talks)
    ]
    assert sum(wrong) <= 0.2 * len(talks)
    assert not gallery.nearest(np.zeros(OUTPUT_RATE_HZ, np.float32), talks[0])
    assert not gallery.nearest(talks[0].voice.samples[:500], talks[0])


def test_a_median_pitch() -> None:
    for hz in (110.0, 200.0):
        assert median_pitch(vowels(1.2, hz, 1.0, seed=3)) == pytest.approx(hz, rel=0.05)
    assert median_pitch(np.zeros(24_000, np.float32)) is None
    assert median_pitch(np.zeros(0, np.float32)) is None


def test_a_reply_is_judged(gallery: Gallery, talks: list[Talk]) -> None:
    talk = talks[0]
    answer, audio = talk.turns[0].answer.text, talk.turns[0].answer.samples()
    heard = {"text": answer.upper()}
    judge = Judge(lambda samples: heard["text"], gallery)

    def of(reply: Reply, asked: Talk = talk) -> object:
        (judged,) = judge.judge([asked], [[reply]])
        return (judged.right, judged.understood, judged.answered, judged.ended, judged.pitch)

    good = Reply(answer, audio, EndReason.END_OF_SPEECH, 0.5)
    assert of(good) == (True, True, True, True, True)
    assert of(replace(good, reason=EndReason.MAX_SECONDS)) == (True, True, True, False, True)
    assert of(replace(good, text="No.")) == (False, False, True, True, True)
    heard["text"] = "no"
    assert of(replace(good, text="No.")) == (False, True, False, True, True)
    assert of(good) == (True, False, False, True, True)
    other = vowels(1.5, 300.0, 1.0, seed=1)
    assert of(replace(good, audio=other))[4] is False  # type: ignore[index]
    heard["text"] = ""
    assert of(Reply(error="busy")) == (False, False, False, False, False)
    (judged,) = judge.judge([talk], [[good]])
    assert (judged.talk, judged.turn, judged.long) == (0, 1, False)
    assert (judged.wanted, judged.question) == (answer, talk.turns[0].question.text)
    assert judged.seconds == pytest.approx(len(audio) / OUTPUT_RATE_HZ)
    assert judged.made_s == 0.5 and judged.error == ""


def test_with_few_voices_none_is_the_nearest(records: Records, talks: list[Talk]) -> None:
    gallery = Gallery(records, LightMeasure(), voices=VOICES + 1)
    assert not gallery.full
    judged = Judge(lambda samples: "", gallery).judge(talks[:1], recordings(talks[:1]))
    assert judged[0].voice is None


def test_recordings_stand_in_for_replies(talks: list[Talk]) -> None:
    plain, louder = recordings(talks), recordings(talks, lambda samples: 2 * samples)
    for talk, one, other in zip(talks, plain, louder, strict=True):
        assert one[0].text == talk.turns[0].answer.text and one[0].ended
        assert np.array_equal(2 * one[0].audio, other[0].audio)
