"""The protocol: every client event, every server event, and the errors."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from chroma_plugin.errors import EngineBusy, EngineFailed
from chroma_plugin.reply import EndReason, TurnDone
from chroma_plugin.server.realtime import HANDLERS
from tests.fakes import FakeEngine
from tests.server.client import Client, calls, connected

SPOKEN = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio_transcript.delta",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
]
"""The events of a spoken reply, in their order."""


def text_item(text: str, role: str = "user", **more: Any) -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}], **more}


async def ask(client: Client, count: int = 1, **response: Any) -> dict[str, Any]:
    """Asks for a reply and waits for its end."""
    await client.send("response.create", response=response)
    return await client.until("response.done", count)


# -- session ---------------------------------------------------------------------------------


async def test_the_greeting_says_how_the_session_is_set() -> None:
    async with connected() as client:
        (created,) = client.events
        session = created["session"]
        assert created["type"] == "session.created"
        assert session["model"] == "chroma"
        assert session["audio"]["output"]["voice"] == "default"
        assert session["audio"]["input"]["turn_detection"]["type"] == "server_vad"


async def test_settings_change_one_by_one() -> None:
    async with connected() as client:
        await client.update(instructions="Be brief.")
        await client.update(
            audio={"input": {"transcription": {"model": "any"}}, "output": {"voice": "marin"}}
        )
        updated = await client.update(audio={"input": {"turn_detection": None}})
        session = updated["session"]
        assert session["instructions"] == "Be brief."
        assert session["audio"]["input"]["transcription"]["model"] == "any"
        assert session["audio"]["input"]["turn_detection"] is None
        assert session["audio"]["output"]["voice"] == "marin"
        assert not client.errors


@pytest.mark.parametrize(
    ("session", "code", "param"),
    [
        ({"output_modalities": ["video"]}, "invalid_value", "session.output_modalities.0"),
        ({"audio": {"output": {"voice": "nobody"}}}, "voice_not_found", "voice"),
        ({"audio": {"output": {"speed": 1.5}}}, "invalid_value", "session.audio.output.speed"),
        ({"tools": [{"type": "function"}]}, "unsupported_parameter", "session.tools"),
        ({"prompt": {"id": "p"}}, "unsupported_parameter", "session.prompt"),
        (
            {"audio": {"input": {"noise_reduction": {"type": "near_field"}}}},
            "unsupported_parameter",
            "session.audio.input.noise_reduction",
        ),
        (
            {"audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 2}}}},
            "invalid_value",
            "threshold",
        ),
        ({"type": "transcription"}, "invalid_value", "session"),
        ({"chroma": {"sampling": {"temprature": 1}}}, "invalid_value", None),
        (
            {"chroma": {"voice": {"transcript": "hi", "pcm": ""}}},
            "consent_required",
            "session.chroma.voice.consent",
        ),
    ],
)
async def test_what_cannot_be_set_is_refused_by_its_name(
    session: dict[str, Any], code: str, param: str | None
) -> None:
    async with connected() as client:
        before = client.realtime.config
        await client.send("session.update", event_id="mine", session=session)
        error = client.events[-1]["error"]
        assert (client.events[-1]["type"], error["code"]) == ("error", code), error
        assert error["event_id"] == "mine"
        assert param is None or param in error["param"]
        assert client.realtime.config == before


# -- manual turns ----------------------------------------------------------------------------


async def test_a_manual_turn_tells_all_events_in_order() -> None:
    engine = FakeEngine(frames=8)
    async with connected(engine) as client:
        await client.manual()
        await client.say(0.5)
        await client.send("input_audio_buffer.commit")
        done = await ask(client, metadata={"client_event_id": "x"})
        assert client.kinds[2:] == [
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
            *SPOKEN,
        ]
        response = done["response"]
        assert response["status"] == "completed"
        assert response["metadata"] == {"client_event_id": "x"}
        assert client.of("response.created")[0]["response"]["metadata"] == {"client_event_id": "x"}
        (item,) = response["output"]
        assert item["content"] == [{"type": "output_audio", "transcript": "one two three four"}]
        user, assistant = client.of("conversation.item.added")
        assert user["previous_item_id"] is None
        assert assistant["previous_item_id"] == user["item"]["id"]
        assert client.audio() == b"\x10\x20" * 1920 * 8
        pushed = sum(len(samples) for (samples,) in calls(engine, "push_audio"))
        assert pushed == pytest.approx(8000, abs=20)
        (outcome,) = client.outcomes
        assert outcome.timeline.at("first_audio") is not None


async def test_usage_counts_both_directions() -> None:
    async with connected() as client:
        await client.manual()
        await client.say(1.0)
        await client.send("input_audio_buffer.commit")
        usage = (await ask(client))["response"]["usage"]
        assert usage["input_token_details"]["audio_tokens"] == 25
        assert usage["output_token_details"] == {"audio_tokens": 8, "text_tokens": 4}
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] == 37


async def test_sound_is_understood_while_it_comes_in() -> None:
    engine = FakeEngine()
    async with connected(engine) as client:
        await client.manual()
        await client.say(0.3)
        assert len(calls(engine, "push_audio")) == 3
        assert not calls(engine, "commit_audio")


async def test_a_turn_of_no_word_is_refused_and_the_session_goes_on() -> None:
    async with connected() as client:
        await client.manual()
        await client.send("input_audio_buffer.commit")
        await client.say(0.05)
        await client.send("input_audio_buffer.commit")
        assert client.errors == ["input_audio_buffer_commit_empty"] * 2
        await client.say(0.1)
        await client.send("input_audio_buffer.commit")
        assert client.of("input_audio_buffer.committed")


async def test_what_was_appended_can_be_taken_back() -> None:
    engine = FakeEngine()
    async with connected(engine) as client:
        await client.manual()
        await client.say(0.5)
        await client.send("input_audio_buffer.clear")
        assert client.events[-1]["type"] == "input_audio_buffer.cleared"
        assert calls(engine, "clear_audio")
        await client.send("input_audio_buffer.commit")
        assert client.errors == ["input_audio_buffer_commit_empty"]


# -- server VAD ------------------------------------------------------------------------------


async def test_the_server_finds_turns_and_answers_them() -> None:
    engine = FakeEngine(frames=8)
    async with connected(engine) as client:
        await client.say(1.0, loud=False)
        await client.say(0.6)
        await client.say(0.8, loud=False)
        await client.until("response.done")
        assert client.kinds[1:] == [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
            *SPOKEN,
        ]
        started, stopped = client.events[1:3]
        committed = client.of("input_audio_buffer.committed")[0]
        assert started["item_id"] == stopped["item_id"] == committed["item_id"]
        assert started["audio_start_ms"] == pytest.approx(700, abs=70)  # 300 ms of padding
        assert stopped["audio_end_ms"] == pytest.approx(2100, abs=70)  # 500 ms of silence
        pushed = sum(len(samples) for (samples,) in calls(engine, "push_audio"))
        heard_ms = stopped["audio_end_ms"] - started["audio_start_ms"]
        assert pushed / 16 == pytest.approx(heard_ms, abs=2)


async def test_a_barge_in_cancels_the_reply() -> None:
    engine = FakeEngine(frames=200, frame_s=0.002)
    async with connected(engine) as client:
        await client.send("response.create")
        await client.until("response.output_audio.delta", 3)
        await client.say(0.3)
        done = await client.until("response.done")
        assert done["response"]["status"] == "cancelled"
        assert done["response"]["status_details"]["reason"] == "turn_detected"
        assert done["response"]["output"][0]["status"] == "incomplete"
        kinds = client.kinds
        assert kinds.index("input_audio_buffer.speech_started") < kinds.index("response.done")
        await client.say(0.8, loud=False)
        await client.until("response.created", 2)
        assert client.outcomes[0].cancelled_by == "turn_detected"
        assert not client.errors


async def test_a_reply_may_go_on_while_the_user_speaks() -> None:
    engine = FakeEngine(frames=30, frame_s=0.002)
    turns = {"type": "server_vad", "interrupt_response": False, "create_response": False}
    async with connected(engine) as client:
        await client.update(audio={"input": {"turn_detection": turns}})
        await client.send("response.create")
        await client.until("response.output_audio.delta")
        await client.say(0.4)
        await client.say(0.8, loud=False)
        await client.until("input_audio_buffer.committed")
        done = await client.until("response.done")
        assert done["response"]["status"] == "completed"
        assert [name for name, *_ in engine.conversations[0].calls].count("commit_audio") == 1
        assert len(client.of("response.created")) == 1
        assert (await ask(client, 2))["response"]["status"] == "completed"


# -- transcripts -----------------------------------------------------------------------------


async def test_what_the_user_said_is_written_down_if_asked_for() -> None:
    async with connected() as client:
        await client.manual()
        await client.update(audio={"input": {"transcription": {"model": "gpt-4o-transcribe"}}})
        await client.say(0.5)
        await client.send("input_audio_buffer.commit")
        kind = "conversation.item.input_audio_transcription.completed"
        completed = await client.until(kind)
        assert completed["transcript"] == "what was said"
        assert completed["usage"] == {"type": "duration", "seconds": 0.5}
        item_id = client.of("input_audio_buffer.committed")[0]["item_id"]
        assert completed["item_id"] == item_id
        await client.send("conversation.item.retrieve", item_id=item_id)
        content = client.events[-1]["item"]["content"]
        assert content == [{"type": "input_audio", "transcript": "what was said"}]


async def test_a_transcript_that_fails_is_told() -> None:
    engine = FakeEngine()
    engine.transcript = EngineFailed("no")
    async with connected(engine) as client:
        await client.manual()
        await client.update(audio={"input": {"transcription": {}}})
        await client.say(0.5)
        await client.send("input_audio_buffer.commit")
        failed = await client.until("conversation.item.input_audio_transcription.failed")
        assert failed["error"]["message"] == "no"


# -- replies ---------------------------------------------------------------------------------


async def test_a_reply_as_text_has_no_sound() -> None:
    async with connected() as client:
        done = await ask(client, output_modalities=["text"])
        assert not client.of("response.output_audio.delta")
        assert client.of("response.output_text.done")[0]["text"] == "one two three four"
        assert done["response"]["output"][0]["content"][0]["type"] == "output_text"
        assert done["response"]["usage"]["output_token_details"]["audio_tokens"] == 0


async def test_a_reply_in_mu_law_is_a_third_as_many_samples() -> None:
    async with connected() as client:
        await client.update(audio={"output": {"format": {"type": "audio/pcmu"}}})
        await ask(client)
        assert len(client.audio()) == pytest.approx(8 * 640, abs=8)


async def test_instructions_of_one_reply_replace_the_sessions_for_it() -> None:
    engine = FakeEngine(frames=2)
    async with connected(engine) as client:
        await client.update(instructions="Be brief.")
        await ask(client)
        await ask(client, 2, instructions="Greet.")
        await ask(client, 3)
        assert calls(engine, "set_instructions") == [("Be brief.",), ("Greet.",), ("Be brief.",)]


async def test_a_second_reply_at_the_same_time_is_refused() -> None:
    async with connected(FakeEngine(frames=50, frame_s=0.002)) as client:
        await client.send("response.create")
        await client.send("response.create")
        assert client.errors == ["conversation_already_has_active_response"]
        await client.until("response.done")
        assert (await ask(client, 2))["response"]["status"] == "completed"


async def test_a_reply_is_cancelled_and_another_one_asked_for_at_once() -> None:
    async with connected(FakeEngine(frames=100, frame_s=0.002)) as client:
        await client.send("response.create")
        await client.until("response.output_audio.delta")
        await client.send("response.cancel")
        await client.send("response.create")
        first = await client.until("response.done")
        assert first["response"]["status_details"]["reason"] == "client_cancelled"
        second = client.of("response.created")[1]["response"]["id"]
        await client.send("response.cancel", response_id="resp_other")
        await client.send("response.cancel", response_id=second)
        assert (await client.until("response.done", 2))["response"]["output"] == []
        assert client.errors == ["response_cancel_not_active"]


async def test_there_is_a_message_that_clients_know_for_a_cancel_of_nothing() -> None:
    async with connected() as client:
        await client.send("response.cancel")
        assert client.errors == ["response_cancel_not_active"]
        assert client.events[-1]["error"]["message"].startswith("Cancellation failed")


async def test_a_reply_ends_at_its_limit_of_tokens() -> None:
    async with connected(FakeEngine(frames=100, frame_s=0.001)) as client:
        done = await ask(client, max_output_tokens=10)
        assert done["response"]["status"] == "incomplete"
        assert done["response"]["status_details"]["reason"] == "max_output_tokens"
        assert done["response"]["usage"]["output_tokens"] == pytest.approx(10, abs=1)


async def test_a_reply_that_fails_says_why() -> None:
    engine = FakeEngine()
    async with connected(engine) as client:
        fails: Any = lambda request, sink: sink(EngineBusy("no row"))  # noqa: E731
        engine.conversations[0].start_reply = fails
        done = await ask(client)
        assert done["response"]["status"] == "failed"
        assert done["response"]["status_details"]["error"]["code"] == "server_overloaded"
        assert done["chroma"]["error"] == "EngineBusy"
        assert done["response"]["output"] == []


async def test_what_is_to_be_said_word_for_word() -> None:
    async with connected() as client:
        await ask(client, chroma={"say": "Good morning", "turn": 7})
        assert client.of("response.output_audio_transcript.done")[0]["transcript"] == "Good morning"
        assert client.of("response.done")[0]["chroma"]["turn"] == 7


async def test_a_text_that_the_model_stopped_in_is_incomplete() -> None:
    """The protocol has no reason for it; the engine's own is beside it."""
    engine = FakeEngine()
    async with connected(engine) as client:
        stops: Any = lambda request, sink: sink(TurnDone(EndReason.UNFINISHED))  # noqa: E731
        engine.conversations[0].start_reply = stops
        done = await ask(client, chroma={"say": "Good morning"})
        assert done["response"]["status"] == "incomplete"
        assert done["response"]["status_details"] == {"type": "incomplete"}
        assert done["chroma"]["done"]["reason"] == "unfinished"


