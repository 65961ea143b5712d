"""The moments of a turn, and what is derived from them."""

from __future__ import annotations

from typing import Any

import pytest

from chroma_plugin.server.timeline import Timeline
from tests.server.client import connected
from tests.server.scripted import Clock, ScriptedEngine


def test_only_the_first_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, line = Clock(monkeypatch), Timeline()
    line.mark("first_audio")
    clock.go(1.0)
    line.mark("first_audio")
    line.mark("end")
    assert line.between_s("first_audio", "end") == 1.0
    assert line.between_s("asked", "end") is None
    assert line.at("asked") is None


def test_it_begins_with_the_first_that_is_known() -> None:
    line = Timeline()
    line.mark("asked", 3.0)
    line.mark("first_audio", 3.5)
    assert line.begin == "asked"
    assert line.speech_end_to_first_audio_s is None  # nobody had spoken
    line.mark("commit", 2.0)
    assert (line.begin, line.speech_end_to_first_audio_s) == ("commit", 1.5)
    line.mark("speech_end", 1.5)
    assert (line.begin, line.speech_end_to_first_audio_s) == ("speech_end", 2.0)


def test_what_did_not_happen_is_left_out() -> None:
    line = Timeline()
    line.mark("asked", 3.0)
    line.mark("end", 3.2504)
    assert line.latency_ms(0.0) == {"total": 250.4, "audio": 0.0}


async def test_a_turn_that_the_server_found(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, engine = Clock(monkeypatch), ScriptedEngine(monkeypatch)
    async with connected(engine) as client:
        await client.say(0.5)
        await client.say(0.6, loud=False)  # the clock stands: all of it comes at once
        user = (await client.until("input_audio_buffer.committed"))["item_id"]
        await client.until("response.created")
        clock.go(0.25)
        engine.speak(2)
        await client.until("response.output_audio.delta", 2)
        clock.go(0.5)
        engine.end(2)
        done = await client.until("response.done")
        assert done["chroma"]["latency_ms"] == {
            "speech_end_to_first_audio": 762.0,  # with the 16 windows of silence that told its end
            "ask_to_first_audio": 250.0,
            "first_text": 250.0,
            "total": 750.0,
            "audio": 160.0,
        }
        (outcome,) = client.outcomes
        assert outcome.id == done["response"]["id"]
        assert outcome.timeline.turn == user
        assert outcome.timeline.at("interruption") is None


async def test_judging_a_pause_takes_time_that_the_user_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who asks for `semantic_vad` waits while the pause is judged: the voice had ended before."""
    clock, engine = Clock(monkeypatch), ScriptedEngine(monkeypatch)

    class Slow:
        async def ready(self) -> bool:
            return True

        async def complete(self, samples: Any) -> bool:
            clock.go(0.125)
            return True

    async with connected(engine, judge=Slow()) as client:
        turns = {"type": "semantic_vad", "eagerness": "high"}
        await client.update(audio={"input": {"turn_detection": turns}})
        await client.say(0.5)
        await client.say(0.3, loud=False)
        await client.until("response.created")
        clock.go(0.25)
        engine.speak(1)
        await client.until("response.output_audio.delta")
        engine.end(1)
        await client.until("response.done")
        line = client.outcomes[0].timeline
        silence_s = 6 * 0.032  # the pause that was judged
        assert line.between_s("speech_end", "commit") == pytest.approx(silence_s + 0.125)
        assert line.speech_end_to_first_audio_s == pytest.approx(silence_s + 0.125 + 0.25)


async def test_a_turn_that_the_client_found(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, engine = Clock(monkeypatch), ScriptedEngine(monkeypatch)
    async with connected(engine) as client:
        await client.manual()
        await client.say(0.5)
        await client.send("input_audio_buffer.commit")
        clock.go(0.125)
        await client.send("response.create")
        clock.go(0.25)
        engine.speak(1)
        await client.until("response.output_audio.delta")
        engine.end(1)
        latency_ms = (await client.until("response.done"))["chroma"]["latency_ms"]
        assert latency_ms["speech_end_to_first_audio"] == 375.0
        assert latency_ms["ask_to_first_audio"] == 250.0

        await client.send("response.create")  # once more, and nobody had spoken
        engine.speak(1)
        await client.until("response.output_audio.delta", 2)
        engine.end(1)
        await client.until("response.done", 2)
        second = client.outcomes[1].timeline
        assert (second.begin, second.turn) == ("asked", None)


async def test_a_turn_that_was_not_answered_is_not_the_next_ones_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, engine = Clock(monkeypatch), ScriptedEngine(monkeypatch)
    async with connected(engine) as client:
        await client.manual()
        for _ in range(2):
            clock.go(10.0)
            await client.say(0.5)
            await client.send("input_audio_buffer.commit")
        await client.send("response.create")
        clock.go(0.5)
        engine.speak(1)
        await client.until("response.output_audio.delta")
        engine.end(1)
        await client.until("response.done")
        line = client.outcomes[0].timeline
        assert line.speech_end_to_first_audio_s == 0.5
        assert line.turn == client.of("input_audio_buffer.committed")[1]["item_id"]


async def test_a_reply_that_is_stopped_says_when(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, engine = Clock(monkeypatch), ScriptedEngine(monkeypatch)
    async with connected(engine) as client:
        await client.send("response.create")
        engine.speak(1)
        await client.until("response.output_audio.delta")
        clock.go(0.75)
        await client.send("response.cancel")
        await client.until("response.done")
        (outcome,) = client.outcomes
        assert outcome.timeline.between_s("asked", "interruption") == 0.75
        assert (outcome.status, outcome.cancelled_by) == ("cancelled", "client_cancelled")


async def test_a_reply_whose_client_has_gone_has_an_end_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = ScriptedEngine(monkeypatch)
    async with connected(engine) as client:
        await client.send("response.create")
        engine.speak(1)
        await client.until("response.output_audio.delta")
    (outcome,) = client.outcomes
    assert outcome.status == "abandoned"
    assert outcome.timeline.at("end") is not None
