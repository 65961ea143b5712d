"""Garbage and events out of order, thousands of them: the conversation stays up."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from chroma_plugin.server.realtime import HANDLERS
from tests.fakes import FakeEngine
from tests.server.client import connected

FIELDS = """session audio item item_id previous_item_id response response_id content_index
audio_end_ms event_id chroma"""
NAMES = """type role content id text audio input output voice format turn_detection chroma turn say
tokens metadata instructions sampling transcribe conversation threshold"""
WORDS = """user assistant message input_text input_audio none server_vad semantic_vad default
AAAAAAAA item_reference audio/pcmu"""


def value(draw: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can say."""
    kind = draw.randrange(9 if depth < 4 else 7)
    if kind < 2:
        return draw.choice(WORDS.split())
    if kind < 7:
        return draw.choice([None, True, -1, 7, 10**20, 0.5, float("nan"), "", "\ud800", "x" * 99])
    if kind == 7:
        return [value(draw, depth + 1) for _ in range(draw.randrange(3))]
    return {name: value(draw, depth + 1) for name in draw.sample(NAMES.split(), draw.randrange(5))}


def event(draw: random.Random) -> str:
    """An event, as wrong as it gets."""
    fields = {name: value(draw) for name in draw.sample(FIELDS.split(), draw.randrange(4))}
    text = json.dumps({"type": draw.choice([*HANDLERS, "nonsense"])} | fields)
    return text[: draw.randrange(len(text))] if draw.random() < 0.1 else text


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_that_a_client_sends_ends_the_conversation(seed: int) -> None:
    draw = random.Random(seed)
    async with connected(FakeEngine(frames=2)) as client:
        for _ in range(500):
            await client.realtime.handle(event(draw))
        await client.send("response.cancel")
        await client.send("input_audio_buffer.clear")
        before = len(client.of("response.done"))
        await client.update(output_modalities=["audio"], chroma={"sampling": {}})
        await client.send("response.create", response={"instructions": "x"})
        await client.until("response.done", before + 1)
