"""When a turn begins and ends: pauses that are judged, settings of server VAD, silence, lulls."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from chroma_plugin.server.ear import KEPT_S, LULL_S
from chroma_plugin.server.turns import JUDGED_S
from tests.fakes import FakeEngine
from tests.server.client import Client, Judge, calls, connected

STOPPED = "input_audio_buffer.speech_stopped"


async def detect(client: Client, **turns: Any) -> dict[str, Any]:
    """Has the server find the turns; says what it makes of the settings."""
    updated = await client.update(audio={"input": {"turn_detection": turns}})
    assert updated["type"] == "session.updated", updated
    found: dict[str, Any] = updated["session"]["audio"]["input"]["turn_detection"]
    return found


def heard_ms(engine: FakeEngine) -> float:
    return sum(len(samples) for (samples,) in calls(engine, "push_audio")) / 16


# -- semantic_vad ----------------------------------------------------------------------------


async def test_semantic_vad_ends_a_turn_in_the_pause_in_which_somebody_has_finished() -> None:
    judge = Judge(True)
    async with connected(judge=judge) as client:
        await detect(client, type="semantic_vad")
        await client.say(0.6)
        await client.say(0.4, loud=False)
        stopped = await client.until(STOPPED)
        assert stopped["audio_end_ms"] == pytest.approx(800, abs=50)  # 192 ms after the voice
        assert (await client.until("response.done"))["response"]["status"] == "completed"
        (samples,) = judge.judged
        assert len(samples) / 16 == pytest.approx(stopped["audio_end_ms"], abs=50)


@pytest.mark.parametrize(("eagerness", "silence_s"), [("high", 2.0), ("auto", 4.0), ("low", 8.0)])
async def test_semantic_vad_waits_for_who_has_only_paused(eagerness: str, silence_s: float) -> None:
    judge = Judge(False)
    async with connected(judge=judge) as client:
        assert (await detect(client, type="semantic_vad", eagerness=eagerness))["type"]
        await client.say(0.6)
        await client.say(silence_s - 0.3, loud=False)
        assert not client.of(STOPPED)
        await client.say(0.5, loud=False)
        stopped = await client.until(STOPPED)
        assert stopped["audio_end_ms"] == pytest.approx(600 + 1000 * silence_s, abs=70)
        assert len(judge.judged) == 1  # once a pause


async def test_semantic_vad_judges_every_pause_by_the_last_of_the_turn() -> None:
    judge = Judge(False, False, True)
    async with connected(judge=judge) as client:
        await detect(client, type="semantic_vad")
        for seconds in (0.5, 9.0, 0.5):
            await client.say(seconds)
            await client.say(0.4, loud=False)
        await client.until(STOPPED)
        assert len(client.of("input_audio_buffer.speech_started")) == 1
        assert [len(samples) for samples in judge.judged[1:]] == [JUDGED_S * 16000] * 2


async def test_semantic_vad_without_a_judge_is_a_silence_of_its_own_length() -> None:
    async with connected() as client:
        assert (await detect(client, type="semantic_vad", eagerness="high"))["eagerness"] == "high"
        await client.say(0.5)
        await client.say(0.5, loud=False)
        assert (await client.until(STOPPED))["audio_end_ms"] == pytest.approx(900, abs=70)


async def test_smart_turn_is_asked_for_and_missed_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from chroma_plugin.server import smart_turn

    def missing() -> Any:
        raise ImportError("no pipecat")

    monkeypatch.setattr(smart_turn, "_analyzer", missing)
    judge = smart_turn.SmartTurn()
    with caplog.at_level(logging.WARNING):
        assert not await judge.ready()
        assert not await judge.ready()
    (record,) = caplog.records
    assert "chroma-plugin[pipecat]" in record.getMessage()


async def test_smart_turn_that_fails_leaves_it_to_the_silence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from chroma_plugin.server import smart_turn

    monkeypatch.setattr(smart_turn, "_analyzer", lambda: object())
    judge = smart_turn.SmartTurn()
    assert await judge.ready()
    assert not await judge.complete(np.zeros(1600, np.float32))
    assert "the silence decides" in caplog.text


async def test_smart_turn_is_the_one_of_pipecat() -> None:
    pytest.importorskip("pipecat")
    from chroma_plugin.server.smart_turn import SmartTurn
    from tests.contract import question

    judge = SmartTurn()
    assert await judge.ready()
    whole = np.concatenate([question(), np.zeros(3200, np.float32)])
    assert await judge.complete(whole)
    assert await judge.complete(whole)  # of what it heard before it knows nothing
    pause = np.zeros(3072, np.float32)
    assert not await judge.complete(np.concatenate([question()[:28000], pause]))  # half a word


# -- server_vad ------------------------------------------------------------------------------


async def test_prefix_padding_and_silence_are_as_they_are_set() -> None:
    engine = FakeEngine(frames=2)
    turns = {"type": "server_vad", "prefix_padding_ms": 640, "silence_duration_ms": 256}
    async with connected(engine) as client:
        await detect(client, **turns)
        await client.say(1.5, loud=False)
        await client.say(0.5)
        await client.say(0.5, loud=False)
        stopped = await client.until(STOPPED)
        started = client.of("input_audio_buffer.speech_started")[0]
        assert started["audio_start_ms"] == pytest.approx(1500 - 640, abs=40)
        assert stopped["audio_end_ms"] == pytest.approx(2000 + 256, abs=40)
        span_ms = stopped["audio_end_ms"] - started["audio_start_ms"]
        assert heard_ms(engine) == pytest.approx(span_ms, abs=2)


async def test_a_turn_is_not_answered_with_create_response_off() -> None:
    async with connected() as client:
        await detect(client, type="server_vad", create_response=False)
        await client.say(0.5)
        await client.say(0.8, loud=False)
        await client.until("conversation.item.done")
        assert not client.of("response.created")
        await client.send("response.create")
        assert (await client.until("response.done"))["response"]["status"] == "completed"


async def test_a_voice_stops_no_reply_with_interrupt_response_off() -> None:
    async with connected(FakeEngine(frames=30, frame_s=0.002)) as client:
        await detect(client, type="server_vad", interrupt_response=False, create_response=False)
        await client.send("response.create")
        await client.until("response.output_audio.delta")
        await client.say(0.4)
        assert client.of("input_audio_buffer.speech_started")
        assert (await client.until("response.done"))["response"]["status"] == "completed"


async def test_silence_after_a_reply_is_answered_if_that_is_set() -> None:
    engine = FakeEngine(frames=25)  # 2 s of sound
    async with connected(engine) as client:
        set_to = await detect(client, type="server_vad", idle_timeout_ms=5000)
        assert set_to["idle_timeout_ms"] == 5000
        await client.say(6.0, loud=False)
        assert not client.of("input_audio_buffer.timeout_triggered")  # Chroma has said nothing yet
        await client.send("response.create")
        await client.until("response.done")
        await client.say(6.8, loud=False)
        assert not client.of("input_audio_buffer.timeout_triggered")
        await client.say(0.4, loud=False)
        event = await client.until("input_audio_buffer.timeout_triggered")
        assert event["audio_start_ms"] == pytest.approx(8000, abs=60)
        assert event["audio_end_ms"] == pytest.approx(13_000, abs=100)
        committed = client.of("input_audio_buffer.committed")[0]
        assert committed["item_id"] == event["item_id"]
        assert (await client.until("response.done", 2))["response"]["status"] == "completed"
        assert not client.errors


async def test_who_speaks_is_not_idle() -> None:
    async with connected(FakeEngine(frames=2)) as client:
        await detect(client, type="server_vad", idle_timeout_ms=5000, create_response=False)
        await client.send("response.create")
        await client.until("response.done")
        await client.say(4.0, loud=False)
        await client.say(2.0)
        await client.say(6.0, loud=False)
        assert not client.of("input_audio_buffer.timeout_triggered")


# -- turns that the client finds -------------------------------------------------------------


async def test_a_client_may_append_all_that_its_microphone_hears() -> None:
    engine = FakeEngine(frames=2)
    async with connected(engine, max_turn_s=30.0) as client:
        await client.manual()
        await client.say(3 * LULL_S - 2 * KEPT_S + 0.5, loud=False, piece_s=0.5)
        dropped = len(calls(engine, "clear_audio"))
        assert dropped == 3
        await client.say(1.0)
        await client.say(10.0, loud=False, piece_s=0.5)  # a pause in the turn drops nothing
        await client.send("input_audio_buffer.commit")
        assert len(calls(engine, "clear_audio")) == dropped
        await client.send("response.create")
        done = await client.until("response.done")
        tokens = done["response"]["usage"]["input_token_details"]["audio_tokens"]
        assert tokens / 25 == pytest.approx(KEPT_S + 0.5 + 1.0 + 10.0, abs=0.6)


async def test_a_reply_that_is_deleted_while_it_is_spoken_is_stopped() -> None:
    async with connected(FakeEngine(frames=200, frame_s=0.002)) as client:
        await client.send("response.create")
        first = await client.until("response.output_audio.delta", 2)
        await client.send("conversation.item.delete", item_id=first["item_id"])
        assert client.events[-1]["type"] == "conversation.item.deleted"
        assert client.of("response.done")[0]["response"]["status"] == "cancelled"
        assert not client.errors
