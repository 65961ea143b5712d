"""The tiny ear: transcripts and examinations have the shape that judges rely on. That it hears
anything is tested where a thinker learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from chroma_plugin.config import DEFAULT_MODEL
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.listener import LogMel
from chroma_plugin.model.prompt import ChatPrompt, feature_extractor
from chroma_plugin.model.weights import find_checkpoint, load_checkpoint
from chroma_plugin.training.data import DataPlan, build
from chroma_plugin.training.ear import MAX_TOKENS, Ear, examine
from chroma_plugin.training.lessons import SYSTEM, Asked, Heard, answering, energies
from chroma_plugin.training.records import Records
from tests.training.test_data import Hum

FOLDER = find_checkpoint(DEFAULT_MODEL)


@pytest.fixture
def ear() -> Ear:
    model = load_checkpoint(FOLDER)
    prompt = ChatPrompt.from_checkpoint(FOLDER, model.config.audio_token)
    return Ear(model, prompt, LogMel(feature_extractor(FOLDER)))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    folder: Path = tmp_path_factory.mktemp("records")
    plan = DataPlan(train=2, heldout=0, turns=(2, 2), shard_dialogues=2, speaker_dialogues=2)
    build(plan, folder, speaker=Hum())
    return Records(folder)


def test_nothing_is_heard_in_nothing(ear: Ear) -> None:
    assert ear.write_down(np.zeros(800, np.float32)) == ""


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