# -- the conversation ------------------------------------------------------------------------


async def test_typed_text_is_answered() -> None:
    engine = FakeEngine(frames=2)
    async with connected(engine) as client:
        await client.send("conversation.item.create", item=text_item("Hello", id="mine"))
        added = client.of("conversation.item.added")[0]
        assert added["item"]["id"] == "mine"
        assert added["previous_item_id"] is None
        await ask(client)
        assert calls(engine, "add_text") == [("user", "Hello")]
        assert len(engine.conversations) == 1


async def test_a_context_is_restored() -> None:
    engine = FakeEngine(frames=2)
    async with connected(engine) as client:
        await client.send("conversation.item.create", item=text_item("Hello", id="a"))
        await client.send("conversation.item.create", item=text_item("Hi!", "assistant", id="b"))
        await client.send("conversation.item.create", item=text_item("How are you?", id="c"))
        await client.send(
            "conversation.item.create",
            item=text_item("First", "user", id="z"),
            previous_item_id="root",
        )
        await ask(client)
        told = [
            ("user", "First"),
            ("user", "Hello"),
            ("assistant", "Hi!"),
            ("user", "How are you?"),
        ]
        assert calls(engine, "add_text") == told
        assert len(engine.conversations) == 2
        await ask(client, 2)
        assert len(engine.conversations) == 2  # nothing changed


