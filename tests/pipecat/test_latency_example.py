"""The example that measures the wait before a reply, with an engine that needs no model."""

from __future__ import annotations

import asyncio
import re
import runpy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pipecat")

from tests.fakes import FakeEngine
from tests.pipecat.recordings import silence

EXAMPLE = Path(__file__).parents[2] / "examples" / "pipecat_latency.py"


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with asyncio.timeout(60):
        yield FakeEngine(frames=3)


@pytest.fixture
def example(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    example = runpy.run_path(str(EXAMPLE))
    monkeypatch.setitem(example["main"].__globals__, "Engine", lambda config: engine)
    return example


def spoken(engine: FakeEngine) -> list[str | None]:
    """What each reply was told to say; None: it was the model's own."""
    calls = [call for each in engine.conversations for call in each.calls]
    return [call[1].say for call in calls if call[0] == "start_reply"]


async def test_both_bots_answer_the_same_question(
    engine: FakeEngine, example: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The second one writes down what was asked and says what the first one said."""
    await example["main"]([Path(str(example["CAPITAL"]))], "chroma-tiny", 1, 3.0, True)
    told = capsys.readouterr().out
    assert re.search(r"capital.flac: Chroma [\d.]+ s \(one two\)", told)
    assert re.search(r"capital.flac: three services [\d.]+ s \(what was said\)", told)
    assert re.search(r"^Chroma: median [\d.]+ s of 1 turns", told, re.M)
    assert re.search(r"^three services: median [\d.]+ s of 1 turns", told, re.M)
    assert re.search(r"^three services / Chroma: [\d.]+, after VAD's silence [\d.]+$", told, re.M)
    assert spoken(engine) == [None, "one two"]
    _, ear, mouth = engine.conversations
    heard = [call[0] for call in ear.calls if call[0] != "push_audio"]
    assert heard[:2] == ["commit_audio", "transcribe"]
    assert ear.calls[0][0] == "push_audio"  # while the user spoke
    assert "push_audio" not in {call[0] for call in mouth.calls}
    assert engine.closed


async def test_a_question_without_speech_is_no_wait_for_ever(
    engine: FakeEngine, example: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.start()
    monkeypatch.setitem(example["main"].__globals__, "LIMIT_S", 0.5)
    with pytest.raises(SystemExit, match="got no reply"):
        await example["ask_chroma"](engine, silence(0.2))
