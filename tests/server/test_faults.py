"""What happens to a server: killed, left by its clients, not read, sent nonsense."""

from __future__ import annotations

import asyncio
import base64
import json
import socket as sockets
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from chroma_plugin.client import RemoteEngine
from chroma_plugin.errors import EngineError
from chroma_plugin.server import items, run
from chroma_plugin.server.connection import Connection
from chroma_plugin.server.settings import ServerConfig
from tests.contract import Reply, ask, assert_well_made, open_session, read
from tests.fakes import FakeEngine
from tests.server.child import ROOT, child
from tests.server.client import WAIT_S, connected
from tests.server.proxy import proxied
from tests.server.serving import serving

KILLED_S = 60.0
SOUND = base64.b64encode(bytes(96_000)).decode()  # two seconds, which take 128,000 bytes


async def until(seen: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not seen():
            await asyncio.sleep(0.005)


async def empty(place: str) -> None:
    """Waits until nobody holds a place of a server."""
    async with asyncio.timeout(WAIT_S), httpx.AsyncClient(base_url=f"http://{place}") as web:
        while (await web.get("/v1/pool")).json()["used"]:
            await asyncio.sleep(0.005)


async def event(socket: ClientConnection, kind: str) -> dict[str, Any]:
    """The next event of a kind."""
    async with asyncio.timeout(WAIT_S):
        async for message in socket:
            got: dict[str, Any] = json.loads(message)
            if got["type"] == kind:
                return got
    raise AssertionError(f"hung up before {kind}")


# -- killed ----------------------------------------------------------------------------------


async def test_a_server_killed_in_mid_reply_is_told_and_its_successor_knows_all() -> None:
    with sockets.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"ws://127.0.0.1:{port}"
    async with RemoteEngine(url, reconnect_s=KILLED_S, queue_timeout_s=WAIT_S) as engine:
        async with child(port) as process:
            session = await open_session(engine, max_reply_s=None)
            session.add_user_text("alpha beta")
            stream = session.respond()
            given = await read(stream, chunks=3)
            process.kill()
            with pytest.raises(EngineError, match="lost in mid-reply"):
                await read(stream)
        (kept,) = [m.text for m in session.history if m.role == "assistant"]
        assert kept and kept.startswith(given.text)
        assert len(session.history) == 2
        session.add_user_text("gamma")
        stream = session.respond()  # while nobody is there
        async with child(port, frames=16):
            async with asyncio.timeout(KILLED_S):
                answer = await anext(e async for e in whole(stream))
            assert answer.text == f"alpha beta {kept} gamma"
            assert [m.text for m in session.history] == ["alpha beta", kept, "gamma", answer.text]
            await session.aclose()


async def whole(stream: Any) -> Any:
    """A reply as one, however long it takes to begin."""
    reply = Reply([e async for e in stream])
    yield reply


CLIENT = """
import asyncio, sys
from chroma_plugin.client import RemoteEngine

async def main():
    async with RemoteEngine(sys.argv[1]) as engine:
        session = await engine.open_session()
        stream = session.respond()
        await anext(stream)
        print("speaking", flush=True)
        async for _ in stream:
            pass

asyncio.run(main())
"""


async def test_a_client_killed_in_mid_reply_leaves_nothing() -> None:
    engine = FakeEngine(frames=100_000, frame_s=0.005)
    async with serving(engine) as place:
        killed = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENT, f"ws://{place}", cwd=ROOT, stdout=subprocess.PIPE
        )
        assert killed.stdout is not None
        async with asyncio.timeout(KILLED_S):
            assert await killed.stdout.readline() == b"speaking\n"
        killed.kill()
        await killed.wait()
        await empty(place)
        assert ("cancel_reply", -1) in engine.conversations[0].calls
        await until(lambda: engine.conversations[0].task.done())
        async with RemoteEngine(f"ws://{place}") as other:
            engine.frames = 4
            session = await open_session(other)
            assert_well_made(await read(ask(session)), session)
            await session.aclose()


