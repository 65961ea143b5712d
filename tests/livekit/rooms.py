"""A LiveKit server on the loopback, and guests in its rooms."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from livekit import api, rtc
from livekit.agents import Agent, AgentSession, inference, room_io
from livekit.agents.testing import fake_job_context

from chroma_plugin.audio import Samples
from chroma_plugin.conversation import ReplyRequest
from chroma_plugin.reply import AudioChunk, EndReason, Sink, TextClock, TextDelta, TurnDone
from chroma_plugin.session import Session
from tests.fakes import FakeConversation, FakeEngine
from tests.livekit.stage import WAIT_S

KEY, SECRET = "devkey", "a secret of the tests, long enough for a key"
CONFIG = """
port: {port}
bind_addresses: ["127.0.0.1"]
keys: {{{key}: "{secret}"}}
logging: {{level: warn}}
rtc:
  node_ip: 127.0.0.1
  use_external_ip: false
  udp_port: {udp}
  tcp_port: 0
  enable_loopback_candidate: true
  ips: {{includes: ["127.0.0.0/8"]}}
"""
ROOM_RATE_HZ = 48_000
LOUD = 0.02
"""RMS above which a frame is no silence."""


def binary() -> str | None:
    """The server, where `go install` or a package has put it."""
    named = os.environ.get("CHROMA_LIVEKIT_SERVER")
    return named or shutil.which("livekit-server")


def _free(kind: socket.SocketKind) -> int:
    with socket.socket(type=kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RoomServer:
    """Where it is."""

    url: str

    def token(self, room: str, identity: str, *, agent: bool = False) -> str:
        grants = api.VideoGrants(room_join=True, room=room, agent=agent)
        kind = "agent" if agent else "standard"
        made = api.AccessToken(KEY, SECRET).with_identity(identity).with_grants(grants)
        return made.with_kind(kind).to_jwt()

    async def dispatch(self, room: str, agent: str) -> None:
        """Asks for an agent of that name."""
        async with api.LiveKitAPI(self.url, KEY, SECRET) as client:
            await client.agent_dispatch.create_dispatch(
                api.CreateAgentDispatchRequest(agent_name=agent, room=room)
            )


def serve_rooms(folder: Path) -> Iterator[RoomServer]:
    """Runs a server as long as the generator lives; skips the test where there is none."""
    program = binary()
    if program is None:
        pytest.skip(
            "no livekit-server: go install github.com/livekit/livekit-server/cmd/server@v1.13.5, "
            "and name it in CHROMA_LIVEKIT_SERVER"
        )
    port = _free(socket.SOCK_STREAM)
    config = CONFIG.format(port=port, udp=_free(socket.SOCK_DGRAM), key=KEY, secret=SECRET)
    with (folder / "livekit.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "--config-body", config], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _until_up(f"http://127.0.0.1:{port}", process)
        yield RoomServer(f"ws://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait(30)


def _until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    import time

    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(600):
        assert process.poll() is None, "the LiveKit server has ended"
        with suppress(OSError), direct.open(url, timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError("the LiveKit server does not answer")


# -- an engine that is heard through a codec --------------------------------------------------


class ToneEngine(FakeEngine):
    """Speaks a tone whose pitch is that of the voice: 440 Hz, or what its name says."""

    async def open_session(self, **settings: Any) -> Session:
        session = await super().open_session(**settings)
        conversation = self.conversations[-1] = ToneConversation(self)
        session._conversation = conversation
        session._transcripts._start = conversation.transcribe
        return session


class ToneConversation(FakeConversation):
    async def _speak(self, request: ReplyRequest, sink: Sink) -> None:
        words = request.say.split() if request.say else self.engine.words
        name = request.voice.name
        pitch_hz = float(name) if name.isdigit() else 440.0
        clock = TextClock(request.voice.chars_per_second)
        for i in range(self.engine.frames):
            await asyncio.sleep(self.engine.frame_s)
            if i % 2 == 0 and i // 2 < len(words):
                text = words[i // 2] if i == 0 else " " + words[i // 2]
                sink(TextDelta(text, clock.place(text, i * 80.0)))
            t = np.arange(i * 1920, (i + 1) * 1920) / 24_000
            pcm = (10_000 * np.sin(2 * np.pi * pitch_hz * t)).astype("<i2").tobytes()
            sink(AudioChunk(pcm, i * 80.0))
        frames = self.engine.frames
        spoken = " ".join(words[: (frames + 1) // 2])
        sink(TurnDone(EndReason.END_OF_SPEECH, spoken, frames * 80.0, len(words), frames))


# -- who is in a room -------------------------------------------------------------------------


class Guest:
    """A participant with a microphone, who hears and reads the agent."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.room = rtc.Room()
        self.heard: list[Samples] = []
        self.read: list[str] = []
        self.agents: list[str] = []
        self.back = asyncio.Event()  # after its network was cut
        self.room.on("reconnected", self.back.set)
        self._source = rtc.AudioSource(ROOM_RATE_HZ, 1, queue_size_ms=200)
        self._tasks: set[asyncio.Task[None]] = set()
        self.room.on("track_subscribed", self._subscribed)
        self.room.register_text_stream_handler("lk.transcription", self._reading)

    @property
    def loud_s(self) -> float:
        """How much of what was heard was no silence."""
        return sum(len(f) for f in self.heard if _rms(f) > LOUD) / ROOM_RATE_HZ

    @property
    def pitch_hz(self) -> float:
        """Of the loudest that was heard."""
        loud = np.concatenate([f for f in self.heard if _rms(f) > LOUD])
        strength = np.abs(np.fft.rfft(loud * np.hanning(len(loud))))
        return float(np.argmax(strength) * ROOM_RATE_HZ / len(loud))

    async def enter(self, server: RoomServer, room: str) -> None:
        await self.room.connect(server.url, server.token(room, self.name))
        track = rtc.LocalAudioTrack.create_audio_track("microphone", self._source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        await self.room.local_participant.publish_track(track, options)
        self._keep(self._idle())

    async def _idle(self) -> None:
        """Silence, whenever nothing is said."""
        while True:
            if not self._source.queued_duration:
                await self._push(np.zeros(ROOM_RATE_HZ // 50, np.float32))
            await asyncio.sleep(0.01)

    async def say(self, samples: Samples) -> None:
        """Speaks, at the room's rate, to the end."""
        step = ROOM_RATE_HZ // 50
        for start in range(0, len(samples), step):
            await self._push(samples[start : start + step])
        await self._source.wait_for_playout()

    async def _push(self, samples: Samples) -> None:
        pcm = (samples * 32767).astype(np.int16).tobytes()
        await self._source.capture_frame(rtc.AudioFrame(pcm, ROOM_RATE_HZ, 1, len(samples)))

    def _subscribed(self, track: Any, publication: Any, participant: Any) -> None:
        if track.kind == rtc.TrackKind.KIND_AUDIO and participant.kind == AGENT_KIND:
            self.agents.append(participant.identity)
            self._keep(self._hear(track))

    async def _hear(self, track: Any) -> None:
        stream = rtc.AudioStream(track, sample_rate=ROOM_RATE_HZ, num_channels=1)
        async for event in stream:
            samples = np.frombuffer(event.frame.data, dtype=np.int16) / np.float32(32768)
            self.heard.append(samples.astype(np.float32))

    def _reading(self, reader: Any, identity: str) -> None:
        self._keep(self._read(reader, identity))

    async def _read(self, reader: Any, identity: str) -> None:
        try:
            text = await reader.read_all()
        except rtc.StreamError:  # whoever wrote has left
            return
        if identity != self.name and text.strip():
            self.read.append(text.strip())

    def _keep(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(WAIT_S * 2):
            while not condition():
                await asyncio.sleep(0.01)

    async def leave(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await self.room.disconnect()


AGENT_KIND = rtc.ParticipantKind.PARTICIPANT_KIND_AGENT


def _rms(samples: Samples) -> float:
    return float(np.sqrt(np.mean(np.square(samples)))) if len(samples) else 0.0


@asynccontextmanager
async def guest(server: RoomServer, room: str, name: str = "ann") -> AsyncIterator[Guest]:
    someone = Guest(name)
    async with asyncio.timeout(WAIT_S):
        await someone.enter(server, room)
    try:
        yield someone
    finally:
        await someone.leave()


@asynccontextmanager
async def agent_in(
    server: RoomServer, room: str, model: Any, agent: Agent | None = None
) -> AsyncIterator[AgentSession[None]]:
    """An agent in a room, without a worker."""
    place = rtc.Room()
    session: AgentSession[None] = AgentSession(
        llm=model,
        vad=inference.VAD(),
        turn_handling={
            "turn_detection": inference.TurnDetector(version="v1-mini"),
            "interruption": {"mode": "vad"},
        },
        aec_warmup_duration=None,
    )
    await place.connect(server.url, server.token(room, f"agent-{room}", agent=True))
    try:
        with fake_job_context(room=place):
            async with asyncio.timeout(WAIT_S):
                await session.start(
                    agent or Agent(instructions="Answer."),
                    room=place,
                    # a connection that is made anew looks like a guest who leaves and comes back
                    room_options=room_io.RoomOptions(close_on_disconnect=False),
                    record=False,
                )
            yield session
            async with asyncio.timeout(WAIT_S):
                await session.aclose()
                await model.aclose()
    finally:
        await place.disconnect()
