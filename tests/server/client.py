"""A client of one conversation without a socket: sends events, keeps what comes, checks each.

Every server event is held to the `openai` package's own model of it, strictly, where that package
is installed.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, get_args

import numpy as np

from chroma_plugin.server.realtime import Realtime
from chroma_plugin.server.response import Outcome
from chroma_plugin.server.surroundings import Surroundings
from chroma_plugin.server.vad import WINDOW_SAMPLES
from chroma_plugin.server.voicing import Voicing
from tests.fakes import FakeEngine

WAIT_S = 20.0
Event = dict[str, Any]


class Loudness:
    """Takes what is loud for speech."""

    def probability(self, window: Any) -> float:
        assert len(window) == WINDOW_SAMPLES
        return 1.0 if np.abs(window).max() > 0.05 else 0.0

    def reset(self) -> None:
        pass


class Judge:
    """Judges pauses as the test says; None: it cannot, as where Smart Turn is not installed."""

    def __init__(self, *complete: bool) -> None:
        self.verdicts = list(complete)
        self.judged: list[Any] = []

    async def ready(self) -> bool:
        return bool(self.verdicts)

    async def complete(self, samples: Any) -> bool:
        self.judged.append(samples)
        return self.verdicts[min(len(self.judged), len(self.verdicts)) - 1]


@cache
def models() -> dict[str, Any]:
    """The `openai` package's model of each server event, by its type; {} without the package."""
    try:
        from openai.types.realtime import realtime_server_event as known
    except ImportError:
        return {}
    found = {}
    union = get_args(known.RealtimeServerEvent)[0]
    for model in get_args(union):
        (kind,) = get_args(model.model_fields["type"].annotation)
        found[kind] = model
    return found


def check(event: Event) -> None:
    """Holds an event to the protocol."""
    assert isinstance(event["event_id"], str)
    json.dumps(event)
    if known := models():
        assert event["type"] in known, event["type"]
        plain = {k: v for k, v in event.items() if k != "chroma"}
        known[event["type"]].model_validate(plain)


class Client:
    """One client.

    Args:
        engine: behind it; started.
        settings: of its `Surroundings`, and `max_reply_s`.
    """

    def __init__(self, engine: FakeEngine, *, max_reply_s: float | None = None, **settings: Any):
        self.events: list[Event] = []
        self.outcomes: list[Outcome] = []
        self._news = asyncio.Event()
        given = {"voicing": Voicing(), "new_vad": Loudness, "judge": Judge()}
        given |= {"observe": self.outcomes.append}
        surroundings = Surroundings(engine, "chroma", **(given | settings))
        self.realtime = Realtime(surroundings, self._take, max_reply_s=max_reply_s)

    def _take(self, event: Event) -> None:
        check(event)
        self.events.append(event)
        self._news.set()

    async def send(self, kind: str, **fields: Any) -> None:
        async with asyncio.timeout(WAIT_S):
            await self.realtime.handle(json.dumps({"type": kind, **fields}))

    async def update(self, **session: Any) -> Event:
        await self.send("session.update", session={"type": "realtime", **session})
        return self.events[-1]

    async def manual(self, **session: Any) -> None:
        """Turns are the client's own."""
        updated = await self.update(audio={"input": {"turn_detection": None}}, **session)
        assert updated["type"] == "session.updated", updated

    async def say(self, seconds: float, *, loud: bool = True, piece_s: float = 0.1) -> None:
        """Appends sound or silence at 24 kHz."""
        left = round(seconds * 24000)
        while left > 0:
            count = min(left, round(piece_s * 24000))
            pcm = np.full(count, 8000 if loud else 0, "<i2")
            pcm[::2] *= -1
            pcm = np.repeat(pcm[: count // 4 + 1], 4)[:count]  # far below what is filtered out
            await self.send("input_audio_buffer.append", audio=base64.b64encode(pcm).decode())
            left -= count

    async def until(self, kind: str | Callable[[Event], bool], count: int = 1) -> Event:
        """Waits for the so manyth event of a kind."""
        wanted = (lambda e: e["type"] == kind) if isinstance(kind, str) else kind
        async with asyncio.timeout(WAIT_S):
            while True:
                found = [event for event in self.events if wanted(event)]
                if len(found) >= count:
                    return found[count - 1]
                self._news.clear()
                await self._news.wait()

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["type"] == kind]

    @property
    def kinds(self) -> list[str]:
        """The types of all events; runs of deltas once."""
        kinds: list[str] = []
        for event in self.events:
            if not (event["type"].endswith(".delta") and event["type"] in kinds[-2:]):
                kinds.append(event["type"])
        return kinds

    @property
    def errors(self) -> list[str]:
        return [event["error"]["code"] for event in self.of("error")]

    def audio(self, response: int = 0) -> bytes:
        """The sound of one of the replies."""
        wanted = self.of("response.created")[response]["response"]["id"]
        deltas = [
            event["delta"]
            for event in self.of("response.output_audio.delta")
            if event["response_id"] == wanted
        ]
        return b"".join(map(base64.b64decode, deltas))


@asynccontextmanager
async def connected(engine: FakeEngine | None = None, **settings: Any) -> AsyncIterator[Client]:
    """A client that has been greeted."""
    engine = engine or FakeEngine(frames=8)
    await engine.start()
    client = Client(engine, **settings)
    await client.realtime.start()
    try:
        yield client
    finally:
        await client.realtime.aclose()
        await engine.close()


def calls(engine: FakeEngine, name: str, session: int = -1) -> list[tuple[Any, ...]]:
    """What one of the engine's conversations was told by that name."""
    return [call[1:] for call in engine.conversations[session].calls if call[0] == name]
