"""The server on a real local Ray: two replicas of two calls each, on engines without a model.

One cluster for all tests, as it takes long to start: each leaves it as it found it.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile

pytest.importorskip("ray", reason="Ray is not installed: pip install 'chroma-plugin[ray]'")
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # a busy machine takes long

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from chroma_plugin.audio import OUTPUT_RATE_HZ
from chroma_plugin.client.engine import RemoteEngine
from chroma_plugin.conversation import Message
from chroma_plugin.errors import EngineError
from chroma_plugin.reply import ReplyStream, TextDelta
from chroma_plugin.server import ray_app
from chroma_plugin.server.ray_app import Arguments
from chroma_plugin.server.ray_router import HOME_HEADER
from chroma_plugin.voice import Voice

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # what takes long is Ray's start

WAIT_S = 240.0
CALLS = 2
ENGINE = "tests.server.replica:who_am_i"
"""It answers with the process id of its replica."""


def arguments(folder: Path, replicas: int = 2) -> Arguments:
    return Arguments(
        engine=ENGINE,
        calls=CALLS,
        num_cpus=0,
        min_replicas=replicas,
        max_replicas=replicas,
        voices=folder,
        max_call_s=1200,
        surge_percent=100,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("voices")


@pytest.fixture(scope="module")
def place(folder: Path) -> Iterator[str]:
    """Starts Ray and both replicas; gives the proxy's `127.0.0.1:PORT`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=80 << 20,
        log_to_driver=False,
        configure_logging=False,
    )
    try:
        for last in (False, False, True):  # Ray waits a minute for its proxy, whatever else runs
            try:
                serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
                break
            except TimeoutError:
                if last:
                    raise
        serve.run(ray_app.app(arguments(folder)), name="chroma")
        yield f"127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()
        signal.signal(signal.SIGTERM, on_sigterm)  # which Ray keeps to itself


class Caller:
    """One client, with its own eyes: the protocol's events as they come."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def event(self) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_S):
            event: dict[str, Any] = json.loads(await self.socket.recv())
        return event

    async def send(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def until(self, kind: str) -> dict[str, Any]:
        while (event := await self.event())["type"] != kind:
            assert event["type"] != "error", event
        return event

    async def ask(self) -> None:
        words = [{"type": "input_text", "text": "Who are you?"}]
        item = {"type": "message", "role": "user", "content": words}
        await self.send("conversation.item.create", item=item)
        await self.send("response.create")

    async def answer(self) -> str:
        """All that is said in the reply."""
        done = (await self.until("response.done"))["response"]
        assert done["status"] in ("completed", "incomplete"), done  # a short one is cut off
        said: str = done["output"][0]["content"][0]["transcript"]
        return said

    async def replica(self) -> int:
        """The process at the other end."""
        await self.ask()
        return int((await self.answer()).split()[0])


@asynccontextmanager
async def calling(place: str, home: str = "", reply_s: float = 0.5) -> AsyncIterator[Caller]:
    """A call, as soon as there is a place for it: who hung up before may still hold one."""
    headers = {HOME_HEADER: home} if home else {}
    url = f"ws://{place}/v1/realtime?model=chroma&max_reply_s={reply_s}"
    async with AsyncExitStack() as stack:
        async with asyncio.timeout(WAIT_S):
            while True:
                dialled = connect(url, additional_headers=headers, open_timeout=WAIT_S)
                caller = Caller(await stack.enter_async_context(dialled))
                if (await caller.event())["type"] == "session.created":
                    break
                await asyncio.sleep(0.05)
        yield caller


async def refusal(place: str) -> tuple[str, int | None]:
    """How a call that has no place ends: the error's code, and that of the close."""
    async with connect(f"ws://{place}/v1/realtime", open_timeout=WAIT_S) as socket:
        caller = Caller(socket)
        error = await caller.event()
        assert error["type"] == "error", error
        with pytest.raises(ConnectionClosed):
            await caller.event()
        return error["error"]["code"], socket.close_code


async def free_places(place: str) -> None:
    """Waits until nobody talks and both replicas are there."""
    async with AsyncExitStack() as stack:
        for _ in range(2 * CALLS):
            await stack.enter_async_context(calling(place))


async def said(stream: ReplyStream) -> str:
    """The first word of a reply, after all of it."""
    async with asyncio.timeout(WAIT_S):
        words = [event.text async for event in stream if isinstance(event, TextDelta)]
    return words[0]


# -- talking -----------------------------------------------------------------------------------


async def test_calls_are_spread_evenly(place: str) -> None:
    async with AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(calling(place)) for _ in range(2 * CALLS)]
        replicas = await asyncio.gather(*(caller.replica() for caller in callers))
        assert sorted(replicas.count(pid) for pid in set(replicas)) == [CALLS, CALLS]
        assert os.getpid() not in replicas


