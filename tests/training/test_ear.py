"""The tiny ear: transcripts and examinations have the shape that judges rely on. That it hears
anything is tested where a thinker learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from chroma_plugin.audio import Samples
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.prompt import ChatPrompt
from chroma_plugin.training.data import DataPlan, build
from chroma_plugin.training.ear import MAX_TOKENS, Ear, examine, load_ear
from chroma_plugin.training.lessons import SYSTEM, Asked, Heard, answering, energies
from chroma_plugin.training.records import Records
from tests.miniature import MINIATURE
from tests.training.test_data import Hum


@pytest.fixture
def ear() -> Ear:
    return load_ear(MINIATURE)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    folder: Path = tmp_path_factory.mktemp("records")
    plan = DataPlan(train=2, heldout=0, turns=(2, 2), shard_dialogues=2, speaker_dialogues=2)
    build(plan, folder, speaker=Hum())
    return Records(folder)


def test_nothing_is_heard_in_nothing(ear: Ear) -> None:
    assert ear.write_down(np.zeros(800, np.float32)) == ""


def test_a_reply_is_heard_at_the_rate_of_users(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []

    def write_down(self: Ear, samples: Samples) -> str:
        heard.append(len(samples))
        return "heard"

    monkeypatch.setattr(Ear, "write_down", write_down)
    assert ear.write_down_reply(np.zeros(24_000, np.float32)) == "heard"
    assert heard == [16_000]


def test_speech_goes_through_the_models_codec_in_whole_frames(ear: Ear) -> None:
    clip = np.random.default_rng(0).normal(0, 0.1, 5_000).astype(np.float32)
    copy = ear.through_codec(clip)
    assert len(copy) == 3 * 1920 and copy.dtype == np.float32
    whole = torch.from_numpy(np.pad(clip, (0, 760)))[None, None]
    with torch.inference_mode():
        wanted = ear.model.codec.decode(ear.model.codec.encode(whole))[0, 0].clamp(-1, 1)
    assert np.array_equal(copy, wanted.numpy())


def test_nothing_said_is_nothing_understood(
    ear: Ear, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ear, "write_down", lambda self, samples: "")
    monkeypatch.setattr(ChatPrompt, "decode", lambda self, ids: "")
    assert examine(ear, [records[0]], max_frames=2).understood == 0.0


def test_an_ear_that_never_ends_is_stopped(ear: Ear) -> None:
    with torch.no_grad():
        ear.model.thinker.lm_head.weight[ear.model.config.im_end] = 0
        ear.model.thinker.lm_head.weight[65] = 0
    text = ear.write_down(np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32))
    assert 0 < len(ear.prompt.encode(text)) <= 3 * MAX_TOKENS


def test_the_dialogue_before_is_read_as_it_was_learnt(
    ear: Ear, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The input of the plain loop is that of a lesson, up to where the answer begins."""
    record = records[records.dialogues[0]]
    seen: list[torch.Tensor] = []
    plain = ChromaModel.generate_greedy

    def watched(self: ChromaModel, dialogue: torch.Tensor, *rest: object) -> object:
        seen.append(dialogue)
        return plain(self, dialogue, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ChromaModel, "generate_greedy", watched)
    found = examine(ear, [record], max_frames=2)
    assert found.replies[0].wanted == record.turns[-1].answer.text
    turns = [
        Asked(Heard(energies(ear.mel, t.question.samples()), t.question.text), t.answer.text)
        for t in record.turns
    ]
    lesson = answering(ear.prompt, ear.model.config.audio_token, SYSTEM[0], turns)
    ids = torch.tensor(lesson.ids[: lesson.told[-1][0]])
    text = ids != ear.model.config.audio_token
    assert len(seen[0]) == len(ids)
    assert torch.equal(seen[0][text], ear.model.embed_tokens(ids[text].tolist()))


def test_an_examination_counts(ear: Ear, records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [records[number] for number in records.dialogues]
    right = [record.turns[-1].answer.text for record in asked]
    heard = iter([right[0].upper(), "something else"])
    monkeypatch.setattr(Ear, "write_down", lambda self, samples: next(heard))
    said = iter(right)
    monkeypatch.setattr(ChatPrompt, "decode", lambda self, ids: next(said))
    told: list[str] = []
    found = examine(ear, asked, max_frames=2, say=told.append)
    assert (found.right, found.understood) == (1.0, 0.5)
    assert len(told) == len(found.replies) == 2
    assert all(reply.audio.dtype == np.float32 for reply in found.replies)


def test_nobody_asked_is_nothing_right(ear: Ear) -> None:
    assert examine(ear, []).right == 0.0
