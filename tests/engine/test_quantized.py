"""An engine with quantised weights: it answers, and rows stay blind to their neighbours."""

from __future__ import annotations

import asyncio
import math
from typing import get_args

import numpy as np
import pytest

from chroma_plugin.audio import INPUT_RATE_HZ, Samples
from chroma_plugin.config import EngineConfig, SamplingParams
from chroma_plugin.engine.engine import Engine
from chroma_plugin.engine.parts import load_parts
from chroma_plugin.errors import ConfigError
from chroma_plugin.model.quantize import Kind, QuantLinear
from tests.contract import Reply, read


def noise(seed: int) -> Samples:
    samples = np.random.default_rng(seed).standard_normal(INPUT_RATE_HZ)
    return (0.1 * samples).clip(-1, 1).astype(np.float32)


async def ask(engine: Engine, seed: int) -> Reply:
    sampling = SamplingParams(temperature=0.9, top_k=40, seed=seed)
    session = await engine.open_session(sampling=sampling, max_reply_s=0.5)
    session.push_audio(noise(seed))
    reply = await read(session.commit_turn())
    await session.aclose()
    return reply


@pytest.mark.parametrize("kind", get_args(Kind))
async def test_conversations_together_equal_each_alone(kind: Kind) -> None:
    config = EngineConfig(
        quantize=kind,
        max_replies=2,
        thinker_positions=512,
        backbone_positions=512,
        run_ahead_s=math.inf,
    )
    async with Engine(config) as engine:
        alone = [await ask(engine, seed) for seed in (1, 2)]
        together = await asyncio.gather(*(ask(engine, seed) for seed in (1, 2)))
    for one, other in zip(alone, together, strict=True):
        assert len(one.pcm) > 0
        assert one.text == other.text
        assert one.audio_ms == other.audio_ms
        a, b = (np.frombuffer(r.pcm, np.int16).astype(np.int32) for r in (one, other))
        assert np.abs(a - b).max() <= 2
    assert alone[0].pcm != alone[1].pcm


@pytest.mark.parametrize("kind", get_args(Kind))
def test_parts_are_loaded_as_they_are_asked_for(kind: Kind) -> None:
    model = load_parts(EngineConfig(quantize=kind)).model
    mlp = model.thinker.transformer.blocks[0].get_submodule("mlp.gate_up")
    assert isinstance(mlp, QuantLinear)
    assert mlp.kind == kind


def test_what_cannot_be_computed_is_said_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(*_: object) -> None:
        raise RuntimeError("no such dtype")

    monkeypatch.setattr(QuantLinear, "forward", refuses)
    with pytest.raises(ConfigError, match=r'quantize is "fp8".*Use "int8" or "int4"'):
        load_parts(EngineConfig(quantize="fp8"))