async def test_text_that_comes_while_chroma_speaks_interrupts_nobody() -> None:
    engine = FakeEngine(frames=30, frame_s=0.002)
    async with connected(engine) as client:
        await client.send("response.create")
        await client.until("response.output_audio.delta")
        await client.send("conversation.item.create", item=text_item("By the way"))
        done = await client.until("response.done")
        assert done["response"]["status"] == "completed"
        await ask(client, 2)
        assert calls(engine, "add_text") == [("user", "By the way")]


async def test_system_items_join_the_instructions() -> None:
    engine = FakeEngine(frames=2)
    async with connected(engine) as client:
        await client.update(instructions="Be brief.")
        await client.send("conversation.item.create", item=text_item("It is noon.", "system"))
        await ask(client)
        assert calls(engine, "set_instructions") == [("Be brief.\n\nIt is noon.",)]


async def test_a_user_item_may_be_sound() -> None:
    engine = FakeEngine(frames=2)
    sound = base64.b64encode(b"\x10\x20" * 12000).decode()
    item = {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_audio", "audio": sound}],
    }
    async with connected(engine) as client:
        await client.send("conversation.item.create", item=item)
        await ask(client)
        assert len(calls(engine, "commit_audio")) == 1
        assert sum(len(s) for (s,) in calls(engine, "push_audio")) == pytest.approx(8000, abs=4)


