"""Chroma over a telephone: mu-law at 8 kHz, by the messages of Twilio's media streams.

A fake Twilio calls over a real socket. The pipeline behind it runs at the rates that are in use.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pipecat")
pytest.importorskip("uvicorn", reason='no server here: pip install "chroma-plugin[web]"')

import uvicorn
from fastapi import FastAPI, WebSocket
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADAnalyzer
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.runner.types import WebSocketRunnerArguments
from pipecat.serializers.protobuf import ProtobufFrameSerializer
from pipecat.serializers.twilio import TwilioFrameSerializer
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.workers.runner import WorkerRunner
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from chroma_plugin.audio import Samples, read_audio
from chroma_plugin.pipecat import ChromaRealtimeLLMService
from tests.pipecat.tones import EXAMPLE, LOUD, ToneEngine, loudness

CAPITAL = Path(str(files("chroma_plugin") / "assets" / "questions" / "capital.flac"))
WIRE_HZ = 8_000
PATIENCE_S = 40.0
LONG, SHORT = (660.0, 750), (880.0, 20)  # a tone in Hz and its length in frames of 80 ms

Bot = Callable[[WebSocket], Awaitable[None]]


def mulaw(samples: Samples) -> bytes:
    """G.711 mu-law of samples in -1..1."""
    pcm = np.clip(np.rint(samples * 32767), -32635, 32635).astype(int)
    magnitude = np.abs(pcm) + 132
    exponent = np.floor(np.log2(magnitude)).astype(int) - 7
    code = (pcm < 0) << 7 | exponent << 4 | (magnitude >> (exponent + 3)) & 15
    return (~code & 255).astype(np.uint8).tobytes()


def from_mulaw(data: bytes) -> Samples:
    """Samples in -1..1 of G.711 mu-law."""
    code = ~np.frombuffer(data, np.uint8).astype(int) & 255
    magnitude = (((code & 15) << 3) + 132 << (code >> 4 & 7)) - 132
    return (np.where(code & 128, -magnitude, magnitude) / 32768).astype(np.float32)


class LoudnessVAD(VADAnalyzer):
    """Loud is a voice, at any rate; Silero knows two."""

    def num_frames_required(self) -> int:
        return self.sample_rate // 50

    def voice_confidence(self, buffer: bytes) -> float:
        return float(np.abs(np.frombuffer(buffer, "<i2").astype(np.int32)).max() > 1_000)


class Phone:
    """Twilio's side of a call."""

    def __init__(self, wire: ClientConnection) -> None:
        self._wire = wire
        self._moved = asyncio.Event()
        self.events: list[dict[str, Any]] = []
        self.listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        with suppress(ConnectionClosed):
            async for message in self._wire:
                self.events.append(json.loads(message))
                self._moved.set()

    async def dial(self) -> None:
        await self._send(event="connected", protocol="Call", version="1.0.0")
        start = {"streamSid": "MZ1", "callSid": "CA1", "accountSid": "AC1", "customParameters": {}}
        await self._send(event="start", sequenceNumber="1", streamSid="MZ1", start=start)

    async def _send(self, **message: Any) -> None:
        await self._wire.send(json.dumps(message))

    async def say(self, samples: Samples) -> None:
        """Speaks samples at 8 kHz, a packet every 20 ms, as a line does."""
        data = mulaw(samples)
        for i in range(0, len(data), WIRE_HZ // 50):
            payload = base64.b64encode(data[i : i + WIRE_HZ // 50]).decode()
            media = {"track": "inbound", "payload": payload}
            await self._send(event="media", streamSid="MZ1", media=media)
            await asyncio.sleep(0.02)

    def heard(self, after: int = 0) -> Samples:
        """What the bot said, from this event on."""
        media = [e["media"]["payload"] for e in self.events[after:] if e["event"] == "media"]
        return from_mulaw(b"".join(map(base64.b64decode, media)))

    def seconds_of(self, hz: float, after: int = 0) -> float:
        """How long a tone was heard."""
        return int((loudness(self.heard(after), WIRE_HZ, hz) > LOUD / 2).sum()) / 100

    async def until(self, seen: Callable[[], object], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not seen():
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            kinds = [event["event"] for event in self.events]
            raise AssertionError(
                f"never heard: {what}; {len(kinds)} events: {set(kinds)}"
            ) from None


@asynccontextmanager
async def serving(bot: Bot) -> AsyncIterator[str]:
    """A web server in this event loop with a bot behind it; the address of its socket."""
    app = FastAPI()

    @app.websocket("/ws")
    async def answer(websocket: WebSocket) -> None:
        await websocket.accept()
        await bot(websocket)

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = uvicorn.Server(
            uvicorn.Config(app, lifespan="off", log_level="warning", log_config=None)
        )
        running = asyncio.create_task(server.serve([listening]))
        try:
            yield f"ws://127.0.0.1:{listening.getsockname()[1]}/ws"
        finally:
            server.should_exit = True
            done, _ = await asyncio.wait([running], timeout=PATIENCE_S)
            assert done, "the server did not end: a call goes on"


@asynccontextmanager
async def calling(bot: Bot) -> AsyncIterator[Phone]:
    async with serving(bot) as address, connect(address) as wire:
        phone = Phone(wire)
        await phone.dial()
        yield phone
    await phone.listening  # the bot's side is closed, too


def at_rates(engine: ToneEngine, in_hz: int, out_hz: int, vad: VADAnalyzer) -> Bot:
    """A bot on Twilio's serializer whose pipeline hears and speaks at these rates."""

    async def bot(websocket: WebSocket) -> None:
        await websocket.receive_text()  # connected
        start = json.loads(await websocket.receive_text())["start"]
        no_account = TwilioFrameSerializer.InputParams(auto_hang_up=False)
        transport = FastAPIWebsocketTransport(
            websocket,
            FastAPIWebsocketParams(
                audio_in_enabled=True,
                audio_out_enabled=True,
                serializer=TwilioFrameSerializer(start["streamSid"], params=no_account),
            ),
        )
        context = LLMContext()
        user, assistant = LLMContextAggregatorPair(
            context,
            user_params=LLMUserAggregatorParams(
                vad_analyzer=vad,
                user_turn_strategies=UserTurnStrategies(
                    stop=[SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=0)]
                ),
            ),
        )
        chroma = ChromaRealtimeLLMService(engine=engine, context=context)
        worker = PipelineWorker(
            Pipeline([transport.input(), user, chroma, transport.output(), assistant]),
            params=PipelineParams(audio_in_sample_rate=in_hz, audio_out_sample_rate=out_hz),
            enable_rtvi=False,
            idle_timeout_secs=None,
        )

        @transport.event_handler("on_client_disconnected")
        async def hang_up(*_: object) -> None:
            await worker.cancel()

        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await runner.run()

    return bot


def burst() -> Samples:
    """A second of something loud, then silence, at 8 kHz."""
    loud = 0.4 * np.sin(2 * np.pi * 300 * np.arange(WIRE_HZ) / WIRE_HZ)
    return np.concatenate([np.zeros(WIRE_HZ // 2), loud, np.zeros(WIRE_HZ // 2)]).astype("f4")


def heard_by(engine: ToneEngine) -> Samples:
    """All that reached the engine, at 16 kHz."""
    pushed = [c[1] for c in engine.conversations[-1].calls if c[0] == "push_audio"]
    return np.concatenate([np.zeros(0, np.float32), *pushed])


@pytest.fixture
async def engine() -> AsyncIterator[ToneEngine]:
    async with ToneEngine((LONG, SHORT), frame_s=0.005) as engine:
        yield engine


def test_mulaw_there_and_back() -> None:
    codes = bytes(i for i in range(256) if i != 127)  # of the two zeros one comes back
    assert mulaw(from_mulaw(codes)) == codes
    wave = np.sin(np.arange(800) / 7).astype(np.float32)
    assert np.abs(from_mulaw(mulaw(wave)) - wave).max() < 0.03


@pytest.mark.parametrize(
    ("in_hz", "out_hz"), [(8_000, 8_000), (16_000, 24_000), (24_000, 16_000), (48_000, 48_000)]
)
async def test_a_question_and_its_reply(engine: ToneEngine, in_hz: int, out_hz: int) -> None:
    engine.replies = (SHORT,)
    hz, seconds = SHORT[0], SHORT[1] * 0.08
    # Twilio's serializer resamples anything but 8 kHz, and keeps the last 0.1 s for ever
    kept_s = 0.0 if out_hz == WIRE_HZ else 0.12
    async with calling(at_rates(engine, in_hz, out_hz, LoudnessVAD())) as phone:
        await phone.say(burst())
        await phone.until(lambda: phone.seconds_of(hz) > seconds - kept_s - 0.02, "the reply")
        assert phone.seconds_of(hz) <= seconds + 0.02
        # what was heard: a second of 300 Hz, at its own level
        heard = loudness(heard_by(engine), 16_000, 300.0)
        assert (heard > 0.2).sum() / 100 == pytest.approx(1.0, abs=0.1)
        assert np.median(heard[heard > 0.2]) == pytest.approx(0.4, abs=0.03)
        level = loudness(phone.heard(), WIRE_HZ, hz)
        assert np.median(level[level > LOUD / 2]) == pytest.approx(LOUD, abs=0.03)
        assert "clear" in {event["event"] for event in phone.events}  # every turn sends one


async def test_talking_over_the_reply_clears_what_is_queued(engine: ToneEngine) -> None:
    async with calling(at_rates(engine, 8_000, 8_000, LoudnessVAD())) as phone:
        await phone.say(burst())
        await phone.until(lambda: phone.seconds_of(LONG[0]) > 0.4, "the long reply")
        spoken = len(phone.events)
        await phone.say(burst())
        await phone.until(lambda: phone.seconds_of(SHORT[0]) >= 1.5, "the reply to the second turn")
        kinds = [event["event"] for event in phone.events]
        cleared = kinds.index("clear", spoken)
        assert phone.seconds_of(LONG[0], cleared) == 0.0
        assert phone.seconds_of(LONG[0]) < LONG[1] * 0.08 / 2
        assert phone.seconds_of(SHORT[0]) == pytest.approx(SHORT[1] * 0.08, abs=0.1)


async def test_silero_at_the_rate_of_the_telephone(engine: ToneEngine) -> None:
    """Speech as it comes over the wire, without a resampler before the VAD."""
    engine.replies = (SHORT,)
    speech = read_audio(CAPITAL, WIRE_HZ)
    async with calling(at_rates(engine, 8_000, 8_000, SileroVADAnalyzer())) as phone:
        await phone.say(np.concatenate([speech, np.zeros(WIRE_HZ // 2, np.float32)]))
        await phone.until(lambda: phone.seconds_of(SHORT[0]) > 1.0, "the reply")
        assert len(heard_by(engine)) > 16_000


def example(engine: ToneEngine) -> Any:
    spec = importlib.util.spec_from_file_location("example_bot", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.engine = engine
    return module


async def test_the_example_answers_the_telephone(
    engine: ToneEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A greeting when the call comes in, to its very end, and an answer."""
    engine.replies = (SHORT, LONG)
    hung_up = []

    async def hang_up(self: TwilioFrameSerializer) -> None:
        hung_up.append(self._call_sid)

    monkeypatch.setattr(TwilioFrameSerializer, "_hang_up_call", hang_up)
    monkeypatch.setenv("TWILIO_ACCOUNT_SID", "AC1")
    monkeypatch.setenv("TWILIO_AUTH_TOKEN", "none")
    bot = example(engine).bot
    async with calling(lambda wire: bot(WebSocketRunnerArguments(websocket=wire))) as phone:
        await phone.until(lambda: phone.seconds_of(SHORT[0]) > 1.58, "the greeting")
        speech = read_audio(CAPITAL, WIRE_HZ)
        await phone.say(np.concatenate([speech, np.zeros(WIRE_HZ // 2, np.float32)]))
        await phone.until(lambda: phone.seconds_of(LONG[0]) > 0.4, "the reply")
    assert hung_up in ([], ["CA1"])  # nobody is there any more, or the bot was faster
    assert engine.conversations[-1].calls[-1] == ("cancel_reply", -1)  # the session was closed


async def test_the_example_answers_a_websocket(engine: ToneEngine) -> None:
    """Pipecat's protobuf frames, as its clients send them."""
    from pipecat.frames.frames import OutputAudioRawFrame
    from pipecat.frames.protobufs import frames_pb2

    engine.replies = (SHORT,)
    bot = example(engine).bot

    def arguments(wire: WebSocket) -> WebSocketRunnerArguments:
        return WebSocketRunnerArguments(websocket=wire, transport_type="websocket")

    async with (
        asyncio.timeout(PATIENCE_S),
        serving(lambda wire: bot(arguments(wire))) as address,
        connect(address) as wire,
    ):
        silence = OutputAudioRawFrame(bytes(640), 16_000, 1)
        sent = await ProtobufFrameSerializer().serialize(silence)
        assert sent is not None
        await wire.send(sent)
        heard, rate_hz = np.zeros(0, np.float32), 24_000
        while (loudness(heard, rate_hz, SHORT[0]) > LOUD / 2).sum() < 150:
            frame = frames_pb2.Frame.FromString(await wire.recv())
            if frame.WhichOneof("frame") == "audio":
                rate_hz = frame.audio.sample_rate
                pcm = np.frombuffer(frame.audio.audio, "<i2").astype(np.float32) / 32768
                heard = np.concatenate([heard, pcm])
        assert rate_hz == 24_000
