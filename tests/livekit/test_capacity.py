"""What a worker reports, and which jobs it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chroma_plugin.livekit import Capacity, LocalServer, RealtimeModel
from chroma_plugin.livekit import capacity as module
from chroma_plugin.server.settings import ServerConfig
from tests.fakes import FakeEngine
from tests.livekit.stage import reply
from tests.server.serving import serving


class Request:
    """A job that LiveKit offers."""

    def __init__(self) -> None:
        self.answer = ""

    async def accept(self) -> None:
        self.answer = "accepted"

    async def reject(self) -> None:
        self.answer = "rejected"


def pools(monkeypatch: pytest.MonkeyPatch, pool: dict[str, Any] | None) -> None:
    monkeypatch.setattr(module, "read_pool", lambda url, key=None: pool)


async def offered(capacity: Capacity) -> str:
    request = Request()
    await capacity.take_or_refuse(request)  # type: ignore[arg-type]
    return request.answer


def test_the_load_is_the_share_of_used_places(monkeypatch: pytest.MonkeyPatch) -> None:
    capacity = Capacity("ws://somewhere/v1/realtime")
    for used, load in ((0, 0.0), (2, 0.5), (4, 1.0), (9, 1.0)):
        pools(monkeypatch, {"status": "ready", "slots": 4, "used": used})
        assert capacity.load() == load


def test_who_cannot_be_reached_is_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pools(monkeypatch, None)
    assert Capacity("ws://somewhere").load() == 1.0
    assert Capacity(LocalServer(folder=tmp_path)).load() == 0.0  # its first job starts it
    for status in ("failed", "draining"):
        pools(monkeypatch, {"status": status, "slots": 4, "used": 0})
        assert Capacity("ws://somewhere").load() == 1.0


async def test_jobs_beyond_the_places_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pools(monkeypatch, {"status": "ready", "slots": 3, "used": 1})
    capacity = Capacity("ws://somewhere")
    answers = [await offered(capacity) for _ in range(3)]
    assert answers == ["accepted", "accepted", "rejected"]  # at once: the server saw none yet
    monkeypatch.setattr(module, "ON_THE_WAY_S", 0.0)
    assert capacity.load() == pytest.approx(1 / 3)


async def test_a_worker_may_have_fewer_places(monkeypatch: pytest.MonkeyPatch) -> None:
    pools(monkeypatch, {"status": "ready", "slots": 64, "used": 0})
    capacity = Capacity("ws://somewhere", places=1)
    assert [await offered(capacity) for _ in range(2)] == ["accepted", "rejected"]


async def test_two_conversations_on_a_server_and_the_third_refused() -> None:
    import asyncio

    engine = FakeEngine(frames=8)
    async with serving(engine, ServerConfig(max_sessions=2)) as address:
        capacity = Capacity(f"ws://{address}/v1/realtime")
        model = RealtimeModel(engine=f"ws://{address}")
        sessions = [model.session(), model.session()]
        for session in sessions:
            assert (await reply(session)).seconds == pytest.approx(0.64)
        assert await asyncio.to_thread(capacity.load) == 1.0
        assert await offered(capacity) == "rejected"
        await model.aclose()
