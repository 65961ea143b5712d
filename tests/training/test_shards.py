"""Sharded training in processes of gloo: the same gradients, the whole weights at the end."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.weights import load_checkpoint
from chroma_plugin.training.loop import LoopPlan, train
from chroma_plugin.training.shards import ranks, shard, wait, whole
from chroma_plugin.training.speaking import SpeakingPlan, SpeakingTask, SpeechModule
from chroma_plugin.training.spoken import Spoken
from tests.miniature import MINIATURE
from tests.training.test_speaking import spoken


@pytest.fixture
def alone() -> Iterator[None]:
    """One process that believes to be many."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def model() -> ChromaModel:
    return load_checkpoint(MINIATURE).requires_grad_(True)


def task(module: SpeechModule, config: object) -> SpeakingTask:
    rng = np.random.default_rng(0)
    replies = [spoken(96, rng) for _ in range(4)]

    def draw(chance: np.random.Generator, count: int) -> list[Spoken]:
        return [replies[chance.integers(4)] for _ in range(count)]

    return SpeakingTask(module, config, draw, replies)  # type: ignore[arg-type]


def test_without_torchrun_there_is_one_process() -> None:
    assert "WORLD_SIZE" not in os.environ
    assert ranks() == (0, 1)
    wait()
    assert not dist.is_initialized()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_shards_learn_what_the_whole_learns(alone: None, tmp_path: Path) -> None:
    one = model()
    other = copy.deepcopy(one)
    plan, loop = SpeakingPlan(replies=2), LoopPlan(steps=4, warmup_steps=1)
    plain, sharded = (SpeechModule(m, plan) for m in (one, other))
    shard(sharded, bfloat16=False)
    for name, module in (("plain", plain), ("sharded", sharded)):
        train(task(module, one.config), loop, tmp_path / name, say=str)
    gathered = whole(sharded)
    wanted = plain.state_dict()
    assert set(gathered) <= set(wanted)
    for name, tensor in gathered.items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-5, rtol=1e-4)

    # and goes on where it was
    longer = LoopPlan(steps=6, warmup_steps=1)
    outcome = train(task(sharded, one.config), longer, tmp_path / "sharded", say=str)
    assert outcome.progress.step == 6
