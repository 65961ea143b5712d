"""Training a thinker: batches, losses that fall, marks that are the greedy loop's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from chroma_plugin.errors import ConfigError
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.listener import LogMel
from chroma_plugin.model.prompt import ChatPrompt, feature_extractor
from chroma_plugin.model.weights import load_checkpoint
from chroma_plugin.training.bank import Bank
from chroma_plugin.training.ear import Ear
from chroma_plugin.training.lessons import IGNORED, Asked, Heard, collate, energies, writing_down
from chroma_plugin.training.loop import LoopPlan, Progress, train
from chroma_plugin.training.replies import saying
from chroma_plugin.training.thinker import ThinkerModule, ThinkerPlan, ThinkerTask
from tests.miniature import MINIATURE


def tone(hz: float, seconds: float = 0.6) -> np.ndarray:
    time = np.arange(int(seconds * 16_000)) / 16_000
    return (0.1 * np.sin(2 * np.pi * hz * time)).astype(np.float32)


@pytest.fixture
def model() -> ChromaModel:
    return load_checkpoint(MINIATURE).requires_grad_(True)


@pytest.fixture(scope="module")
def prompt() -> ChatPrompt:
    return ChatPrompt.from_checkpoint(MINIATURE, load_checkpoint(MINIATURE).config.audio_token)


@pytest.fixture(scope="module")
def bank() -> Bank:
    """Three tones, each with its own answer."""
    mel = LogMel(feature_extractor(MINIATURE))
    clips = [Heard(energies(mel, tone(hz)), text) for hz, text in
             ((150, "low"), (600, "high"), (2400, "very high"))]  # fmt: skip
    answers = ("One.", "Two.", "Three.")
    talks = tuple((Asked(clip, answer),) for clip, answer in zip(clips, answers, strict=True))
    return Bank(talks, talks, tuple(clips))


def task(model: ChromaModel, prompt: ChatPrompt, bank: Bank, **plan: object) -> ThinkerTask:
    module = ThinkerModule(model.thinker, model.config.audio_token)
    settings: dict[str, object] = {"turns": 10, "clips": 6, "write_down": 0.0, "disturbance": 0.0}
    return ThinkerTask(module, prompt, bank, bank, ThinkerPlan(**settings | plan))  # type: ignore[arg-type]


@torch.no_grad()
def text_loss(learning: ThinkerTask) -> float:
    return float(learning.losses(learning.batch(0), Progress())["text"])


def test_batches_alternate_and_are_the_same_each_time(
    model: ChromaModel, prompt: ChatPrompt, bank: Bank
) -> None:
    learning = task(model, prompt, bank, disturbance=1.0, typed=0)
    for number in (0, 1):
        one, two = learning.batch(number), learning.batch(number)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert len(learning.batch(0).ids) == 6
    lengths = {len(learning.batch(n).ids) for n in range(1, 40, 2)}
    assert lengths == {10, 5, 3, 1}


def test_typed_questions_stand_beside_the_spoken_ones(
    model: ChromaModel, prompt: ChatPrompt, bank: Bank
) -> None:
    spoken, both = (task(model, prompt, bank, typed=count) for count in (0, 20))
    rows = {(len(spoken.batch(n).ids), len(both.batch(n).ids)) for n in range(1, 40, 2)}
    assert {(10, 20), (5, 10), (3, 6)} <= rows  # spoken turns of a row, and half as many typed rows
    batch = both.batch(1)
    typed_rows = ~batch.is_audio.any(dim=1)
    assert typed_rows.sum() * 2 == len(typed_rows)
    assert bool((batch.next_ids[typed_rows] != IGNORED).any(dim=1).all())
    assert not both.batch(0).is_audio.all(dim=1).any()


def test_typed_questions_may_be_ever_new_ones(
    model: ChromaModel, prompt: ChatPrompt, bank: Bank
) -> None:
    asked: list[int] = []

    def texts(rng: np.random.Generator, turns: int) -> list[tuple[str, str]]:
        asked.append(turns)
        return [(f"What is {rng.integers(1000)}?", "Noon.")] * min(turns, 2)  # shorter than asked

    module = ThinkerModule(model.thinker, model.config.audio_token)
    plan = ThinkerPlan(turns=10, clips=6, write_down=0.0, typed=20)
    learning = ThinkerTask(module, prompt, bank, bank, plan, texts=texts)
    spelt = [batch.ids for batch in (learning.batch(n) for n in range(1, 40, 2))]
    assert {2, 4, 6, 12} <= set(asked)
    typed_text = prompt.decode(spelt[0][-1].tolist())
    assert "What is" in typed_text and typed_text.count("Noon.") in (2, 4, 6, 12, 20)
    assert torch.equal(learning.batch(1).ids, spelt[0])


def test_losses_say_what_they_are_of(model: ChromaModel, prompt: ChatPrompt, bank: Bank) -> None:
    learning = task(model, prompt, bank)
    batch = learning.batch(1)
    early = learning.losses(batch, Progress(0, 0.0))
    late = learning.losses(batch, Progress(9, 1.0))
    torch.testing.assert_close(early["loss"], early["text"] + 0.6 * early["spelling"])
    torch.testing.assert_close(late["loss"], late["text"] + 0.06 * late["spelling"])


def test_it_learns_to_answer_and_to_write_down(
    model: ChromaModel, prompt: ChatPrompt, bank: Bank, tmp_path: Path
) -> None:
    learning = task(model, prompt, bank)
    before = text_loss(learning)
    assert learning.evaluate()["answers"] == 0
    plan = LoopPlan(steps=75, warmup_steps=5, lr=4e-3, final_lr=0.3)
    outcome = train(learning, plan, tmp_path, say=str)
    assert text_loss(learning) < 0.2 * before
    assert outcome.evaluation["answers"] == 1.0
    assert outcome.evaluation["written_questions"] == 1.0

    # the marks are those of the greedy loop: an ear writes down what was marked as right
    model.eval()
    ear = Ear(model, prompt, LogMel(feature_extractor(MINIATURE)))
    assert [ear.write_down(tone(hz)) for hz in (150, 600, 2400)] == ["low", "high", "very high"]


def test_marks_are_for_each_thing_told(model: ChromaModel, prompt: ChatPrompt, bank: Bank) -> None:
    learning = task(model, prompt, bank)
    token = model.config.audio_token
    lessons = [writing_down(prompt, token, clip) for clip in bank.sayings]
    assert [len(row) for row in learning.marks(lessons)] == [1, 1, 1]


def test_lessons_without_sound_are_read_too(model: ChromaModel, prompt: ChatPrompt) -> None:
    module = ThinkerModule(model.thinker, model.config.audio_token)
    batch = collate([saying(prompt, "It is noon.")], model.config.audio_token)
    x, audio = module.embed(batch)
    assert torch.equal(x, model.thinker.embedding(batch.ids)) and not len(audio)


def test_what_cannot_be_learnt_from_is_refused(
    model: ChromaModel, prompt: ChatPrompt, bank: Bank
) -> None:
    with pytest.raises(ConfigError, match="no dialogues"):
        task(model, prompt, Bank((), (), bank.sayings))
    with pytest.raises(ConfigError, match=r"turns is 4; it must be 10"):
        ThinkerPlan(turns=4)


def test_noise_comes_after_the_calm(model: ChromaModel, prompt: ChatPrompt, bank: Bank) -> None:
    loud = tuple(
        tuple(Asked(Heard(t.question.raw + np.float16(4), t.question.text), t.answer) for t in talk)
        for talk in bank.dialogues
    )
    mixed = Bank(bank.dialogues, loud, bank.sayings)
    learning = task(model, prompt, mixed, calm=10, noisy=1.0)

    def levels(number: int) -> set[float]:
        batch = learning.batch(number)
        tops = [mel.amax() for mel in (*batch.mel, *batch.short_mel)]
        return {round(float(top), 1) for top in tops}

    calm, storm = levels(1), levels(41)
    assert max(calm) < min(storm)
    assert levels(0) == levels(8)
