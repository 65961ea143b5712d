"""Which replica takes a call: the one with the fewest, or the one that a client comes back to.

Ray's own choice draws two replicas and takes the emptier one. With calls that last minutes that
turns callers away while others have room, as two drawn of many may both be full. Knows no engine
and no protocol.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

log = logging.getLogger(__name__)

ASK_S = 0.25
"""A replica that does not say within that how many calls it has is taken for a full one."""
SLACK = 2
"""A client goes back home unless that has so many calls more than the emptiest replica."""
HOME_HEADER = "x-session-id"
"""The header by which a client names itself, or its voice, to come back to the same replica; the
name is Ray's."""


class FewestCalls(RequestRouter):
    """Routes each call to the replica with the fewest calls, so that none is refused in vain.

    Calls that carry `x-session-id` have a home: the replica that rendezvous hashing gives them,
    the same one on every proxy as long as it lives. They go there while it has room and at most
    `SLACK` calls more than the emptiest one, and elsewhere otherwise.
    """

    def initialize_state(self, calls: int = 1, **unknown: Any) -> None:
        """Takes `request_router_kwargs`.

        Args:
            calls: that one replica takes; it refuses what goes beyond.
            unknown: of another version of this module; ignored.
        """
        self._calls = calls

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas, best first; Ray takes the emptiest of a rank."""
        if pending_request is not None:  # wait a little before the next attempt, if there is one
            pending_request.routing_context.should_backoff = True
        loads = await self._loads(candidate_replicas)
        key = pending_request.metadata.session_id if pending_request is not None else ""
        chosen = ranks([r.replica_id for r in candidate_replicas], loads, self._calls, key)
        by_id = {replica.replica_id: replica for replica in candidate_replicas}
        return [[by_id[replica_id] for replica_id in rank] for rank in chosen]

    async def _loads(self, replicas: Sequence[RunningReplica]) -> dict[ReplicaID, int]:
        """How many calls each replica has: as remembered where that leaves room, asked where not,
        since a remembered full one may have been left by now."""
        known = {r.replica_id: self.replica_queue_len_cache.get(r.replica_id) for r in replicas}
        loads = {name: load for name, load in known.items() if load is not None}
        unsure = [r for r in replicas if loads.get(r.replica_id, self._calls) >= self._calls]
        asked = await asyncio.gather(
            *(asyncio.wait_for(r.get_queue_len(deadline_s=ASK_S), ASK_S) for r in unsure),
            return_exceptions=True,
        )
        for replica, load in zip(unsure, asked, strict=True):
            if isinstance(load, int):
                loads[replica.replica_id] = load
                self.on_new_queue_len_info(replica.replica_id, load)
            else:  # gone, or too slow; the next one is asked instead
                log.debug("%s does not answer: %s", replica.replica_id, type(load).__name__)
        return loads


def ranks(
    replicas: Iterable[Any], loads: dict[Any, int], calls: int, key: str = ""
) -> list[list[Any]]:
    """Replicas by preference, the best rank first.

    Args:
        replicas: their names.
        loads: calls of each; one that is missing did not answer.
        calls: that each takes.
        key: of a caller who wants to come back to the same one; "" if there is none.

    Returns:
        A caller's home alone, if it may go there; those with room; if there are none, all: the
        one that is taken refuses in words that the client understands.
    """
    names = list(replicas)
    room = [name for name in names if loads.get(name, calls) < calls]
    if not room:
        return [names]
    if key:
        home = max(names, key=lambda name: _weight(key, str(name)))
        if home in room and loads[home] <= min(loads.values()) + SLACK:
            return [[home], room]
    return [room]


def _weight(key: str, name: str) -> bytes:
    return hashlib.blake2b(f"{key}\0{name}".encode("utf-8", "replace"), digest_size=8).digest()
