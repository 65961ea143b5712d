"""Training backbone and depth decoder: the same scores as in serving, what is frozen, and that
losses fall."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from chroma_plugin.config import DepthPositions
from chroma_plugin.errors import ConfigError
from chroma_plugin.model.chroma import ChromaModel, Generation
from chroma_plugin.model.prompt import ChatPrompt
from chroma_plugin.model.weights import load_checkpoint
from chroma_plugin.training.loop import LoopPlan, Progress, train
from chroma_plugin.training.sequence import read_whole
from chroma_plugin.training.speaking import SpeakingPlan, SpeakingTask, SpeechModule
from chroma_plugin.training.spoken import SpeechBatch, Spoken, collate, schedule
from tests.miniature import MINIATURE

TRANSCRIPT = "The sun is shining."
SAID = "The capital of France is Paris."


@pytest.fixture
def model() -> ChromaModel:
    return load_checkpoint(MINIATURE).requires_grad_(True).train()


@pytest.fixture(scope="module")
def prompt() -> ChatPrompt:
    folder = MINIATURE
    return ChatPrompt.from_checkpoint(folder, load_checkpoint(folder).config.audio_token)


class Served:
    """A reply by the plain loop, with every score on the way."""

    def __init__(
        self, model: ChromaModel, prompt: ChatPrompt, frames: int, numbering: DepthPositions
    ) -> None:
        self.depth: list[Tensor] = []  # [7, V] a frame
        plain = model.depth.frame

        def recorded(hidden: Tensor, code0: Tensor, steps: object, pick: object) -> Tensor:
            scores: list[Tensor] = []

            def picked(row: Tensor, codebook: int) -> Tensor:
                scores.append(row[0])
                return row.argmax(dim=-1)

            codes = plain(hidden, code0, steps, picked)  # type: ignore[arg-type]
            self.depth.append(torch.stack(scores))
            return codes

        ids = [*prompt.system("You are kind."), *prompt.reply_open]
        tokens = [*prompt.encode(SAID), model.config.im_end]
        transcript = prompt.encode(TRANSCRIPT)
        clip = torch.randn(9_600) * 0.1
        voice = model.voice_prompt(transcript, clip)
        with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
            patch.setattr(model.depth, "frame", recorded)
            self.made: Generation = model.generate_greedy(
                model.embed_tokens(ids), voice.embeds, frames, numbering=numbering, say=tokens[:-1]
            )
            whole = model.embed_tokens([*ids, *tokens])[None]
            states = read_whole(model.thinker.transformer, whole)[0, len(ids) - 1 : -1]
        self.spoken = Spoken(
            transcript, voice.codes.numpy(), tokens, states.numpy(), self.made.codes.T.numpy()
        )


@pytest.mark.parametrize("numbering", ["generate", "training"])
@pytest.mark.parametrize("frames", [7, 40])
def test_training_sees_the_scores_that_serving_sees(
    model: ChromaModel, prompt: ChatPrompt, numbering: DepthPositions, frames: int
) -> None:
    served = Served(model, prompt, frames, numbering)
    assert len(served.made.codes) == frames
    module = SpeechModule(model, SpeakingPlan(numbering=numbering))

    with torch.no_grad():
        scores, depth = module(collate([served.spoken], model.config))

    assert scores.shape[0] == frames + 1  # the end of speech is learnt too
    torch.testing.assert_close(scores[:-1], served.made.backbone_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(depth[:-1], torch.stack(served.depth), atol=1e-4, rtol=0)


def test_a_row_beside_a_longer_one_is_as_it_is_alone(
    model: ChromaModel, prompt: ChatPrompt
) -> None:
    short, long = (Served(model, prompt, n, "generate").spoken for n in (3, 12))
    module = SpeechModule(model, SpeakingPlan())
    with torch.no_grad():
        alone = module(collate([short], model.config))
        beside = module(collate([long, short], model.config))
    for one, both in zip(alone, beside, strict=True):
        torch.testing.assert_close(both[-4:], one, atol=1e-5, rtol=0)


def test_replies_after_one_voice_prompt_share_it_and_change_nothing(model: ChromaModel) -> None:
    rng = np.random.default_rng(0)
    first, other = spoken(96, rng), spoken(96, rng, frames=3)
    replies = [first, other]
    for frames, tokens in ((2, 5), (12, 3)):  # after the voice prompt of the first
        like = spoken(96, rng, frames, tokens)
        replies.append(replace(like, transcript=first.transcript, reference=first.reference))
    module = SpeechModule(model, SpeakingPlan())
    batch = collate(replies, model.config)
    in_order = [replies[0], replies[2], replies[3], replies[1]]
    assert len(batch.order) == 2
    assert int((batch.branches == 0).sum()) == 2 * (len(first.transcript) + 3 + 6)
    with torch.no_grad():
        together = module(batch)
        alone = [module(collate([reply], model.config)) for reply in in_order]
    for both, singles in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(both, torch.cat(singles), atol=1e-5, rtol=0)
    assert torch.equal(
        batch.wanted, torch.cat([collate([reply], model.config).wanted for reply in in_order])
    )


def test_a_batch_holds_as_many_replies_as_it_was_told(model: ChromaModel) -> None:
    rng = np.random.default_rng(0)
    asked: list[int] = []

    def draw(chance: np.random.Generator, count: int) -> list[Spoken]:
        asked.append(count)
        return [spoken(96, rng) for _ in range(count)]

    for replies, together, counts in ((8, 6, {4}), (16, 6, {6}), (24, 6, {6}), (3, 6, {3})):
        plan = SpeakingPlan(replies=replies, together=together)
        batch = SpeakingTask(SpeechModule(model, plan), model.config, draw).batch(0)
        assert int((batch.wanted == 0).all(dim=1).sum()) == replies
        assert set(asked) == counts
        asked.clear()


def test_the_schedule_gives_a_token_to_two_frames() -> None:
    order, places = schedule([10, 11], [20, 21], [30, 31, 32, 33])
    assert order == [10, 20, 30, 31, 11, 21, 32, 33]
    assert places == [1, 2, 5, 6, 7]


def spoken(
    config_hidden: int, rng: np.random.Generator, frames: int = 9, tokens: int = 4
) -> Spoken:
    return Spoken(
        transcript=rng.integers(0, 600, 5).tolist(),
        reference=rng.integers(1, 256, (8, 6)),
        tokens=rng.integers(0, 600, tokens).tolist(),
        states=rng.normal(size=(tokens, config_hidden)),
        codes=rng.integers(1, 256, (8, frames)),
    )


def test_how_many_positions_a_reply_takes(model: ChromaModel) -> None:
    rng = np.random.default_rng(0)
    for frames, tokens in ((1, 9), (2, 9), (9, 3), (0, 2)):
        reply = spoken(96, rng, frames, tokens)
        assert collate([reply], model.config).order.shape == (1, reply.positions)


def test_wrong_codes_are_read_but_never_learnt(model: ChromaModel) -> None:
    rng = np.random.default_rng(0)
    replies = [spoken(96, rng) for _ in range(8)]
    right = collate(replies, model.config)
    batch = collate(replies, model.config, rng, depth_share=0.25, wrong=0.3)
    assert torch.equal(batch.wanted, right.wanted)
    changed = (batch.frames != right.frames).float().mean()
    assert 0.2 < changed < 0.4
    assert batch.frames.min() >= 1
    ends = (batch.wanted == 0).all(dim=1).nonzero()[:, 0]
    assert len(ends) == 8 and set(ends.tolist()) <= set(batch.chosen.tolist())
    assert 8 < len(batch.chosen) < 60


@pytest.mark.parametrize("stage", ["both", "depth"])
@pytest.mark.parametrize("lora", [0, 4])
def test_what_is_frozen_stays_as_it_was(model: ChromaModel, stage: str, lora: int) -> None:
    rng = np.random.default_rng(0)
    module = SpeechModule(model, SpeakingPlan(stage=stage, lora=lora))  # type: ignore[arg-type]
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    module(collate([spoken(96, rng)], model.config))[1].sum().backward()
    moved = set()
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            parameter.data -= parameter.grad
        if not torch.equal(parameter, before[name]):
            moved.add(name)
    assert moved
    assert not [name for name in moved if name.startswith("text_embedding")]
    if lora:
        assert all(name.endswith((".up", ".down")) for name in moved)
    if stage == "depth":
        assert not [name for name in moved if name.startswith("backbone")]
    elif not lora:
        assert "backbone.audio_embedding.table.weight" in moved


def test_lora_folds_into_what_it_computed(model: ChromaModel) -> None:
    rng = np.random.default_rng(0)
    names = set(model.state_dict())
    module = SpeechModule(model, SpeakingPlan(lora=4, recompute=True))
    for name, parameter in module.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter, std=0.1)
    batch = collate([spoken(96, rng)], model.config)
    with torch.no_grad():
        learnt = module(batch)
        module.finish()
        folded = module(batch)
    for one, other in zip(learnt, folded, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert set(model.state_dict()) == names


def test_recomputing_changes_no_gradient(model: ChromaModel) -> None:
    rng = np.random.default_rng(0)
    batch = collate([spoken(96, rng) for _ in range(2)], model.config)
    found = []
    for recompute in (False, True):
        module = SpeechModule(model, SpeakingPlan(recompute=recompute))
        module.zero_grad()
        scores, depth = module(batch)
        (scores.square().mean() + depth.square().mean()).backward()
        found.append(module.backbone.transformer.blocks[0].attention.qkv.weight.grad.clone())
    torch.testing.assert_close(found[0], found[1])


def task(model: ChromaModel, **plan: object) -> SpeakingTask:
    rng = np.random.default_rng(5)
    replies = [spoken(96, rng) for _ in range(4)]
    settings = SpeakingPlan(replies=2, wrong=0.0, **plan)  # type: ignore[arg-type]

    def draw(chance: np.random.Generator, count: int) -> list[Spoken]:
        return [replies[chance.integers(4)] for _ in range(count)]

    return SpeakingTask(SpeechModule(model, settings), model.config, draw, replies)


def test_losses_fall_and_the_figures_with_them(model: ChromaModel, tmp_path: Path) -> None:
    learning = task(model)
    before = learning.evaluate()
    outcome = train(learning, LoopPlan(steps=40, warmup_steps=5, lr=5e-3), tmp_path, say=str)
    assert outcome.evaluation["backbone"] < 0.7 * before["backbone"]
    assert outcome.evaluation["depth"] < 0.9 * before["depth"]
    assert outcome.evaluation["right_0"] > before["right_0"]


def test_processes_have_batches_of_their_own(model: ChromaModel) -> None:
    module = SpeechModule(model, SpeakingPlan(replies=2))
    rng = np.random.default_rng(0)
    replies = [spoken(96, rng) for _ in range(50)]

    def draw(chance: np.random.Generator, count: int) -> list[Spoken]:
        return [replies[chance.integers(50)] for _ in range(count)]

    batches = [
        SpeakingTask(module, model.config, draw, rank=rank, ranks=2).batch(3) for rank in (0, 1)
    ]
    again = SpeakingTask(module, model.config, draw, rank=1, ranks=2).batch(3)
    assert batches[0].wanted.shape != batches[1].wanted.shape or not torch.equal(
        batches[0].wanted, batches[1].wanted
    )
    assert all(torch.equal(a, b) for a, b in zip(batches[1], again, strict=True))


def test_too_long_replies_are_refused(model: ChromaModel) -> None:
    learning = task(model, max_positions=10)
    with pytest.raises(ConfigError, match="more than 10 positions"):
        learning.batch(0)


@pytest.mark.parametrize("wrong", [{"stage": "one"}, {"depth_share": 2.0}, {"wrong": 0.9}])
def test_plans_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SpeakingPlan(**wrong)  # type: ignore[arg-type]


def test_a_loss_is_half_and_half_in_stage_one_and_the_depth_decoders_in_stage_two(
    model: ChromaModel,
) -> None:
    batch: SpeechBatch = task(model).batch(0)
    one = task(model).losses(batch, Progress())
    two = task(model, stage="depth").losses(batch, Progress())
    torch.testing.assert_close(one["loss"], 0.5 * one["backbone"] + 0.5 * one["depth"])
    torch.testing.assert_close(two["loss"], one["depth"])