async def test_what_was_not_heard_leaves_the_conversation() -> None:
    engine = FakeEngine(frames=24)
    async with connected(engine) as client:
        done = await ask(client)
        item_id = done["response"]["output"][0]["id"]
        cut = {"item_id": item_id, "content_index": 0, "audio_end_ms": 300}
        await client.send("conversation.item.truncate", **cut)
        assert client.events[-1]["type"] == "conversation.item.truncated"
        assert client.events[-1]["audio_end_ms"] == 300
        await client.send("conversation.item.retrieve", item_id=item_id)
        assert client.events[-1]["item"]["content"][0]["transcript"] == "one two"
        assert calls(engine, "keep_reply")[-1][1] == 2  # tokens
        assert not client.errors


@pytest.mark.parametrize("item_id", ["item_unknown", "", "user"])
async def test_truncate_is_never_answered_with_an_error(item_id: str) -> None:
    async with connected() as client:
        await client.send("conversation.item.create", item=text_item("Hello", id="user"))
        cut = {"item_id": item_id, "content_index": 0, "audio_end_ms": 1}
        await client.send("conversation.item.truncate", **cut)
        assert client.events[-1]["type"] == "conversation.item.truncated"


async def test_items_are_deleted_and_the_rest_is_remembered() -> None:
    engine = FakeEngine(frames=8)
    async with connected(engine) as client:
        await client.manual()
        await client.say(0.5)
        await client.send("input_audio_buffer.commit")
        await client.send("conversation.item.create", item=text_item("Forget this", id="gone"))
        await ask(client)
        await client.send("conversation.item.delete", item_id="gone")
        assert client.events[-1]["type"] == "conversation.item.deleted"
        await ask(client, 2)
        told = [("user", "what was said"), ("assistant", "one two three four")]
        assert calls(engine, "add_text") == told  # what was only heard was written down before
        await client.send("conversation.item.delete", item_id="gone")
        await client.send("conversation.item.retrieve", item_id="gone")
        codes = ["item_delete_invalid_item_id", "item_retrieve_invalid_item_id"]
        assert client.errors == codes  # Pipecat knows the second one


