"""A bank of clips: made of records, kept in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chroma_plugin.audio import Samples
from chroma_plugin.config import DEFAULT_INSTRUCTIONS
from chroma_plugin.errors import AudioError, CheckpointError
from chroma_plugin.model.listener import LogMel
from chroma_plugin.model.prompt import feature_extractor
from chroma_plugin.training.answers import Domain
from chroma_plugin.training.bank import (
    Bank,
    as_heard,
    further_questions,
    make_bank,
    vocabulary_texts,
)
from chroma_plugin.training.data import DataPlan, build
from chroma_plugin.training.lessons import WRITE_DOWN, Asked
from chroma_plugin.training.records import Records
from tests.miniature import MINIATURE
from tests.training.test_data import Hum


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    folder = tmp_path_factory.mktemp("records")
    plan = DataPlan(train=4, heldout=0, shard_dialogues=4, speaker_dialogues=2)
    build(plan, folder, speaker=Hum())
    return Records(folder)


@pytest.fixture(scope="module")
def mel() -> LogMel:
    return LogMel(feature_extractor(MINIATURE))


@pytest.fixture(scope="module")
def bank(records: Records, mel: LogMel) -> Bank:
    return make_bank(records, mel, say=str)


def test_every_dialogue_and_every_clip_is_in_it(records: Records, bank: Bank) -> None:
    assert len(bank.dialogues) == len(bank.noisy) == len(records.dialogues) == 4
    for number, *talks in zip(records.dialogues, bank.dialogues, bank.noisy, strict=True):
        asked = [(t.question.text, t.answer.text) for t in records[number].turns]
        for talk in talks:
            assert [(t.question.text, t.answer) for t in talk] == asked


def test_noise_fills_what_is_silent_near_by(bank: Bank) -> None:
    def depth(talks: tuple[tuple[Asked, ...], ...]) -> float:
        clips = [turn.question.raw.astype(np.float32) for talk in talks for turn in talk]
        return float(np.mean([np.median(clip) - clip.max() for clip in clips]))

    assert depth(bank.noisy) > depth(bank.dialogues) + 0.3


def test_as_much_is_heard_as_there_is(records: Records, bank: Bank) -> None:
    assert [clip.text for clip in bank.sayings] == [clip.text for clip in records.clips]
    seconds = sum(len(clip) for clip in records.clips) / 24_000
    assert bank.minutes * 60 > seconds


def test_the_same_seed_hears_the_same(records: Records, mel: LogMel, bank: Bank) -> None:
    again = make_bank(records, mel, say=str)
    other = make_bank(records, mel, seed=1, say=str)
    pairs = zip(bank.clips, again.clips, other.clips, strict=True)
    assert all(np.array_equal(a.raw, b.raw) for a, b, _ in pairs)
    first = (next(bank.clips).raw, next(other.clips).raw)
    assert first[0].shape != first[1].shape or not np.array_equal(*first)


def test_every_second_reply_goes_through_what_is_given(records: Records, mel: LogMel) -> None:
    through: list[int] = []

    def silent(samples: Samples) -> Samples:
        through.append(len(samples))
        return np.zeros_like(samples)

    made = make_bank(records, mel, through=silent, say=str)
    assert len(through) == len(records.clips) // 2
    loudest = [float(clip.raw.max()) for clip in made.sayings]
    assert max(loudest[1::2]) < min(loudest[::2]) - 3


@pytest.mark.parametrize(("copies", "expected"), [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0)])
def test_as_many_go_through_it_as_are_asked_for(
    records: Records, mel: LogMel, copies: float, expected: float
) -> None:
    through: list[int] = []

    def count(samples: Samples) -> Samples:
        through.append(len(samples))
        return samples

    make_bank(records, mel, through=count, copies=copies, say=str)
    assert len(through) == int(len(records.clips) * expected)


def test_further_questions_come_after_those_of_the_records(
    records: Records, mel: LogMel, bank: Bank
) -> None:
    further = list(further_questions(5, Domain(), Hum(), mel, turns=(2, 2), workers=3, say=str))
    again = list(further_questions(5, Domain(), Hum(), mel, turns=(2, 2), workers=1, say=str))
    assert len(further) == 5
    for (near, far), (other, _) in zip(further, again, strict=True):
        assert [t.answer for t in near] == [t.answer for t in far] and len(near) <= 2
        assert all(
            np.array_equal(a.question.raw, b.question.raw) for a, b in zip(near, other, strict=True)
        )
    assert len({near[0].question.text for near, _ in further}) > 1
    whole = make_bank(records, mel, further=further, say=str)
    kept = len(records.dialogues)
    assert [d[0].question.text for d in whole.dialogues[:kept]] == [
        d[0].question.text for d in bank.dialogues
    ]
    assert whole.dialogues[kept:] == tuple(near for near, _ in further)
    assert whole.noisy[kept:] == tuple(far for _, far in further)


def test_a_question_that_cannot_be_spoken_is_left_out(mel: LogMel) -> None:
    class Hoarse(Hum):
        def speak(self, text: str, voice: int) -> Samples:
            if len(text) % 2:
                raise AudioError("nothing can be heard")
            return super().speak(text, voice)

    made = list(further_questions(12, Domain(), Hoarse(), mel, turns=(1, 1), say=str))
    assert 0 < len(made) < 12
    assert all(len(near[0].question.text) % 2 == 0 for near, _ in made)


def test_it_comes_back_from_a_file(bank: Bank, tmp_path: Path) -> None:
    path = tmp_path / "bank.npy"
    assert Bank.load(path) is None
    bank.save(path, "some key")
    assert Bank.load(path, "another") is None
    loaded = Bank.load(path, "some key")
    assert loaded is not None
    for one, other in zip(bank.clips, loaded.clips, strict=True):
        assert one.text == other.text and np.array_equal(one.raw, other.raw)
    for one, other in ((bank.dialogues, loaded.dialogues), (bank.noisy, loaded.noisy)):
        answers = [[t.answer for t in d] for d in one]
        assert [[t.answer for t in d] for d in other] == answers


def test_a_damaged_file_is_told(bank: Bank, tmp_path: Path) -> None:
    path = tmp_path / "bank.npy"
    bank.save(path)
    np.save(path, np.zeros((3, 128), np.float16))
    with pytest.raises(CheckpointError, match=r"bank\.npy.*Delete it"):
        Bank.load(path)
    path.with_suffix(".json").write_text("{")
    with pytest.raises(CheckpointError, match="Delete it"):
        Bank.load(path)


def test_replies_are_heard_at_16_khz_with_silence_around() -> None:
    loud = np.full(24_000, 0.5, np.float32)
    lengths = set()
    for seed in range(10):
        heard = as_heard(np.random.default_rng(seed), loud)
        assert 16_000 <= len(heard) <= 16_000 * 1.7
        assert np.abs(heard).max() > 0.4
        lengths.add(len(heard))
    assert len(lengths) == 10


def test_a_tokenizer_learns_from_what_is_said_and_from_the_prompts() -> None:
    texts = vocabulary_texts()
    assert texts == vocabulary_texts()
    assert {DEFAULT_INSTRUCTIONS, WRITE_DOWN, "system", "user", "assistant"} <= set(texts)
    assert "The capital of France is Paris." in texts
