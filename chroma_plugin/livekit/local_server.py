"""`LocalServer`: one engine for all jobs of a worker, in a server on this machine.

A worker of LiveKit runs each conversation in a process of its own, and a GPU has room for one copy
of the weights. So the first job that needs an engine starts `chroma-plugin serve` on a free port
of the loopback, the others find it there, and it ends with the worker. A lock in a folder of the
user's keeps two jobs from starting two.
"""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import json
import logging
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chroma_plugin.config import DEFAULT_MODEL
from chroma_plugin.errors import EngineBusy, EngineFailed
from chroma_plugin.file_lock import file_lock

log = logging.getLogger(__name__)

LOOK_S = 0.1
"""Between two looks at a server that is starting."""


@dataclass(frozen=True, slots=True)
class LocalServer:
    """What is served, and on what. Equal ones of one worker are one server.

    Attributes:
        model: ``chroma-tiny`` (inside this package), a checkpoint folder, or a hub id.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        max_replies: conversations that may speak at the same time.
        max_sessions: conversations that may be open at the same time.
        voices: a folder of voices, as `chroma-plugin voices` keeps it.
        start_limit_s: a server that takes longer to be ready has failed.
        folder: where its lock, its address and its log are; in the user's runtime folder if None.
    """

    model: str = DEFAULT_MODEL
    device: str = "auto"
    max_replies: int = 4
    max_sessions: int = 64
    voices: Path | None = None
    start_limit_s: float = 600.0
    folder: Path | None = None

    async def address(self) -> str:
        """Where it listens; starts it, and waits until it is ready, if need be.

        Raises:
            EngineFailed: it cannot be started; says what it wrote last.
            EngineBusy: it took too long.
        """
        state = await asyncio.to_thread(self._find_or_start)
        deadline_s = time.monotonic() + self.start_limit_s
        while (status := await asyncio.to_thread(_status, state)) not in ("ready", "full"):
            if status == "failed" or not alive(state["keeper"]):
                raise EngineFailed(
                    f"The server for {self.model} does not start. It wrote: {self.last_words()}"
                )
            if time.monotonic() > deadline_s:
                raise EngineBusy(
                    f"The server for {self.model} is not ready after {self.start_limit_s:g} s. "
                    f"Its log is {self._file('log')}."
                )
            await asyncio.sleep(LOOK_S)
        return _url(state)

    def pool(self) -> dict[str, Any] | None:
        """Its places, as the server tells them; None while there is none."""
        state = self._state()
        return read_pool(_url(state)) if state is not None else None

    def last_words(self) -> str:
        """The end of its log."""
        try:
            text = self._file("log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "nothing"
        return " / ".join(text.strip().splitlines()[-4:]) or "nothing"

    # -- one of them -----------------------------------------------------------------------------

    def _find_or_start(self) -> dict[str, Any]:
        with self._locked():
            state = self._state()
            if state is None:
                state = self._start()
            return state

    def _state(self) -> dict[str, Any] | None:
        """Where it is, if it lives."""
        try:
            state: dict[str, Any] = json.loads(self._file("json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        keeper = state.get("keeper", 0)
        return state if alive(keeper) and born(keeper) == state.get("born") else None

    def _start(self) -> dict[str, Any]:
        port = _free_port()
        environment = {k: v for k, v in os.environ.items() if k != "CHROMA_API_KEY"}
        with self._file("log").open("wb") as log_file:
            process = subprocess.Popen(
                self._command(port),
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,  # Ctrl+C is the worker's
                env=environment,
            )
        state = {"keeper": process.pid, "born": born(process.pid), "port": port}
        self._file("json").write_text(json.dumps(state), encoding="utf-8")
        log.info("a server for %s starts on port %d", self.model, port)
        return state

    def _command(self, port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "chroma_plugin.livekit.keeper", str(owner())),
            *("--model", self.model, "--device", self.device, "--port", str(port)),
            *("--max-replies", str(self.max_replies), "--max-sessions", str(self.max_sessions)),
            *(("--voices", str(self.voices)) if self.voices is not None else ()),
        ]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with file_lock(self._file("lock")):
            yield

    def _file(self, kind: str) -> Path:
        folder = self.folder or _runtime_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        what = (self.model, self.device, self.max_replies, self.max_sessions, self.voices, owner())
        name = hashlib.sha256(repr(what).encode()).hexdigest()[:16]
        return folder / f"{name}.{kind}"


def owner() -> int:
    """The process of the worker: this one, or the one that started this job."""
    parent = multiprocessing.parent_process()
    return os.getpid() if parent is None or parent.pid is None else parent.pid


def born(process: int) -> str | None:
    """When a process began, in the kernel's ticks: its number may be another's after a restart."""
    stat = _stat(process)
    return None if stat is None else stat[19]


def alive(process: int) -> bool:
    """A process runs, and is no zombie."""
    stat = _stat(process)
    if stat is not None:
        return stat[0] not in ("Z", "X")
    if os.path.exists("/proc/self/stat"):
        return False
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def _stat(process: int) -> list[str] | None:
    """What Linux tells of a process, from its state on; None if it is not there."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # the second if it ends while it is read
        return None


def read_pool(url: str, api_key: str | None = None) -> dict[str, Any] | None:
    """The places of a server, as it tells them; None if it does not answer."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return _get(f"{url.rstrip('/')}/v1/pool", headers)


def _get(url: str, headers: dict[str, str]) -> dict[str, Any] | None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(urllib.request.Request(url, headers=headers), timeout=2.0) as answer:
            found: dict[str, Any] = json.load(answer)
    except (OSError, ValueError):  # URLError is an OSError
        return None
    return found


def _status(state: dict[str, Any]) -> str:
    pool = read_pool(_url(state))
    return str(pool["status"]) if pool is not None else "loading"


def _url(state: dict[str, Any]) -> str:
    return f"http://127.0.0.1:{state['port']}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _runtime_folder() -> Path:
    """Where this user's servers are found.

    Raises:
        EngineFailed: somebody else made it, as anybody may in /tmp.
    """
    given = os.environ.get("XDG_RUNTIME_DIR")
    if given and os.access(given, os.W_OK):
        folder = Path(given) / "chroma-plugin"
    else:
        user = getattr(os, "getuid", getpass.getuser)()
        folder = Path(tempfile.gettempdir()) / f"chroma-plugin-{user}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid"):
        about = folder.lstat()
        if about.st_uid != os.getuid() or about.st_mode & 0o022:
            raise EngineFailed(f"{folder} is not yours alone; remove it, or set XDG_RUNTIME_DIR.")
    return folder
