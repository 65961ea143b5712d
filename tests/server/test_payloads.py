"""What stock clients send to set a session, as it was recorded: LiveKit's plugin 1.8.9 and Pipecat
1.14.0. The clients themselves are in `test_stock_livekit.py` and `test_stock_pipecat.py`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes import FakeEngine
from tests.server.client import Client, connected

PCM = {"type": "audio/pcm", "rate": 24000}
LIVEKIT: list[dict[str, Any]] = [
    {
        "type": "realtime",
        "audio": {
            "input": {
                "format": PCM,
                "noise_reduction": None,
                "transcription": {"model": "gpt-4o-mini-transcribe"},
                "turn_detection": {
                    "type": "semantic_vad",
                    "create_response": True,
                    "eagerness": "medium",
                    "interrupt_response": True,
                },
            },
            "output": {"format": PCM, "speed": 1.0, "voice": "marin"},
        },
        "max_output_tokens": "inf",
        "model": "gpt-realtime",
        "output_modalities": ["audio"],
        "tool_choice": "auto",
        "tracing": None,
    },
    {"type": "realtime", "instructions": "Be brief."},
    {"type": "realtime", "model": "gpt-realtime", "tools": []},
]
PIPECAT: list[dict[str, Any]] = [
    {
        "type": "realtime",
        "model": "chroma",
        "instructions": "Be brief.",
        "audio": {
            "input": {"transcription": {"model": "gpt-realtime-whisper"}, "turn_detection": None}
        },
        "tools": [],
    },
    {
        "type": "realtime",
        "audio": {
            "input": {
                "turn_detection": {
                    "type": "semantic_vad",
                    "eagerness": "low",
                    "create_response": True,
                    "interrupt_response": True,
                }
            }
        },
    },
]


async def send(client: Client, updates: list[dict[str, Any]]) -> dict[str, Any]:
    """Has them done one after another; the session as it is then."""
    for update in updates:
        await client.send("session.update", event_id="theirs", session=update)
        assert client.events[-1]["type"] == "session.updated", client.events[-1]
    session: dict[str, Any] = client.events[-1]["session"]
    return session


async def test_livekit_sets_a_session() -> None:
    engine = FakeEngine(frames=2)
    async with connected(engine) as client:
        session = await send(client, LIVEKIT)
        assert session["instructions"] == "Be brief."
        assert session["audio"]["input"]["turn_detection"] == {
            "type": "semantic_vad",
            "eagerness": "medium",
            "create_response": True,
            "interrupt_response": True,
        }
        assert session["audio"]["output"]["voice"] == "marin"
        named = {"client_event_id": "response_create_1"}
        await client.send("response.create", response={"instructions": None, "metadata": named})
        done = await client.until("response.done")
        assert done["response"]["metadata"] == named


async def test_pipecat_sets_a_session() -> None:
    events = pytest.importorskip("pipecat.services.openai.realtime.events")
    async with connected(FakeEngine(frames=2)) as client:
        session = await send(client, PIPECAT[:1])
        assert session["audio"]["input"]["turn_detection"] is None
        session = await send(client, PIPECAT[1:])
        assert session["audio"]["input"]["turn_detection"]["eagerness"] == "low"
        await client.send("response.create", response={"output_modalities": ["audio"]})
        await client.until("response.done")
        for event in client.events:  # it reads everything with models of its own
            assert events.parse_server_event(json.dumps(event)) is not None


async def test_what_makes_no_difference_is_let_pass() -> None:
    update = {
        "type": "realtime",
        "model": "any",
        "tool_choice": "required",
        "tracing": "auto",
        "truncation": "auto",
        "include": ["item.input_audio_transcription.logprobs"],
        "reasoning": {"effort": "low"},
        "of_next_year": 1,
    }
    empty = {"type": "server_vad", "threshold": None, "silence_duration_ms": 600}
    async with connected(FakeEngine(frames=2)) as client:
        session = await send(client, [{"audio": {"input": {"turn_detection": empty}}}])
        turns = session["audio"]["input"]["turn_detection"]
        assert (turns["threshold"], turns["silence_duration_ms"]) == (0.5, 600)
        session = await send(client, [update])
        assert session["model"] == "chroma"
        assert session["tool_choice"] == "required"
        assert (await send(client, [{"type": "realtime", "tool_choice": None}]))["tool_choice"] == (
            "auto"
        )
