"""The example in a console: a microphone and a loudspeaker that are a socket of the framework's."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from livekit.protocol.agent_pb.agent_session import AgentSessionMessage

from chroma_plugin.audio import resample
from tests.fakes import FakeEngine
from tests.livekit.stage import WAIT_S, calls
from tests.pipecat.recordings import capital
from tests.server.serving import serving

EXAMPLE = Path(__file__).parents[2] / "examples" / "livekit_agent.py"
RATE_HZ, STEP = 48_000, 480
AudioFrame = AgentSessionMessage.ConsoleIO.AudioFrame
Finished = AgentSessionMessage.ConsoleIO.AudioPlaybackFinished


class Terminal:
    """What the framework's own terminal does: sends 10 ms at a time, plays what it gets."""

    def __init__(self) -> None:
        self.heard_s = 0.0
        self.to_say: list[bytes] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks = [
            asyncio.create_task(self._speak(writer)),
            asyncio.create_task(self._listen(reader, writer)),
        ]

    async def _speak(self, writer: asyncio.StreamWriter) -> None:
        while True:
            pcm = self.to_say.pop(0) if self.to_say else bytes(2 * STEP)
            frame = AudioFrame(
                data=pcm, sample_rate=RATE_HZ, num_channels=1, samples_per_channel=STEP
            )
            self._send(writer, AgentSessionMessage(audio_input=frame))
            await asyncio.sleep(STEP / RATE_HZ)

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            (length,) = struct.unpack(">I", await reader.readexactly(4))
            message = AgentSessionMessage.FromString(await reader.readexactly(length))
            kind = message.WhichOneof("message")
            if kind == "audio_output":
                self.heard_s += message.audio_output.samples_per_channel / RATE_HZ
            elif kind in ("audio_playback_flush", "audio_playback_clear"):
                self._send(writer, AgentSessionMessage(audio_playback_finished=Finished()))

    @staticmethod
    def _send(writer: asyncio.StreamWriter, message: AgentSessionMessage) -> None:
        data = message.SerializeToString()
        writer.write(struct.pack(">I", len(data)) + data)

    def say(self) -> None:
        samples = resample(capital(), 16_000, RATE_HZ)
        whole = samples[: len(samples) // STEP * STEP]
        pcm = (whole * 32767).astype(np.int16).reshape(-1, STEP)
        self.to_say = [piece.tobytes() for piece in pcm]

    async def until(self, condition: object) -> None:
        async with asyncio.timeout(5 * WAIT_S):
            while not condition():  # type: ignore[operator]
                await asyncio.sleep(0.05)

    def hang_up(self) -> None:
        for task in self._tasks:
            task.cancel()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("embedded", [False, True])
async def test_the_console_talks(embedded: bool, tmp_path: Path) -> None:
    """With an engine at an address, and with the embedded model in a server of its own."""
    engine, terminal = FakeEngine("one two three", 12, 0.02), Terminal()
    async with serving(engine) as address:
        listening = await asyncio.start_server(terminal.connected, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LIVEKIT_")}
        environment["XDG_RUNTIME_DIR"] = str(tmp_path)
        if not embedded:
            environment["CHROMA_ENGINE_URL"] = f"ws://{address}"
        command = [sys.executable, "-m", "livekit.agents", "console", str(EXAMPLE)]
        with (tmp_path / "console.log").open("wb") as log:
            agent = subprocess.Popen(
                [*command, "--connect-addr", f"127.0.0.1:{port}"],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            await terminal.until(lambda: terminal.heard_s > 0.5)  # the greeting
            before_s = terminal.heard_s
            terminal.say()
            await terminal.until(lambda: terminal.heard_s > before_s + 0.5)
            if not embedded:
                assert "commit_audio" in [c[0] for c in engine.conversations[0].calls]
                assert calls(engine, "start_reply")[0][0].say
        finally:
            os.killpg(agent.pid, 9)
            await asyncio.to_thread(agent.wait, 30)
            terminal.hang_up()
            listening.close()
