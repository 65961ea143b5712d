"""A server in a process of its own, to be killed: `python -m tests.server.child PORT`.

Its engine answers with all the text that it was told, a word every two frames, for as long as it
is let; so a test hears what the server knows.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from chroma_plugin.conversation import ReplyRequest
from chroma_plugin.reply import Sink
from chroma_plugin.server.app import create_app
from chroma_plugin.server.run import serve
from chroma_plugin.server.settings import ServerConfig
from chroma_plugin.session import Session
from tests.fakes import FakeConversation, FakeEngine
from tests.server.client import Loudness

ROOT = Path(__file__).parents[2]
START_S = 60.0


class Parrot(FakeConversation):
    """Says what it was told."""

    def start_reply(self, request: ReplyRequest, sink: Sink) -> None:
        told = [call[2] for call in self.calls if call[0] == "add_text"]
        self.engine.words = " ".join(told).split() or ["nothing"]
        super().start_reply(request, sink)


class ParrotEngine(FakeEngine):
    async def open_session(self, **settings: Any) -> Session:
        session = await super().open_session(history=(), **{
            name: value for name, value in settings.items() if name != "history"
        })  # fmt: skip
        conversation = self.conversations[-1]
        conversation.__class__ = Parrot
        for message in settings.get("history") or ():
            conversation.add_text(message.role, message.text)
        return session


@asynccontextmanager
async def child(port: int, *, frames: int = 100_000) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Runs it until it listens; gives the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.server.child", str(port), str(frames)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        async with asyncio.timeout(START_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    assert process.poll() is None, "the server ended"
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    break
        yield process
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    config = ServerConfig(port=int(sys.argv[1]))
    engine = ParrotEngine(frames=int(sys.argv[2]), frame_s=0.005)
    serve(create_app(engine, config, new_vad=Loudness), config)
