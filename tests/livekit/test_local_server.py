"""One server for the jobs of a worker: found or started, looked after, ended."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chroma_plugin.errors import EngineBusy, EngineFailed
from chroma_plugin.livekit import LocalServer, RealtimeModel, local_server
from chroma_plugin.livekit.keeper import keep
from chroma_plugin.livekit.local_server import alive, owner
from tests.livekit.stage import listen

LASTS = [sys.executable, "-c", "import time; time.sleep(600)"]
SERVES = """
import http.server, json, sys
class Pool(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"status": "ready", "slots": 4, "used": 0}).encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Pool).serve_forever()
"""
ENDS = [sys.executable, "-c", "pass"]


def wait_for(process: subprocess.Popen[bytes]) -> int:
    return process.wait(60)


def wait_for_child(process: int) -> None:
    os.waitpid(process, 0)


def keeper_of(server: LocalServer) -> int:
    state = server._state()
    assert state is not None
    return int(state["keeper"])


def stub(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Has another program started, which is told its port."""
    monkeypatch.setattr(
        LocalServer, "_command", lambda self, port: [sys.executable, "-c", program, str(port)]
    )


async def test_a_server_is_started_once_and_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(monkeypatch, SERVES)
    server = LocalServer(folder=tmp_path)
    assert server.pool() is None
    addresses = await asyncio.gather(*(server.address() for _ in range(4)))
    assert len({*addresses, await LocalServer(folder=tmp_path).address()}) == 1
    keeper = keeper_of(server)
    assert (await asyncio.to_thread(server.pool) or {})["slots"] == 4
    os.kill(keeper, 9)
    wait_for_child(keeper)
    assert server.pool() is None  # it has died: the next job starts another one
    await server.address()
    assert keeper_of(server) != keeper
    os.kill(keeper_of(server), 9)


async def test_a_server_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(monkeypatch, "raise SystemExit('no such folder')")
    with pytest.raises(EngineFailed, match="no such folder"):
        await LocalServer(folder=tmp_path).address()


async def test_a_server_that_is_never_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(monkeypatch, "import time; time.sleep(600)")
    server = LocalServer(folder=tmp_path, start_limit_s=0.2)
    with pytest.raises(EngineBusy, match="not ready"):
        await server.address()
    os.kill(keeper_of(server), 9)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_real_server_speaks_and_ends(tmp_path: Path) -> None:
    server = LocalServer(folder=tmp_path, max_sessions=8, max_replies=2)
    await server.address()
    keeper = keeper_of(server)
    try:
        model = RealtimeModel(engine=server, reply_timeout_s=120)
        async with asyncio.timeout(300):
            created = await model.session().generate_reply()
        assert (await listen(created)).seconds > 0
        await model.aclose()
    finally:
        os.kill(keeper, 15)
        await asyncio.to_thread(wait_for_child, keeper)
    assert not alive(keeper) and server.pool() is None


def test_servers_that_differ_are_not_shared(tmp_path: Path) -> None:
    one, other = LocalServer(folder=tmp_path), LocalServer(folder=tmp_path, max_replies=8)
    assert one._file("lock") != other._file("lock")
    assert one._file("lock") == LocalServer(folder=tmp_path)._file("lock")


def test_the_owner_is_the_worker() -> None:
    assert owner() == os.getpid()


def test_a_process_that_is_over_is_not_alive() -> None:
    over = subprocess.Popen(ENDS)
    assert alive(os.getpid())
    wait_for(over)
    assert not alive(over.pid)


def test_the_server_ends_with_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chroma_plugin.livekit.keeper.LOOK_S", 0.01)
    worker, server = subprocess.Popen(LASTS), subprocess.Popen(LASTS)
    worker.kill()
    wait_for(worker)
    assert keep(worker.pid, server) == -15


def test_a_server_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chroma_plugin.livekit.keeper.END_S", 0.05)
    deaf = (
        "import signal, sys; signal.signal(15, signal.SIG_IGN); print(flush=True); sys.stdin.read()"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", deaf], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdout is not None and server.stdout.readline()
    over = subprocess.Popen(ENDS)
    wait_for(over)
    assert keep(over.pid, server) == -9


def test_the_keeper_ends_with_the_server() -> None:
    server = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    assert keep(os.getpid(), server) == 3


def test_what_a_job_sees_of_a_server_that_is_gone(tmp_path: Path) -> None:
    server = LocalServer(folder=tmp_path)
    over = subprocess.Popen(ENDS)
    wait_for(over)
    server._file("json").write_text(f'{{"keeper": {over.pid}, "port": 1}}')
    assert server._state() is None and server.pool() is None
    server._file("json").write_text("half")
    assert server._state() is None
    assert server.last_words() == "nothing"
    assert local_server.read_pool("http://127.0.0.1:9") is None