async def test_a_full_house_refuses_in_words_and_does_not_hang(place: str) -> None:
    await free_places(place)
    async with AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(calling(place)) for _ in range(2 * CALLS)]
        refused = await asyncio.gather(*(refusal(place) for _ in range(8)))
        assert refused == [("server_overloaded", 1013)] * 8
        async with httpx.AsyncClient(base_url=f"http://{place}", timeout=WAIT_S) as http:
            speech = {"model": "chroma", "input": "Hello.", "voice": "default"}
            answers = [await http.post("/v1/audio/speech", json=speech), await http.get("/ready")]
        assert [answer.status_code for answer in answers] == [503, 503]
        await callers[0].socket.close()
        await stack.enter_async_context(calling(place))
        assert len({await caller.replica() for caller in callers[1:]}) == 2


async def test_a_caller_comes_back_to_its_replica_while_that_has_room(place: str) -> None:
    await free_places(place)
    met = []
    for _ in range(5):
        async with calling(place, "ada") as caller:
            met.append(await caller.replica())
    home = max(met, key=met.count)
    assert met.count(home) >= 4  # one that does not say in time how full it is, is passed over
    async with calling(place, "ada") as caller:
        assert await caller.replica() == home
        async with calling(place, "ada") as other, calling(place, "ada") as third:
            assert await other.replica() == home
            assert await third.replica() != home  # better elsewhere than refused


async def test_a_voice_that_one_replica_enrols_is_every_replicas(place: str) -> None:
    await free_places(place)
    clip = Voice.default()
    buffer = io.BytesIO()
    soundfile.write(buffer, clip.samples, OUTPUT_RATE_HZ, format="WAV")
    consent = {"name": "Ada L.", "statement": "Use my voice."}
    async with httpx.AsyncClient(base_url=f"http://{place}", timeout=WAIT_S) as http:
        given = (await http.post("/v1/audio/voice_consents", data=consent)).json()
        form = {"name": "ada", "consent": given["id"], "transcript": clip.transcript}
        files = {"audio_sample": ("ada.wav", buffer.getvalue())}
        added = await http.post("/v1/audio/voices", data=form, files=files)
        assert added.status_code < 300, added.text
        wanted = {"type": "realtime", "audio": {"output": {"voice": "ada"}}}
        async with AsyncExitStack() as stack:
            callers = [await stack.enter_async_context(calling(place)) for _ in range(2 * CALLS)]
            for caller in callers:
                await caller.send("session.update", session=wanted)
                updated = await caller.until("session.updated")
                assert updated["session"]["audio"]["output"]["voice"] == "ada"
            assert len({await caller.replica() for caller in callers}) == 2
        assert (await http.delete("/v1/audio/voices/ada")).status_code < 300
    async with calling(place) as one, calling(place) as two:
        for caller in (one, two):
            await caller.send("session.update", session=wanted)
            while (event := await caller.event())["type"] != "error":
                pass
            assert event["error"]["code"] == "voice_not_found"


# -- losing and draining replicas ----------------------------------------------------------------


async def test_a_replica_that_is_killed_takes_nobody_else_with_it(place: str) -> None:
    """Its caller is told, comes back to the other replica and goes on; that one's own caller hears
    all of its reply; and Ray puts another replica in the place of the dead one."""
    await free_places(place)
    async with RemoteEngine(f"ws://{place}", reconnect_s=WAIT_S) as engine:
        session = await engine.open_session(history=[Message("user", "My name is Ada.")])
        pid = int(await said(session.respond()))
        async with AsyncExitStack() as stack:
            callers = [
                await stack.enter_async_context(calling(place, reply_s=60))
                for _ in range(2 * CALLS - 1)
            ]
            replicas = await asyncio.gather(*(caller.replica() for caller in callers))
            assert len(set(replicas)) == 2
            other = next(c for c, its in zip(callers, replicas, strict=True) if its != pid)
            for caller in callers:
                if caller is not other:  # leaves room for who comes back
                    await caller.socket.close()
            await other.ask()
            await other.until("response.output_audio.delta")
            doomed = session.respond()
            await anext(doomed)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(EngineError, match="lost in mid-reply"):
                await said(doomed)
            survivor = int((await other.answer()).split()[0])
            assert survivor != pid
            assert int(await said(session.respond())) == survivor
        heard = [message.text for message in session.history if message.role == "user"]
        assert heard == ["My name is Ada."]
    await free_places(place)  # as many as before


async def test_an_update_and_a_drain_cut_no_call(place: str, folder: Path) -> None:
    """Another version with one replica instead of two: it is warm before the old ones go, these
    take no more calls, keep those that they have, and are gone when they have ended."""
    await free_places(place)
    async with AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(calling(place)) for _ in range(2)]
        before = {await caller.replica() for caller in callers}
        assert len(before) == 2
        version = ray_app.app(arguments(folder, replicas=1))
        update = asyncio.create_task(asyncio.to_thread(serve.run, version, name="chroma"))
        async with asyncio.timeout(WAIT_S):
            while True:  # until all that come are taken by the new one
                async with AsyncExitStack() as new:
                    others = [await new.enter_async_context(calling(place)) for _ in range(CALLS)]
                    if not before & {await caller.replica() for caller in others}:
                        assert await refusal(place) == ("server_overloaded", 1013)
                        break
        assert not update.done()
        assert {await caller.replica() for caller in callers} == before
    async with asyncio.timeout(WAIT_S):
        await update
