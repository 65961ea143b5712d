"""The `openai` package, unmodified: speech, voices and consents."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from chroma_plugin.server.settings import ServerConfig
from chroma_plugin.voice import Voice
from chroma_plugin.voice_clip import as_flac
from tests.fakes import FakeEngine
from tests.server.serving import serving

CLIP = Voice.default()
PCM = b"\x10\x20" * 1920


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(frames=6)


@pytest.fixture
async def client(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[AsyncOpenAI]:
    async with (
        serving(engine, ServerConfig(voices=tmp_path)) as place,
        AsyncOpenAI(base_url=f"http://{place}/v1", api_key="any", max_retries=0) as client,
    ):
        yield client


async def test_speech_is_streamed(client: AsyncOpenAI, engine: FakeEngine) -> None:
    wanted: dict[str, Any] = {"model": "chroma", "voice": "marin", "input": "Good morning"}
    speech = client.audio.speech.with_streaming_response
    async with speech.create(**wanted, response_format="pcm") as answer:
        assert answer.headers["content-type"] == "audio/pcm"
        assert b"".join([piece async for piece in answer.iter_bytes()]) == PCM * 6
    (request,) = [c[1] for c in engine.conversations[0].calls if c[0] == "start_reply"]
    assert request.say == "Good morning"
    whole = await client.audio.speech.create(**wanted, response_format="wav")
    assert whole.content[44:] == PCM * 6


async def test_speech_comes_as_events(client: AsyncOpenAI) -> None:
    async with client.audio.speech.with_streaming_response.create(
        model="chroma",
        voice={"id": "default"},
        input="Good morning",
        response_format="pcm",
        stream_format="sse",
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in answer.iter_lines() if line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == PCM * 6
    assert done["type"] == "speech.audio.done"
    usage = done["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (3, 6 + 2)
    assert done["chroma"]["done"]["reason"] == "end_of_speech"


async def test_a_voice_by_the_sdk_from_consent_to_deletion(client: AsyncOpenAI) -> None:
    consent = await client.audio.voice_consents.create(
        name="Ada",
        language="en-US",
        recording=("yes.wav", b"RIFF"),
        extra_body={"statement": "Use my voice for the demo."},
    )
    assert (await client.audio.voice_consents.retrieve(consent.id)) == consent
    assert [one.id async for one in client.audio.voice_consents.list(limit=1)] == [consent.id]
    voice = await client.audio.voices.create(
        name="ada",
        consent=consent.id,
        audio_sample=("ada.flac", as_flac(CLIP.samples)),
        extra_body={"transcript": CLIP.transcript},
    )
    assert (voice.id, voice.type, voice.object) == ("ada", "audio_sample", "audio.voice")
    said = await client.audio.speech.create(
        model="chroma", voice={"id": voice.id}, input="Hello", response_format="pcm"
    )
    assert said.content == PCM * 6
    gone = await client.audio.voice_consents.delete(consent.id)
    assert (gone.deleted, gone.object) == (True, "audio.voice_consent")
    with pytest.raises(openai.NotFoundError, match="no voice"):
        await client.audio.voices.delete("ada")  # it stood on that consent


async def test_refusals_are_the_sdks_errors(client: AsyncOpenAI) -> None:
    speech: dict[str, Any] = {"model": "chroma", "voice": "nobody", "input": "Hello"}
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.audio.speech.create(**speech)
    assert (unknown.value.code, unknown.value.param) == ("voice_not_found", "voice")
    with pytest.raises(openai.BadRequestError, match="mp3"):
        await client.audio.speech.create(**speech | {"response_format": "aac"})
    with pytest.raises(openai.NotFoundError, match="no consent"):
        await client.audio.voices.create(
            name="ada",
            consent="cons_1",
            audio_sample=b"",
            extra_body={"transcript": "Hello"},
        )
    with pytest.raises(openai.BadRequestError, match="statement"):
        await client.audio.voice_consents.create(name="A", language="en", recording=b"yes")
