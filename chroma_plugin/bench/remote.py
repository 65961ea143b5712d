"""What the wire adds: the same conversation in this process, and through a server in another one.

The engine behind both has no model: it answers at once, so that all that is timed is the way there
and back: events, sockets, two event loops. Turns alternate, and each remote one is compared with
the local one before it, so a busy machine troubles both alike.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from chroma_plugin.audio import FRAME_MS, FRAME_SAMPLES, Samples
from chroma_plugin.bench.hearing import speech
from chroma_plugin.bench.report import ClientFacts, Curve, Panel, Report, percentile, spread
from chroma_plugin.client.engine import RemoteEngine
from chroma_plugin.config import SamplingParams
from chroma_plugin.conversation import ReplyRequest, Role
from chroma_plugin.errors import ChromaError
from chroma_plugin.reply import AudioChunk, EndReason, Sink, TextDelta, TurnDone
from chroma_plugin.session import Session, SpeechEngine
from chroma_plugin.transcript import TextSink
from chroma_plugin.voice import Voice

START_S = 60.0
SPEECH_S = 0.2
WARM_UP = 10


@dataclass(frozen=True, slots=True)
class WirePlan:
    """How much is measured.

    Attributes:
        turns: of each kind.
        max_added_ms: bar: what the wire may add, in the middle of all turns.
    """

    turns: int = 300
    max_added_ms: float = 3.0


class Instant:
    """An engine without a model: every reply is one frame, at once."""

    async def start(self) -> None:
        """Is ready."""

    async def close(self) -> None:
        """Has nothing to free."""

    async def open_session(self, **settings: Any) -> Session:
        """See `SpeechEngine.open_session`."""
        defaults: dict[str, Any] = {
            "voice": Voice.default(),
            "instructions": "",
            "sampling": SamplingParams(),
        }
        given = {name: value for name, value in settings.items() if value is not None}
        return Session(InstantConversation(), **(defaults | given))


class InstantConversation:
    """Answers in the next step of the event loop; the rest it lets pass."""

    def push_audio(self, samples: Any) -> None: ...
    def clear_audio(self) -> None: ...
    def commit_audio(self, turn: int) -> None: ...
    def add_text(self, role: Role, text: str) -> None: ...
    def set_instructions(self, instructions: str) -> None: ...
    def cancel_reply(self, turn: int) -> None: ...
    def keep_reply(self, turn: int, tokens: int) -> None: ...
    def transcribe(self, turn: int, sink: TextSink) -> None: ...
    def cancel_transcript(self, turn: int) -> None: ...
    def close(self) -> None: ...

    def start_reply(self, request: ReplyRequest, sink: Sink) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(sink, TextDelta("so", 0.0))
        loop.call_soon(sink, AudioChunk(bytes(2 * FRAME_SAMPLES), 0.0))
        loop.call_soon(sink, TurnDone(EndReason.END_OF_SPEECH, "so", FRAME_MS, 1, 1))


def serve_instant(port: int) -> None:
    """A server with that engine, until it is killed."""
    from chroma_plugin.server.app import create_app
    from chroma_plugin.server.run import serve
    from chroma_plugin.server.settings import ServerConfig

    config = ServerConfig(port=port)
    serve(create_app(Instant(), config), config)


@contextmanager
def other_process() -> Iterator[str]:
    """That server in a process of its own; gives its address.

    Raises:
        ChromaError: it does not come up.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=serve_instant, args=(port,), daemon=True)
    process.start()
    try:
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
                break
            except OSError as error:
                if not process.is_alive() or time.monotonic() > deadline_s:
                    raise ChromaError("The server did not come up.") from error
                time.sleep(0.05)
        yield f"ws://127.0.0.1:{port}"
    finally:
        process.kill()
        process.join()


async def first_ms(session: Session, said: Samples) -> float:
    """From the end of a turn to the first audio of its reply."""
    session.push_audio(said)
    await asyncio.sleep(0.005)  # it is said before the turn ends, as in any conversation
    asked_s, first_s = time.perf_counter(), None
    async for event in session.commit_turn():
        if first_s is None and isinstance(event, AudioChunk):
            first_s = time.perf_counter()
    if first_s is None:
        raise ChromaError("A reply came without sound.")
    return (first_s - asked_s) * 1000


async def compare(here: SpeechEngine, there: SpeechEngine, turns: int) -> list[tuple[float, float]]:
    """Turn by turn, here and there: milliseconds to the first audio."""
    near, far = await here.open_session(), await there.open_session()
    said = speech(SPEECH_S)
    pairs = [
        (await first_ms(near, said), await first_ms(far, said)) for _ in range(WARM_UP + turns)
    ]
    await near.aclose()
    await far.aclose()
    return pairs[WARM_UP:]


def measure_remote(plan: WirePlan, *, seed: int = 0) -> Report:
    """Runs it.

    Raises:
        ChromaError: the server does not come up, or is lost.
    """

    async def run(url: str) -> list[tuple[float, float]]:
        async with RemoteEngine(url) as there:
            return await compare(Instant(), there, plan.turns)

    with other_process() as url:
        pairs = asyncio.run(run(url))
    added = [far - near for near, far in pairs]
    figures: dict[str, Any] = {
        "here_ms": spread([near for near, _ in pairs]),
        "there_ms": spread([far for _, far in pairs]),
        "added_ms": spread(added),
    }
    report = Report("remote", ClientFacts.gather("loopback", seed), asdict(plan), figures, {})
    middle = percentile(added, 50)
    if middle is not None and middle >= plan.max_added_ms:
        report.violations.append(f"the wire adds {middle:.2f} ms, {plan.max_added_ms:g} or more")
    report.panels = [
        Panel("What the wire adds to the first audio", "turn", "ms", [Curve.of("", added)],
              plan.max_added_ms),
    ]  # fmt: skip
    return report