async def test_the_newest_reply_is_deleted_without_a_new_session() -> None:
    engine = FakeEngine(frames=8)
    async with connected(engine) as client:
        done = await ask(client)
        item_id = done["response"]["output"][0]["id"]
        await client.send("conversation.item.delete", item_id=item_id)
        assert calls(engine, "keep_reply")[-1][1] == 0
        await ask(client, 2)
        assert len(engine.conversations) == 1


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"item": text_item("x", id="taken")}, "item_create_duplicate_item_id"),  # LiveKit's
        ({"item": text_item("x"), "previous_item_id": "nobody"}, "item_not_found"),
        ({"item": {"type": "function_call_output", "output": "1"}}, "invalid_value"),
        ({"item": {"type": "message", "role": "user", "content": []}}, "invalid_value"),
        ({}, "missing_required_parameter"),
    ],
)
async def test_items_that_cannot_be_are_refused(fields: dict[str, Any], code: str) -> None:
    async with connected() as client:
        await client.send("conversation.item.create", item=text_item("Hello", id="taken"))
        await client.send("conversation.item.create", **fields)
        assert client.errors == [code]
        assert len(client.of("conversation.item.added")) == 1


# -- out of band -----------------------------------------------------------------------------


async def test_an_out_of_band_reply_becomes_no_part_of_the_conversation() -> None:
    engine = FakeEngine(frames=8)
    async with connected(engine) as client:
        await client.send("conversation.item.create", item=text_item("Hello", id="a"))
        wanted = {
            "conversation": "none",
            "instructions": "Classify.",
            "input": [{"type": "item_reference", "id": "a"}, text_item("What is it?")],
            "output_modalities": ["text"],
            "metadata": {"purpose": "classify"},
        }
        done = await ask(client, 1, **wanted)
        assert done["response"]["metadata"] == {"purpose": "classify"}
        assert len(client.of("conversation.item.added")) == 1
        assert calls(engine, "add_text") == [("user", "Hello"), ("user", "What is it?")]
        assert calls(engine, "set_instructions")[-1] == ("Classify.",)
        await ask(client, 2)
        assert len(engine.conversations) == 2


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ({"input": [text_item("x")]}, "unsupported_parameter"),
        (
            {"conversation": "none", "input": [{"type": "item_reference", "id": "nobody"}]},
            "item_not_found",
        ),
        ({"conversation": "none", "input": [{"type": "function_call"}]}, "invalid_value"),
        ({"conversation": "other"}, "invalid_value"),
        ({"audio": {"output": {"voice": "nobody"}}}, "voice_not_found"),
        ({"tools": [{"type": "function"}]}, "unsupported_parameter"),
        ({"max_output_tokens": 0}, "invalid_value"),
    ],
)
async def test_a_reply_that_cannot_be_is_refused(response: dict[str, Any], code: str) -> None:
    engine = FakeEngine(frames=2)
    async with connected(engine) as client:
        await client.send("response.create", event_id="mine", response=response)
        assert client.errors == [code]
        assert client.events[-1]["error"]["event_id"] == "mine"
        assert len(engine.conversations) == 1
        assert (await ask(client))["response"]["status"] == "completed"


