"""Records: made, broken off, gone on with, read, split, and the same for the same seed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from chroma_plugin.audio import OUTPUT_RATE_HZ, Samples
from chroma_plugin.errors import AudioError, ChromaError, ConfigError
from chroma_plugin.training import data, domain
from chroma_plugin.training.data import DataPlan, Summary, build
from chroma_plugin.training.records import Records

PLAN = DataPlan(train=12, heldout=4, new_voices=2, new_sentences=2, shard_dialogues=4,
                speaker_dialogues=2, turns=(1, 3))  # fmt: skip


@dataclass
class Hum:
    """A speaker of hums: a voice is a pitch, a text sets the length."""

    fails_on: Callable[[str, int], bool] | None = None
    spoken: list[tuple[str, int]] = field(default_factory=list)

    def draw(self, rng: np.random.Generator, *, held_out: bool = False) -> int:
        return int(rng.integers(200, 300) if held_out else rng.integers(100, 200))

    def describe(self, voice: int) -> str:
        return f"hum {voice}"

    def speak(self, text: str, voice: int) -> Samples:
        self.spoken.append((text, voice))
        if self.fails_on and self.fails_on(text, voice):
            raise AudioError(f"cannot hum {text!r}")
        time = np.arange(len(text) * OUTPUT_RATE_HZ // 15) / OUTPUT_RATE_HZ
        return (0.1 * np.sin(2 * np.pi * voice * time)).astype(np.float32)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("records")
    build(PLAN, where, speaker=Hum())
    return where


# -- making --------------------------------------------------------------------------------------


def test_every_split_has_its_dialogues_and_progress_says_so(tmp_path: Path) -> None:
    told: list[Summary] = []
    done = build(PLAN, tmp_path, told.append, speaker=Hum())
    assert (done.planned, done.dialogues, done.found, done.broken) == (20, 20, 0, 0)
    assert [part.dialogues for part in told] == [4, 8, 12, 16, 18, 20]
    counts = {split: len(Records(tmp_path, split).dialogues) for split in data.SPLITS}
    assert counts == {"train": 12, "heldout": 4, "new_voices": 2, "new_sentences": 2}
    assert done.turns == sum(len(Records(tmp_path, split)) for split in data.SPLITS)
    speakers = 6 + 2 + 1 + 1
    assert done.clips == 2 * done.turns + 2 * speakers
    assert done.audio_s > 60 and done.clips_per_s > 0 and "20/20 dialogues" in str(done)


def test_the_same_plan_gives_the_same_bytes_whoever_makes_them(
    folder: Path, tmp_path: Path
) -> None:
    build(PLAN, tmp_path / "processes", speaker=Hum(), workers=2, threads=2)
    assert contents(tmp_path / "processes") == contents(folder)
    build(replace(PLAN, seed=1), tmp_path / "seed", speaker=Hum())
    assert contents(tmp_path / "seed") != contents(folder)


def test_what_is_there_is_not_made_again(folder: Path, tmp_path: Path) -> None:
    def broken_off(so_far: Summary) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(PLAN, tmp_path, broken_off, speaker=Hum())
    first = tmp_path / "train-00000.safetensors"
    made = first.stat().st_mtime_ns
    (tmp_path / "train-00001.safetensors").write_bytes(b"half")  # its index is not there
    done = build(PLAN, tmp_path, speaker=Hum())
    assert (done.dialogues, done.found) == (20, 4)
    assert first.stat().st_mtime_ns == made
    assert contents(tmp_path) == contents(folder)
    again = Hum()
    done = build(PLAN, tmp_path, speaker=again)
    assert (done.found, done.clips, again.spoken) == (20, 0, [])
    assert done.turns == sum(len(Records(tmp_path, split)) for split in data.SPLITS)


def test_a_folder_of_another_plan_is_refused(folder: Path) -> None:
    with pytest.raises(ChromaError, match="another plan"):
        build(replace(PLAN, seed=9), folder, speaker=Hum())


def test_a_folder_of_other_texts_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / "plan.json"
    assert build(PLAN, path.parent, speaker=Hum()).found == 20
    monkeypatch.setattr(domain, "fingerprint", lambda: "of other words")
    with pytest.raises(ChromaError, match=r"of other texts \(domain \w+\).*of other words"):
        build(PLAN, path.parent, speaker=Hum())
    note = json.loads(path.read_text())
    del note["source"]  # as folders were before it was noted
    path.write_text(json.dumps(note))
    assert build(PLAN, path.parent, speaker=Hum()).found == 20
    with pytest.raises(ChromaError, match="another plan"):
        build(replace(PLAN, seed=9), path.parent, speaker=Hum())


def test_broken_records_are_set_aside_with_their_reason(folder: Path, tmp_path: Path) -> None:
    def fails(text: str, voice: int) -> bool:
        return crc32(text.encode()) % 12 == 0

    done = build(PLAN, tmp_path, speaker=Hum(fails))
    rows = [
        json.loads(line)
        for path in tmp_path.glob("*.broken.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert done.broken == len(rows) > 0
    assert all(row["reason"].startswith("cannot hum") for row in rows)
    whole, left = Records(folder, "train"), Records(tmp_path, "train")
    assert 0 < len(left.dialogues) < len(whole.dialogues)
    kept = {
        tuple((t.question.text, t.answer.text) for t in left[i].turns) for i in range(len(left))
    }
    every = {
        tuple((t.question.text, t.answer.text) for t in whole[i].turns) for i in range(len(whole))
    }
    assert kept < every  # the others are as they were
    again = build(PLAN, tmp_path, speaker=Hum(fails))
    assert again.broken == done.broken and again.clips == 0


def test_a_speaker_that_fails_always_ends_it(tmp_path: Path) -> None:
    with pytest.raises(ChromaError, match=r"None of 4 dialogues.*cannot hum"):
        build(PLAN, tmp_path, speaker=Hum(lambda text, voice: True))
    assert build(PLAN, tmp_path, speaker=Hum()).broken == 0  # once it is mended


def test_speech_that_cannot_be_the_text_is_set_aside(tmp_path: Path) -> None:
    class Mumble(Hum):
        def speak(self, text: str, voice: int) -> Samples:
            return super().speak(text, voice)[: 3000 if "dog" in text else None]

    plan = DataPlan(train=64, heldout=0, shard_dialogues=64)
    assert build(plan, tmp_path, speaker=Mumble()).broken > 0
    text = (tmp_path / "train-00000.broken.jsonl").read_text()
    assert "cannot be all of" in text and "dog" in text
    with pytest.raises(ChromaError, match=r"more than 0\.1"):
        build(replace(plan, max_clip_s=0.1), tmp_path / "short", speaker=Hum())


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"train": -1}, "train is -1"), ({"turns": (2, 1)}, "turns"), ({"turns": (0, 1)}, "turns"),
     ({"references": 0}, "references is 0"), ({"shard_dialogues": 6}, "multiple of")],
)  # fmt: skip
def test_a_wrong_plan_names_its_field(wrong: dict[str, int], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        DataPlan(**wrong)  # type: ignore[arg-type]


# -- reading -------------------------------------------------------------------------------------


def test_a_record_holds_the_dialogue_so_far_and_how_it_sounds(folder: Path) -> None:
    records = Records(folder)
    assert {len(records[i].turns) for i in range(len(records))} == {1, 2, 3}
    for i in range(len(records)):
        record = records[i]
        voice, asking = int(record.voice.split()[1]), int(record.user_voice.split()[1])
        for turn in record.turns:
            answer = turn.answer.samples()
            assert answer.dtype == np.float32 and len(answer) == len(turn.answer)
            assert np.allclose(answer, Hum().speak(turn.answer.text, voice), atol=1e-4)
            question = turn.question.samples()
            asked = Hum().speak(turn.question.text, asking)
            assert len(question) == pytest.approx(len(asked) * 2 / 3, abs=2)
        assert record.turns[-1].answer.text in domain.answers()
        if i and len(record.turns) > 1:
            assert records[i - 1].turns == record.turns[:-1]
        for clip in record.references:
            assert len(clip) >= 3 * OUTPUT_RATE_HZ
            assert np.allclose(clip.samples(), Hum().speak(clip.text, voice), atol=1e-4)
        assert len({clip.text for clip in record.references}) == 2
        assert not {c.text for c in record.references} & {t.answer.text for t in record.turns}


def test_voices_and_sentences_are_split(folder: Path) -> None:
    def voices(split: str) -> set[int]:
        records = Records(folder, split)
        every = [records[i] for i in range(len(records))]
        return {int(x.split()[1]) for r in every for x in (r.voice, r.user_voice)}

    def asked(split: str) -> set[str]:
        records = Records(folder, split)
        return {records[i].turns[0].question.text for i in range(len(records))}

    assert max(voices("train") | voices("new_sentences")) < 200
    assert min(voices("heldout") | voices("new_voices")) >= 200
    for split, (_, new) in data.SPLITS.items():
        for question in asked(split):
            assert (("", domain.plain(question)) in domain.HELD_OUT) is new


def test_batches_are_every_record_once_an_epoch_in_an_order_of_the_seed(folder: Path) -> None:
    records = Records(folder, seed=3)
    count = len(records)
    drawn = [i for number in range(2 * count) for i in records.batch(number, 3)]
    epochs = [drawn[first : first + count] for first in range(0, 6 * count, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert records.batch(7, 3) == Records(folder, seed=3).batch(7, 3)
    assert epochs[0] != list(Records(folder, seed=4).order(0))
    assert records.rng(5).random() == Records(folder, seed=3).rng(5).random()
    assert records.rng(5).random() != records.rng(6).random()


def test_clips_are_all_targets_and_references(folder: Path) -> None:
    records = Records(folder)
    assert len(records.clips) == len(records) + 2 * 6
    assert all(clip.kind in ("target", "reference") for clip in records.clips)
    assert sum(len(clip) for clip in records.clips) > 0


def test_missing_or_damaged_records_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ChromaError, match="no records of 'nothing'"):
        Records(folder, "nothing")
    records = Records(folder)
    with pytest.raises(ChromaError, match=r"codes\.safetensors.*encode_shard"):
        records[0].turns[0].answer.codes()
    with pytest.raises(ChromaError, match="user says has no codes"):
        records[0].turns[0].question.codes()
    (tmp_path / "train-00000.jsonl").write_text("{}x")
    with pytest.raises(ChromaError, match="build again"):
        Records(tmp_path)
    (tmp_path / "train-00000.jsonl").write_bytes((folder / "train-00000.jsonl").read_bytes())
    with pytest.raises(ChromaError, match="no such file"):
        Records(tmp_path)[0].turns[0].answer.samples()
    (tmp_path / "train-00000.safetensors").write_bytes(b"half a file")
    with pytest.raises(ChromaError, match="cannot be read"):
        Records(tmp_path)[0].turns[0].answer.samples()
