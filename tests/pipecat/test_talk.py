"""`talk` from question to report, and the example, with an engine that needs no model."""

from __future__ import annotations

import asyncio
import re
import runpy
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pipecat")

from chroma_plugin.audio import INPUT_RATE_HZ, OUTPUT_RATE_HZ, Samples, read_audio, write_wav
from chroma_plugin.config import SamplingParams
from chroma_plugin.conversation import ReplyRequest
from chroma_plugin.errors import AudioError, EngineBusy, EngineClosed, EngineError, EngineFailed
from chroma_plugin.reply import EndReason
from chroma_plugin.talk import talk
from tests.fakes import FakeConversation, FakeEngine

CAPITAL = Path(str(files("chroma_plugin") / "assets" / "questions" / "capital.flac"))
ONE_TURN = [
    "question",
    "user_started",
    "user_stopped",
    "first_audio",
    "reply_made",
    "reply_played",
]
CHUNK = b"\x10\x20" * 1920


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    await engine.start()
    async with asyncio.timeout(60):
        yield engine


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * INPUT_RATE_HZ), np.float32)


async def test_one_question(engine: FakeEngine) -> None:
    engine.frame_s = 0.002
    report = await talk(engine, [CAPITAL], fast=True)
    [turn] = report.turns
    assert turn.question == "capital.flac"
    assert turn.text == "one two three four"
    assert turn.pcm == report.pcm == CHUNK * 24
    assert turn.reply_seconds == pytest.approx(24 * 0.08)
    assert turn.reason is EndReason.END_OF_SPEECH
    assert turn.ttfa_ms is not None and turn.ttfa_ms > 0
    assert turn.rtf is not None and turn.rtf > 0
    assert (report.model, report.sample_rate) == ("FakeEngine", OUTPUT_RATE_HZ)
    assert engine.conversations[0].calls[-1] == ("cancel_reply", -1)  # it was closed


async def test_what_was_asked_is_written_down(engine: FakeEngine) -> None:
    report = await talk(engine, [CAPITAL, CAPITAL], transcribe=True, fast=True)
    assert [turn.said for turn in report.turns] == ["what was said"] * 2


async def test_the_first_audio_leaves_before_the_reply_is_made(engine: FakeEngine) -> None:
    engine.frame_s = 0.002
    told: list[tuple[float, str]] = []
    report = await talk(
        engine, [CAPITAL], fast=True, on_event=lambda name, at: told.append((at, name))
    )
    assert [name for _, name in report.events] == ONE_TURN
    assert list(report.events) == sorted(report.events) == told


async def test_several_questions_are_one_conversation(engine: FakeEngine) -> None:
    capital = read_audio(CAPITAL, INPUT_RATE_HZ)
    report = await talk(engine, [CAPITAL, capital, capital], fast=True)
    assert [turn.question for turn in report.turns] == ["capital.flac", "question 2", "question 3"]
    assert [turn.pcm for turn in report.turns] == [CHUNK * 24] * 3
    names = [name for _, name in report.events]
    assert [name for name in names if name in ("question", "reply_played")] == [
        "question",
        "reply_played",
    ] * 3
    [conversation] = engine.conversations
    assert [c[0] for c in conversation.calls if c[0] in ("commit_audio", "start_reply")] == [
        "commit_audio",
        "start_reply",
    ] * 3


async def test_at_the_pace_of_speech(engine: FakeEngine) -> None:
    engine.frames = 5
    report = await talk(engine, [CAPITAL], fast=False)
    assert report.pcm == CHUNK * 5
    assert {name for _, name in report.events} == set(ONE_TURN)


async def test_a_pause_does_not_end_a_question(engine: FakeEngine) -> None:
    capital = read_audio(CAPITAL, INPUT_RATE_HZ)
    question = np.concatenate([capital, silence(1.5), capital])
    report = await talk(engine, [question], fast=True)
    assert len(report.turns) == 1
    calls = engine.conversations[0].calls
    assert [c[0] for c in calls].count("commit_audio") == 1
    heard = sum(len(c[1]) for c in calls if c[0] == "push_audio")
    assert heard > len(question) - 0.4 * INPUT_RATE_HZ