async def test_it_speaks_beside_the_conversation_and_can_be_cancelled() -> None:
    async with connected(FakeEngine(frames=100, frame_s=0.002)) as client:
        await client.send("response.create")
        for _ in range(3):
            await client.send("response.create", response={"conversation": "none"})
        assert client.errors == ["too_many_responses"]
        apart = client.of("response.created")[1]["response"]["id"]
        await client.send("response.cancel", response_id=apart)
        done = await client.until("response.done")
        assert (done["response"]["id"], done["response"]["status"]) == (apart, "cancelled")


# -- what is no event ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "invalid_json"),
        ("{", "invalid_json"),
        ("[]", "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        ("{}", "missing_required_parameter"),
        ('{"type": 7}', "missing_required_parameter"),
        ('{"type": "nonsense"}', "invalid_value"),
        ('{"type": "input_audio_buffer.append"}', "missing_required_parameter"),
        ('{"type": "input_audio_buffer.append", "audio": "*"}', "invalid_value"),
        ('{"type": "input_audio_buffer.append", "audio": "AAA="}', None),
        ('{"type": "input_audio_buffer.append", "audio": "AAAA"}', "invalid_value"),
        ('{"type": "response.create", "response": {"metadata": {"a": 1}}}', "invalid_value"),
        ('{"type": "session.update", "session": []}', "invalid_value"),
        ('{"type": "session.update", "session": {"audio": {"input": 5}}}', "invalid_value"),
    ],
)
async def test_nonsense_is_told_and_the_connection_goes_on(text: str, code: str | None) -> None:
    async with connected(FakeEngine(frames=2)) as client:
        await client.realtime.handle(text)
        assert client.errors == ([code] if code else [])
        assert (await ask(client))["response"]["status"] == "completed"


async def test_audio_that_comes_too_fast_is_refused() -> None:
    async with connected(max_audio_rate=0.01) as client:  # 0.6 s at once
        await client.say(1.0)
        assert "rate_limit_exceeded" in client.errors


async def test_closing_stops_everything() -> None:
    engine = FakeEngine(frames=1000, frame_s=0.01)
    async with connected(engine) as client:
        await client.send("response.create")
        await client.send("response.create", response={"conversation": "none"})
        await client.until("response.output_audio.delta", 2)
    before = asyncio.all_tasks()
    assert all(c.task is None or c.task.done() or c.task.cancelling() for c in engine.conversations)
    assert len(before) == 1


def test_every_client_event_of_the_protocol_is_served() -> None:
    assert set(HANDLERS) == {
        "session.update",
        "input_audio_buffer.append",
        "input_audio_buffer.commit",
        "input_audio_buffer.clear",
        "conversation.item.create",
        "conversation.item.retrieve",
        "conversation.item.delete",
        "conversation.item.truncate",
        "response.create",
        "response.cancel",
    }
