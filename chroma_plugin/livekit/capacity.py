"""How full the engine is, as a LiveKit worker reports it, and which jobs it takes."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from livekit.agents import JobRequest

from chroma_plugin.addresses import http_url
from chroma_plugin.livekit.local_server import LocalServer, read_pool

log = logging.getLogger(__name__)

ON_THE_WAY_S = 10.0
"""A job that was taken so long ago has opened its session, and is counted by the server."""


class Capacity:
    """The places of an engine that many jobs share.

    Example::

        capacity = chroma.Capacity(engine)
        server = AgentServer(load_fnc=capacity.load, load_threshold=1.0, num_idle_processes=1)

        @server.rtc_session(on_request=capacity.take_or_refuse)
        async def talk(job: JobContext) -> None: ...

    Args:
        engine: the address of a server, or a `LocalServer`.
        api_key: of the server.
        places: at most so many conversations of this worker's; None: as many as the server has.
    """

    def __init__(
        self, engine: LocalServer | str, *, api_key: str | None = None, places: int | None = None
    ) -> None:
        self._engine, self._api_key, self._places = engine, api_key, places
        self._taken: list[float] = []  # when, of jobs that are on their way

    def pool(self) -> dict[str, Any] | None:
        """The server's places; None if it does not answer, or was not started yet."""
        if isinstance(self._engine, LocalServer):
            return self._engine.pool()
        return read_pool(http_url(self._engine), self._api_key)

    def load(self) -> float:
        """The share of places that are used, 0 to 1: LiveKit gives jobs to who has the least.

        A server that is not there counts as full; one that its first job will start, as empty.
        """
        pool = self.pool()
        if pool is None:
            return 0.0 if isinstance(self._engine, LocalServer) else 1.0
        if pool["status"] in ("failed", "draining"):
            return 1.0
        slots, used = int(pool["slots"]), int(pool["used"]) + self._on_the_way()
        return min(used / max(min(slots, self._places or slots), 1), 1.0)

    async def take_or_refuse(self, request: JobRequest) -> None:
        """Accepts a job if there is a place for it; else LiveKit offers it to another worker."""
        if await asyncio.to_thread(self.load) >= 1.0:
            log.info("a job is refused: the engine has no free place")
            await request.reject()
            return
        self._taken.append(time.monotonic())
        await request.accept()

    def _on_the_way(self) -> int:
        since = time.monotonic() - ON_THE_WAY_S
        self._taken = [at for at in self._taken if at > since]
        return len(self._taken)
