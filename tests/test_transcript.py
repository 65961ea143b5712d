"""Waiting for transcripts: however many wait, there is one piece of work, or none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chroma_plugin.errors import AudioError, ChromaError, EngineFailed, SessionClosed
from chroma_plugin.transcript import TextSink, Transcripts


class Asked:
    """Writes down what an engine is asked for; `sinks` answers."""

    def __init__(self) -> None:
        self.sinks: list[TextSink] = []
        self.cancelled: list[int] = []
        self.kept: list[tuple[int, str]] = []
        self.transcripts = Transcripts(self.start, self.cancelled.append, self.keep)

    def start(self, turn: int, sink: TextSink) -> None:
        self.sinks.append(sink)

    def keep(self, turn: int, text: str) -> None:
        self.kept.append((turn, text))

    async def wait(self, turn: int = 1) -> asyncio.Task[str]:
        task = asyncio.create_task(self.transcripts.of(turn))
        await asyncio.sleep(0)
        return task


async def given_up(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_two_who_wait_for_a_turn_share_the_work() -> None:
    asked = Asked()
    first, second = await asked.wait(), await asked.wait()
    other = await asked.wait(2)
    assert len(asked.sinks) == 2
    asked.sinks[0]("hello")
    assert asked.kept == [(1, "hello")]  # before anybody who waits goes on
    assert [await first, await second] == ["hello", "hello"]
    assert not other.done()
    asked.sinks[1]("")  # nothing was said
    assert await other == ""
    assert asked.cancelled == []


async def test_only_the_last_to_give_up_takes_the_work_along() -> None:
    asked = Asked()
    first, second, third = [await asked.wait() for _ in range(3)]
    await given_up(first)
    await given_up(third)
    assert asked.cancelled == []
    await given_up(second)
    assert asked.cancelled == [1]


async def test_what_comes_late_is_dropped_and_another_wait_begins_anew() -> None:
    asked = Asked()
    await given_up(await asked.wait())
    again = await asked.wait()
    asked.sinks[0]("late")
    assert asked.kept == []
    asked.sinks[1]("in time")
    asked.sinks[1]("twice")
    assert await again == "in time"
    assert asked.kept == [(1, "in time")]


@pytest.mark.parametrize("error", [AudioError("forgotten"), EngineFailed("dead")])
async def test_an_error_reaches_everyone_and_the_next_may_try_again(error: ChromaError) -> None:
    asked = Asked()
    tasks = [await asked.wait() for _ in range(2)]
    asked.sinks[0](error)
    for task in tasks:
        with pytest.raises(type(error), match=str(error)):
            await task
    again = await asked.wait()
    asked.sinks[1]("hello")
    assert await again == "hello"
    assert asked.kept == [(1, "hello")]


async def test_a_wait_cancelled_as_the_text_comes_withdraws_nothing() -> None:
    asked = Asked()
    first, second = await asked.wait(), await asked.wait()
    first.cancel()
    asked.sinks[0]("hello")
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second == "hello"
    assert asked.cancelled == []


async def test_closing_ends_every_wait() -> None:
    asked = Asked()
    tasks = [await asked.wait(turn) for turn in (1, 1, 2)]
    asked.transcripts.close(SessionClosed("closed"))
    for task in tasks:
        with pytest.raises(SessionClosed):
            await task
    asked.sinks[0]("late")
    assert asked.kept == asked.cancelled == []