async def test_settings_reach_the_engine(engine: FakeEngine) -> None:
    sampling = SamplingParams(0.0, 7, 0.9, 5, 1.2)
    report = await talk(
        engine, [CAPITAL], instructions="Sing.", sampling=sampling, max_reply_s=0.8, fast=True
    )
    [request] = [c[1] for c in engine.conversations[0].calls if c[0] == "start_reply"]
    assert isinstance(request, ReplyRequest)
    assert (request.sampling, request.max_reply_s) == (sampling, 0.8)
    assert report.turns[0].reason is EndReason.MAX_SECONDS


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("sound", ["silence", "noise"])
async def test_no_speech_is_said_so(engine: FakeEngine, sound: str, fast: bool) -> None:
    question = silence(0.5)
    if sound == "noise":
        question += np.random.default_rng(0).normal(0, 0.1, len(question)).astype(np.float32)
    with pytest.raises(AudioError, match=r"question 1: no speech was found"):
        await talk(engine, [question], fast=fast)


async def test_no_speech_in_the_second_question(engine: FakeEngine) -> None:
    with pytest.raises(AudioError, match=r"question 2: no speech was found"):
        await talk(engine, [CAPITAL, silence(2.0)], fast=True)


async def test_a_missing_file_is_said_before_anything_starts(engine: FakeEngine) -> None:
    with pytest.raises(AudioError, match=r"nothing\.wav"):
        await talk(engine, [CAPITAL, "nothing.wav"], fast=True)
    assert not engine.conversations


@pytest.mark.parametrize("error", [EngineBusy("No row."), EngineFailed("Out of memory.")])
async def test_an_engine_error_ends_the_talk(
    engine: FakeEngine, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeConversation, "start_reply", lambda _, request, sink: sink(error))
    with pytest.raises(type(error), match=str(error)):
        await talk(engine, [CAPITAL], fast=True)


async def test_an_engine_that_was_not_started() -> None:
    with pytest.raises(EngineClosed):
        await talk(FakeEngine(), [CAPITAL], fast=True)


async def test_a_reply_that_never_comes(engine: FakeEngine) -> None:
    engine.frame_s = 3600
    with pytest.raises(EngineError, match="nothing happened"):
        await talk(engine, [CAPITAL], fast=True, stall_s=0.5)


async def test_a_cancelled_talk_leaves_nothing_running(engine: FakeEngine) -> None:
    engine.frame_s = 3600
    asked = asyncio.Event()
    before = asyncio.all_tasks()
    talking = asyncio.create_task(
        talk(engine, [CAPITAL], fast=True, on_event=lambda name, _: asked.set())
    )
    await asked.wait()
    talking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await talking
    assert asyncio.all_tasks() == before


async def test_a_file_at_another_rate(engine: FakeEngine, tmp_path: Path) -> None:
    pcm = (read_audio(CAPITAL, 44_100) * 32767).astype("<i2").tobytes()
    write_wav(tmp_path / "question.wav", pcm, 44_100)
    report = await talk(engine, [tmp_path / "question.wav"], fast=True)
    assert report.turns[0].question == "question.wav"


async def test_the_example(
    engine: FakeEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine.frames = 7
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "pipecat_wav.py"))
    main = example["main"]
    monkeypatch.setitem(main.__globals__, "Engine", lambda config: engine)
    await main(CAPITAL, tmp_path / "reply.wav", "chroma-tiny")
    reply = read_audio(tmp_path / "reply.wav", OUTPUT_RATE_HZ)
    assert len(reply) == 7 * 1920
    assert "Chroma: one two three four" in capsys.readouterr().out
    assert engine.closed


def test_the_documented_lines_are_the_examples() -> None:
    root = Path(__file__).parents[2]
    example = (root / "examples" / "pipecat_wav.py").read_text()
    shown, *_ = re.findall(r"```python\n(.*?)```", (root / "docs" / "pipecat.md").read_text(), re.S)
    for line in filter(None, shown.splitlines()):
        assert f"    {line}\n" in example