# -- silent ----------------------------------------------------------------------------------


async def test_a_half_open_connection_gives_its_place_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "PING_S", 0.05)
    engine = FakeEngine(frames=100_000, frame_s=0.005)
    async with serving(engine) as place, proxied(place) as proxy:
        async with connect(f"ws://{proxy.place}/v1/realtime", ping_interval=None) as socket:
            await socket.send('{"type": "response.create"}')
            await event(socket, "response.output_audio.delta")
            proxy.swallowing = True
            await empty(place)
            socket.transport.abort()
        await until(lambda: engine.conversations[0].task.done())


async def test_a_slow_reader_costs_so_much_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is hung up, what waits for it never grows beyond the limit, others hear no difference."""
    limit = 600_000
    slow: list[Connection] = []
    waited: list[int] = []
    send, write = Connection._send, Connection.run

    def watched(self: Connection, told: dict[str, Any]) -> None:
        send(self, told)
        waited.append(sum(len(data or "") for data in self._outgoing._queue))  # type: ignore[attr-defined]

    async def runs(self: Connection) -> None:
        slow.append(self)
        await write(self)

    monkeypatch.setattr(Connection, "_send", watched)
    monkeypatch.setattr(Connection, "run", runs)
    engine = FakeEngine(frames=50)
    async with serving(engine, ServerConfig(max_unsent_bytes=limit)) as place:
        async with RemoteEngine(f"ws://{place}") as other:
            session = await open_session(other)
            alone = await read(ask(session))
            engine.frames = 100_000
            stuck = await connect(f"ws://{place}/v1/realtime", max_queue=1)
            stuck.transport.pause_reading()
            await stuck.send('{"type": "response.create"}')
            await until(lambda: len(engine.conversations) == 2 and engine.conversations[1].task)
            engine.frames = 50
            for _ in range(3):
                beside = await read(ask(session))
                assert (beside.pcm, beside.text) == (alone.pcm, alone.text)
            await until(lambda: engine.conversations[1].task.done())
            assert slow[1]._slow.is_set()
            await session.aclose()
        stuck.transport.abort()
        await empty(place)
    assert limit * 0.9 < max(waited) <= limit


async def test_a_client_that_is_slow_for_a_while_loses_nothing() -> None:
    engine = FakeEngine(frames=60)
    async with (
        serving(engine) as place,
        connect(f"ws://{place}/v1/realtime", max_queue=1) as socket,
    ):
        socket.transport.pause_reading()
        await socket.send('{"type": "response.create"}')
        await until(lambda: engine.conversations and engine.conversations[0].task)
        await until(lambda: engine.conversations[0].task.done())
        socket.transport.resume_reading()
        sound = 0
        async with asyncio.timeout(WAIT_S):
            async for message in socket:
                got = json.loads(message)
                if got["type"] == "response.output_audio.delta":
                    sound += len(base64.b64decode(got["delta"]))
                if got["type"] == "response.done":
                    break
        assert sound == 60 * 3840


async def test_a_conversation_holds_so_much_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "MAX_HELD_BYTES", 210_000)
    engine = FakeEngine(frames=100_000, frame_s=3600.0)
    async with connected(engine) as client:
        await client.manual()
        await client.say(2.0)  # a session has it at once: it does not count any more
        await client.send("input_audio_buffer.commit")
        await client.send("response.create")
        await client.send(
            "conversation.item.create",
            item={
                "type": "message",
                "role": "user",
                "content": [{"type": "input_audio", "audio": SOUND}],
            },
        )
        for number in range(3):  # what comes during a reply waits
            text = {"type": "input_text", "text": "a" * 10_000}
            item = {"id": f"item_{number}", "role": "user", "content": [text]}
            await client.send("conversation.item.create", item={"type": "message"} | item)
        assert client.errors == ["conversation_too_long"]
        await client.send("conversation.item.delete", item_id="item_0")
        await client.send("conversation.item.create", item={"type": "message"} | item)
        assert client.errors == ["conversation_too_long"]
