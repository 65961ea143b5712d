"""The routes over a real socket, and those of HTTP."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from chroma_plugin.conversation import ReplyRequest
from chroma_plugin.errors import CheckpointError, EngineBusy
from chroma_plugin.reply import AudioChunk, EndReason, Sink, TextDelta, TurnDone
from chroma_plugin.server.access import MAX_FORMS
from chroma_plugin.server.settings import ApiKey, ServerConfig
from chroma_plugin.voice import Voice
from tests.fakes import FakeConversation, FakeEngine
from tests.server.client import WAIT_S, check
from tests.server.serving import http, serving

KEY, TALK_KEY = "k" * 32, "t" * 32
KEYS = (ApiKey(KEY), ApiKey(TALK_KEY, ("talk",)))


async def until(socket: Any, kind: str) -> dict[str, Any]:
    async with asyncio.timeout(WAIT_S):
        while True:
            event: dict[str, Any] = json.loads(await socket.recv())
            check(event)
            if event["type"] == kind:
                return event


async def send(socket: Any, kind: str, **fields: Any) -> None:
    await socket.send(json.dumps({"type": kind, **fields}))


async def closed(socket: Any) -> int:
    async with asyncio.timeout(WAIT_S):
        try:
            while True:
                await socket.recv()
        except ConnectionClosed as end:
            return end.rcvd.code if end.rcvd else 0


def clip() -> bytes:
    data = io.BytesIO()
    soundfile.write(data, Voice.default().samples, 24000, format="WAV")
    return data.getvalue()


# -- the WebSocket ---------------------------------------------------------------------------


async def test_a_conversation_over_a_socket() -> None:
    async with serving() as place:
        async with connect(f"ws://{place}/v1/realtime?model=chroma") as socket:
            await until(socket, "session.created")
            await send(socket, "response.create")
            done = await until(socket, "response.done")
            assert done["response"]["status"] == "completed"
        async with httpx.AsyncClient(base_url=f"http://{place}") as requests:
            pool = (await requests.get("/v1/pool")).json()
            assert (pool["status"], pool["used"]) == ("ready", 0)
            figures = (await requests.get("/metrics")).text
            assert 'chroma_responses_total{status="completed"} 1.0' in figures
            assert "chroma_time_to_first_audio_seconds_count 1.0" in figures
            assert "chroma_active_sessions 0.0" in figures


async def test_the_openai_client_talks_to_it() -> None:
    openai = pytest.importorskip("openai")
    async with serving() as place:
        client = openai.AsyncOpenAI(
            api_key="any", base_url=f"http://{place}/v1", websocket_base_url=f"ws://{place}/v1"
        )
        async with asyncio.timeout(WAIT_S), client.realtime.connect(model="chroma") as connection:
            await connection.session.update(
                session={"type": "realtime", "instructions": "Be brief."}
            )
            item = {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "Hello"}],
            }
            await connection.conversation.item.create(item=item)
            await connection.response.create()
            sound, words = 0, ""
            async for event in connection:
                if event.type == "response.output_audio.delta":
                    sound += len(event.delta)
                elif event.type == "response.output_audio_transcript.delta":
                    words += event.delta
                elif event.type == "response.done":
                    assert event.response.status == "completed"
                    break
                assert event.type != "error", event
        assert sound == 8 * 1920 * 2 * 4 / 3
        assert words == "one two three four"
        await client.close()


async def test_a_full_server_accepts_says_so_and_hangs_up() -> None:
    async with serving(config=ServerConfig(max_sessions=1)) as place:
        url = f"ws://{place}/v1/realtime"
        async with connect(url) as first, connect(url) as second:
            await until(first, "session.created")
            error = await until(second, "error")
            assert error["error"]["code"] == "server_overloaded"
            assert await closed(second) == 1013
            async with httpx.AsyncClient(base_url=f"http://{place}") as requests:
                assert (await requests.get("/ready")).json() == {"status": "full"}
        async with connect(url) as third:
            await until(third, "session.created")


async def test_an_engine_without_room_is_told_as_well() -> None:
    engine = FakeEngine()

    async def busy(**settings: Any) -> Any:
        raise EngineBusy("no room")

    engine.open_session = busy  # type: ignore[method-assign]
    async with serving(engine) as place, connect(f"ws://{place}/v1/realtime") as socket:
        assert (await until(socket, "error"))["error"]["code"] == "server_overloaded"
        assert await closed(socket) == 1013


async def test_a_client_that_says_nothing_is_hung_up() -> None:
    for limit, code in (("idle_s", "session_idle"), ("max_session_s", "session_expired")):
        config = ServerConfig(**{limit: 0.05})  # type: ignore[arg-type]
        async with (
            serving(config=config) as place,
            connect(f"ws://{place}/v1/realtime") as socket,
        ):
            assert (await until(socket, "error"))["error"]["code"] == code
            assert await closed(socket) == 1001


async def test_a_flood_and_a_giant_are_hung_up_and_others_go_on() -> None:
    config = ServerConfig(max_events_per_s=1.0, max_message_bytes=10_000)
    async with serving(config=config) as place:
        url = f"ws://{place}/v1/realtime"
        async with connect(url) as other, connect(url) as flood, connect(url) as giant:
            for _ in range(20):
                await send(flood, "response.cancel")
            assert await closed(flood) == 1008
            await giant.send("x" * 20_000)
            assert await closed(giant) == 1009
            await send(other, "response.create")
            await until(other, "response.done")


async def test_a_client_that_does_not_read_is_hung_up() -> None:
    engine = FakeEngine(frames=100_000)
    config = ServerConfig(max_unsent_bytes=2_000_000)
    async with (
        serving(engine, config) as place,
        connect(f"ws://{place}/v1/realtime", max_queue=1) as socket,
    ):
        await send(socket, "response.create")
        async with asyncio.timeout(WAIT_S):
            while not engine.conversations[0].task or not engine.conversations[0].task.done():
                await asyncio.sleep(0.01)
        socket.transport.abort()


async def test_a_client_that_goes_in_mid_reply_leaves_nothing() -> None:
    engine = FakeEngine(frames=10_000, frame_s=0.001)
    async with serving(engine) as place:
        async with connect(f"ws://{place}/v1/realtime") as socket:
            await send(socket, "response.create")
            await until(socket, "response.output_audio.delta")
            socket.transport.abort()
        async with asyncio.timeout(WAIT_S), httpx.AsyncClient(base_url=f"http://{place}") as web:
            while (await web.get("/v1/pool")).json()["used"]:
                await asyncio.sleep(0.01)
        assert ("close",) in [c[:1] for c in engine.conversations[0].calls] or (
            engine.conversations[0].task.cancelled()
        )


# -- who may come in -------------------------------------------------------------------------


async def test_a_socket_needs_a_key_where_there_are_keys() -> None:
    async with serving(config=ServerConfig(api_keys=KEYS)) as place:
        url = f"ws://{place}/v1/realtime"
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
            with pytest.raises(InvalidStatus) as refused:
                await connect(url, additional_headers=headers)
            assert refused.value.response.status_code == 401
        async with connect(url, additional_headers={"Authorization": f"Bearer {TALK_KEY}"}) as one:
            await until(one, "session.created")
        offered: Any = ["realtime", f"openai-insecure-api-key.{KEY}"]
        async with connect(url, subprotocols=offered) as one:
            assert one.subprotocol == "realtime"
            await until(one, "session.created")


@pytest.mark.parametrize(
    ("origin", "welcome"),
    [
        ("http://localhost:3000", True),
        ("https://app.example", True),
        ("https://evil.example", False),
        ("null", False),
        ("http://127.0.0.1.evil.example", False),
    ],
)
async def test_pages_of_other_origins_are_refused(origin: str, welcome: bool) -> None:
    config = ServerConfig(origins=("https://app.example",))
    async with http(config=config, headers={"Origin": origin}) as requests:
        answer = await requests.get("/v1/models")
        assert answer.status_code == (200 if welcome else 403)


async def test_keys_open_what_their_scopes_say(tmp_path: Path) -> None:
    async with http(config=ServerConfig(api_keys=KEYS, voices=tmp_path)) as requests:
        talk, all_of_it = ({"Authorization": f"Bearer {key}"} for key in (TALK_KEY, KEY))
        assert (await requests.get("/v1/audio/voices")).status_code == 401
        assert (await requests.get("/v1/audio/voices", headers=talk)).status_code == 200
        assert (await requests.get("/v1/audio/voice_consents", headers=talk)).status_code == 401
        assert (await requests.get("/v1/audio/voice_consents", headers=all_of_it)).is_success
        assert (await requests.get("/health")).json() == {"status": "ok"}
        error = (await requests.get("/v1/models")).json()["error"]
        assert error["code"] == "invalid_api_key"


async def test_no_request_holds_more_than_it_may(tmp_path: Path) -> None:
    config = ServerConfig(voices=tmp_path, max_upload_bytes=50_000)

    async def endless() -> Any:
        yield b'--x\r\nContent-Disposition: form-data; name="audio_sample"; filename="a"\r\n\r\n'
        for _ in range(100):
            yield b"x" * 1000

    async with http(config=config) as requests:
        files = {"audio_sample": ("a.wav", b"x" * 60_000)}
        fields = {"name": "ada", "consent": "c", "transcript": "t"}
        answer = await requests.post("/v1/audio/voices", data=fields, files=files)
        assert answer.status_code == 413
        headers = {"content-type": "multipart/form-data; boundary=x"}
        answer = await requests.post("/v1/audio/voices", content=endless(), headers=headers)
        assert answer.status_code == 413


async def test_nobody_without_a_key_sends_a_body() -> None:
    taken = []

    async def body() -> Any:
        taken.append(1)
        yield b"x" * 1000

    form = {"content-type": "multipart/form-data; boundary=x"}
    async with http(config=ServerConfig(api_keys=KEYS)) as requests:
        for path in ("/v1/audio/voices", "/v1/audio/speech"):
            answer = await requests.post(path, content=body(), headers=form)
            assert (answer.status_code, taken) == (401, [])
        talk = form | {"authorization": f"Bearer {TALK_KEY}"}
        assert (await requests.post("/v1/audio/voices", content=body(), headers=talk)).is_error
        assert taken


async def test_few_uploads_are_on_their_way_at_once(tmp_path: Path) -> None:
    going_on, enough = asyncio.Semaphore(0), asyncio.Event()

    async def slow() -> Any:
        going_on.release()
        await enough.wait()
        yield b"--x--\r\n"

    form = {"content-type": "multipart/form-data; boundary=x"}
    async with http(config=ServerConfig(voices=tmp_path)) as requests, asyncio.timeout(WAIT_S):
        ask = lambda: requests.post("/v1/audio/voices", content=slow(), headers=form)  # noqa: E731
        waiting = [asyncio.create_task(ask()) for _ in range(MAX_FORMS)]
        for _ in waiting:
            await going_on.acquire()
        refused = await ask()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_uploads")
        enough.set()
        assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {400}
        assert (await ask()).status_code == 400


# -- state and models ------------------------------------------------------------------------


async def test_models_are_listed() -> None:
    for name in ("mine", "Some/Hub-Id"):
        async with http(config=ServerConfig(model=name)) as requests:
            (listed,) = (await requests.get("/v1/models")).json()["data"]
            assert (listed["id"], listed["object"]) == (name, "model")
            for asked in (name, "chroma", name.replace("/", "%2F")):
                assert (await requests.get(f"/v1/models/{asked}")).json() == listed
            missing = await requests.get("/v1/models/other")
            assert missing.status_code == 404
            assert repr(name) in missing.json()["error"]["message"]


@pytest.mark.parametrize("error", [CheckpointError("no such folder"), RuntimeError("no memory")])
async def test_a_server_whose_engine_does_not_start_is_alive_and_not_ready(
    error: Exception,
) -> None:
    engine = FakeEngine()

    async def fails() -> None:
        raise error

    engine.start = fails  # type: ignore[method-assign]
    async with http(engine) as requests:
        await asyncio.sleep(0)
        ready = await requests.get("/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "failed"})
        assert (await requests.get("/health")).status_code == 200


async def test_every_route_is_described() -> None:
    async with http() as requests:
        paths = (await requests.get("/openapi.json")).json()["paths"]
    assert set(paths) == {
        "/health",
        "/ready",
        "/metrics",
        "/v1/pool",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/audio/speech",
        "/v1/audio/voices",
        "/v1/audio/voices/{voice}",
        "/v1/audio/voice_consents",
        "/v1/audio/voice_consents/{consent}",
    }


# -- speech ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["mp3", "opus", "flac", "wav", "pcm"])
async def test_a_text_is_spoken_in_every_format(form: str) -> None:
    engine = FakeEngine(frames=12)
    wanted = {"model": "chroma", "input": "Good morning", "voice": "marin"}
    async with http(engine) as requests:
        answer = await requests.post("/v1/audio/speech", json=wanted | {"response_format": form})
        assert answer.status_code == 200
        sound = answer.content
    (request,) = [c[1] for c in engine.conversations[0].calls if c[0] == "start_reply"]
    assert request.say == "Good morning"
    if form == "pcm":
        assert sound == b"\x10\x20" * 1920 * 12
        return
    if form == "wav":
        assert sound[:4] == b"RIFF" and sound[44:] == b"\x10\x20" * 1920 * 12
        assert sound[4:8] == sound[40:44] == b"\xff" * 4  # of a length that nobody knows yet
    seconds, loudest = decoded(sound)
    assert seconds == pytest.approx(0.96, abs=0.12)
    assert loudest > 0.1


def decoded(sound: bytes) -> tuple[float, float]:
    """The length of a file of unknown length, and its loudest sample, by FFmpeg."""
    av = pytest.importorskip("av")
    with av.open(io.BytesIO(sound)) as file:
        frames = [frame.to_ndarray().ravel() for frame in file.decode(audio=0)]
        rate = file.streams.audio[0].rate
    heard = np.concatenate(frames)
    full = 1.0 if heard.dtype.kind == "f" else float(np.iinfo(heard.dtype).max)
    return len(heard) / rate, float(np.abs(heard / full).max())


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"voice": "nobody"}, 404, "voice_not_found"),
        ({"input": ""}, 400, "invalid_value"),
        ({"input": " "}, 400, "invalid_value"),
        ({"response_format": "aac"}, 400, "invalid_value"),
        ({"speed": 2}, 400, "invalid_value"),
    ],
)
async def test_what_cannot_be_said_is_refused(
    change: dict[str, Any], status: int, code: str
) -> None:
    async with http() as requests:
        answer = await requests.post("/v1/audio/speech", json={"input": "Hello"} | change)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert (await requests.get("/v1/pool")).json()["used"] == 0


async def test_speech_without_room_is_told_by_its_status() -> None:
    engine = FakeEngine()

    async def busy(**settings: Any) -> Any:
        raise EngineBusy("no room")

    engine.open_session = busy  # type: ignore[method-assign]
    async with http(engine) as requests:
        answer = await requests.post("/v1/audio/speech", json={"input": "Hello"})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert (await requests.get("/v1/pool")).json()["used"] == 0


@pytest.mark.parametrize("error", [None, CheckpointError("no such folder")])
async def test_speech_without_an_engine_is_told_why(error: Exception | None) -> None:
    """What trying again helps against is told apart from what it does not."""
    engine, enough = FakeEngine(), asyncio.Event()

    async def start() -> None:
        if error is not None:
            raise error
        await enough.wait()

    engine.start = start  # type: ignore[method-assign]
    async with http(engine) as requests:
        await asyncio.sleep(0)
        answer = await requests.post("/v1/audio/speech", json={"input": "Hello"})
        told = answer.json()["error"]
        if error is None:
            assert (answer.status_code, told["code"]) == (503, "server_overloaded")
            assert "being loaded" in told["message"]
        else:
            assert (answer.status_code, told["code"]) == (500, "server_error")
            assert "log says why" in told["message"] and "retry-after" not in answer.headers
        assert "room" not in told["message"].lower()


async def test_a_call_of_a_server_whose_engine_failed_is_told_so() -> None:
    engine = FakeEngine()

    async def fails() -> None:
        raise CheckpointError("no such folder")

    engine.start = fails  # type: ignore[method-assign]
    async with serving(engine) as place, connect(f"ws://{place}/v1/realtime") as socket:
        error = (await until(socket, "error"))["error"]
        assert error["code"] == "server_error" and "log says why" in error["message"]
        assert await closed(socket) == 1011


async def test_speech_that_stops_in_mid_text_is_told_in_its_last_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FakeConversation, "start_reply", stops_in_mid_text)
    wanted = {"input": "one two", "response_format": "pcm", "stream_format": "sse"}
    async with http() as requests:
        answer = await requests.post("/v1/audio/speech", json=wanted)
        *_, last = [line for line in answer.text.splitlines() if line]
        page = (await requests.get("/metrics")).text
    done = json.loads(last.removeprefix("data: "))
    assert done["type"] == "speech.audio.done"
    assert done["chroma"]["done"]["reason"] == "unfinished"
    assert done["chroma"]["done"]["text"] == "one"
    assert 'chroma_responses_total{status="incomplete"} 1.0' in page


def stops_in_mid_text(self: FakeConversation, request: ReplyRequest, sink: Sink) -> None:
    sink(TextDelta("one", 0.0))
    sink(AudioChunk(b"\x10\x20" * 1920, 0.0))
    sink(TurnDone(EndReason.UNFINISHED, "one", 80.0, 1, 1))


# -- voices ----------------------------------------------------------------------------------


async def test_a_voice_is_enrolled_used_and_deleted(tmp_path: Path) -> None:
    engine = FakeEngine(frames=2)
    said = Voice.default().transcript
    async with http(engine, ServerConfig(voices=tmp_path)) as requests:
        consent = await requests.post(
            "/v1/audio/voice_consents",
            data={"name": "Ada", "statement": "Use my voice for the demo.", "language": "en"},
            files={"recording": ("yes.wav", b"RIFF")},
        )
        fields = {"name": "ada", "consent": consent.json()["id"], "transcript": said}
        files = {"audio_sample": ("../../etc/passwd.wav", clip(), "audio/wav")}
        added = await requests.post("/v1/audio/voices", data=fields, files=files)
        assert added.status_code == 200, added.text
        assert added.json()["id"] == "ada"
        assert (await requests.get("/v1/audio/voices")).json()["voices"] == ["default", "ada"]
        wanted = {"input": "Hello", "voice": {"id": "ada"}, "response_format": "pcm"}
        assert (await requests.post("/v1/audio/speech", json=wanted)).status_code == 200
        (request,) = [c[1] for c in engine.conversations[0].calls if c[0] == "start_reply"]
        assert request.voice.name == "ada"
        assert (await requests.delete("/v1/audio/voices/ada")).json()["deleted"]
        assert (await requests.delete("/v1/audio/voices/ada")).status_code == 404
        assert (await requests.post("/v1/audio/speech", json=wanted)).status_code == 404
        assert (await requests.get("/v1/audio/voice_consents")).json()["data"] == []
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"]


@pytest.mark.parametrize(
    ("change", "sample", "status", "code"),
    [
        ({"consent": "cons_0000000000000000"}, None, 404, "consent_required"),
        ({"name": "../up"}, None, 400, "invalid_value"),
        ({"name": "default"}, None, 422, "voice_refused"),
        ({"transcript": ""}, None, 422, "transcript_required"),
        ({}, b"no audio at all", 422, "voice_refused"),
        ({}, b"", 422, "voice_refused"),
    ],
)
async def test_voices_that_cannot_be_are_refused(
    tmp_path: Path, change: dict[str, str], sample: bytes | None, status: int, code: str
) -> None:
    async with http(config=ServerConfig(voices=tmp_path)) as requests:
        fields = {"name": "Ada", "statement": "Yes."}
        consent = (await requests.post("/v1/audio/voice_consents", data=fields)).json()["id"]
        fields = {"name": "ada", "consent": consent, "transcript": Voice.default().transcript}
        files = {"audio_sample": ("a.wav", clip() if sample is None else sample)}
        answer = await requests.post("/v1/audio/voices", data=fields | change, files=files)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert (await requests.get("/v1/audio/voices")).json()["data"] == []


async def test_a_name_is_given_once(tmp_path: Path) -> None:
    async with http(config=ServerConfig(voices=tmp_path)) as requests:
        fields = {"name": "Ada", "statement": "Yes."}
        consent = (await requests.post("/v1/audio/voice_consents", data=fields)).json()["id"]
        said = Voice.default().transcript
        fields = {"name": "ada", "consent": consent, "ref_text": said}
        files = {"audio_sample": ("a.wav", clip())}
        first = await requests.post("/v1/audio/voices", data=fields, files=files)
        again = await requests.post("/v1/audio/voices", data=fields, files=files)
        assert (first.status_code, again.status_code) == (200, 409)
        assert again.json()["error"]["code"] == "voice_exists"


async def test_consents_are_listed_in_pages(tmp_path: Path) -> None:
    async with http(config=ServerConfig(voices=tmp_path)) as requests:
        for i in range(5):
            fields = {"name": f"Ada {i}", "statement": "Yes."}
            assert (await requests.post("/v1/audio/voice_consents", data=fields)).is_success
        names, after = [], ""
        for more in (True, True, False):
            query = {"limit": 2} | ({"after": after} if after else {})
            page = (await requests.get("/v1/audio/voice_consents", params=query)).json()
            assert (page["has_more"], page["last_id"]) == (more, page["data"][-1]["id"])
            names += [consent["name"] for consent in page["data"]]
            after = page["last_id"]
        assert names == [f"Ada {i}" for i in range(5)]
        one = await requests.get(f"/v1/audio/voice_consents/{after}")
        assert one.json()["name"] == "Ada 4"


async def test_what_is_not_there_is_told_as_an_error() -> None:
    async with http() as requests:
        nowhere, wrong = await requests.get("/v1/nothing"), await requests.put("/v1/audio/voices")
        assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "not_found")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, POST")
        assert wrong.json()["error"]["code"] == "method_not_allowed"


async def test_without_a_folder_there_is_the_packaged_voice() -> None:
    async with http() as requests:
        assert (await requests.get("/v1/audio/voices")).json()["voices"] == ["default"]
        assert (await requests.delete("/v1/audio/voices/ada")).status_code == 501
