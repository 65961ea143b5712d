from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from chroma_plugin.audio import OUTPUT_RATE_HZ, read_audio
from chroma_plugin.errors import EngineClosed
from chroma_plugin.evaluation.synthesis import Spoken, Task, missing, speak_all
from tests.evaluation.conftest import QUESTION
from tests.fakes import FakeEngine


async def said(engine: FakeEngine, tasks: list[Task], **options: int) -> list[Spoken | str]:
    await engine.start()
    return await speak_all(engine, tasks, **options)


async def test_texts_are_said_and_recordings_answered(tmp_path: Path) -> None:
    tasks = [
        Task(tmp_path / "a" / "one.wav", text="seven words are said by this voice"),
        Task(tmp_path / "two.wav", question=QUESTION),
    ]
    assert missing(tasks)
    engine, told = FakeEngine("the capital is Paris"), list[tuple[int, int]]()
    await engine.start()
    first, second = await speak_all(
        engine, tasks, seed=5, progress=lambda done, of: told.append((done, of))
    )
    assert isinstance(first, Spoken) and isinstance(second, Spoken)
    assert (first.text, first.made) == ("seven words are said by this voice", True)
    assert second.text == "the capital is Paris"
    assert len(read_audio(second.path, OUTPUT_RATE_HZ)) == 24 * 1920
    assert told == [(1, 2), (2, 2)]
    heard = [sum(c[0] == "push_audio" for c in one.calls) for one in engine.conversations]
    assert heard == [0, 1]
    seeds = [c[1].sampling.seed for one in engine.conversations for c in one.calls
             if c[0] == "start_reply"]  # fmt: skip
    assert sorted(seeds) == [5, 6]


async def test_what_lies_there_is_not_made_again(tmp_path: Path) -> None:
    tasks = [Task(tmp_path / f"{name}.wav", text=f"say {name}") for name in "ab"]
    await said(FakeEngine(), tasks[:1])
    engine = FakeEngine()
    first, second = await said(engine, tasks)
    assert isinstance(first, Spoken) and isinstance(second, Spoken)
    assert (first.made, first.text, second.made) == (False, "say a", True)
    assert len(engine.conversations) == 1
    assert not missing(tasks)
    tasks[0].path.with_suffix(".txt").unlink()  # speech from elsewhere has no text beside it
    assert await said(FakeEngine(), tasks[:1]) == [Spoken(tasks[0].path, "say a", made=False)]


async def test_one_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    tasks = [
        Task(tmp_path / "a.wav", question=tmp_path / "no.wav"),
        Task(tmp_path / "b.wav", text="b"),
    ]
    first, second = await said(FakeEngine(), tasks, together=1)
    assert isinstance(first, str) and "no such file" in first
    assert isinstance(second, Spoken)
    silent = await said(FakeEngine(frames=0), [Task(tmp_path / "c.wav", text="c")])
    assert silent == ["c: the reply holds no audio."]


def test_an_engine_that_is_gone_ends_it(tmp_path: Path) -> None:
    with pytest.raises(EngineClosed):
        asyncio.run(speak_all(FakeEngine(), [Task(tmp_path / "a.wav", text="a")]))
