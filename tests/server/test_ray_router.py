"""Which replica takes a call, without a cluster."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'chroma-plugin[ray]'")

from chroma_plugin.server.ray_router import SLACK, FewestCalls, ranks

NAMES = ["a", "b", "c", "d"]


def test_only_replicas_with_room_are_asked_first() -> None:
    assert ranks(NAMES, {"a": 8, "b": 3, "c": 9, "d": 0}, 8) == [["b", "d"]]


def test_one_that_does_not_answer_counts_as_full() -> None:
    assert ranks(NAMES, {"b": 3}, 8) == [["b"]]


def test_if_all_are_full_one_of_them_refuses() -> None:
    """Ray would hold the call back and let it hang if there were no replica for it."""
    assert ranks(NAMES, dict.fromkeys(NAMES, 8), 8) == [NAMES]
    assert ranks(NAMES, {}, 8, "ada") == [NAMES]


def homes(names: list[str], keys: int = 400) -> dict[str, str]:
    loads = dict.fromkeys(names, 0)
    return {f"key {i}": ranks(names, loads, 8, f"key {i}")[0][0] for i in range(keys)}


def test_homes_are_spread_and_stay_when_another_replica_goes() -> None:
    before, after = homes(NAMES), homes(NAMES[:3])
    assert min(Counter(before.values()).values()) > 70
    moved = {key for key in before if before[key] != after[key]}
    assert moved == {key for key, home in before.items() if home == "d"}
    assert homes(NAMES[::-1]) == before  # in whatever order a proxy knows them


def test_a_home_that_is_full_or_much_fuller_than_others_is_left() -> None:
    home = homes(NAMES, 1)["key 0"]
    empty = dict.fromkeys(NAMES, 0)
    assert ranks(NAMES, empty | {home: SLACK}, 8, "key 0")[0] == [home]
    assert home not in ranks(NAMES, dict.fromkeys(NAMES, 7) | {home: 8}, 8, "key 0")[0]
    assert len(ranks(NAMES, empty | {home: SLACK + 1}, 8, "key 0")[0]) == len(NAMES)


class Replica:
    """Says how many calls it has, or fails to."""

    def __init__(self, name: str, load: int | Exception) -> None:
        self.replica_id, self.load, self.asked = name, load, 0

    async def get_queue_len(self, *, deadline_s: float) -> int:
        assert deadline_s > 0
        self.asked += 1
        if isinstance(self.load, Exception):
            raise self.load
        return self.load


def router(remembered: dict[str, int], told: dict[str, int]) -> FewestCalls:
    """One that Ray has told nothing: only what choosing needs."""
    made: Any = FewestCalls.__new__(FewestCalls)
    made.initialize_state(calls=8, later="ignored")
    made._replica_queue_len_cache = remembered
    made.on_new_queue_len_info = told.__setitem__
    chosen: FewestCalls = made
    return chosen


async def test_full_and_unknown_replicas_are_asked_and_remembered() -> None:
    told: dict[str, int] = {}
    replicas = [Replica("a", 1), Replica("b", 5), Replica("c", 2), Replica("d", OSError("gone"))]
    router_ = router({"a": 3, "b": 8}, told)
    pending = SimpleNamespace(
        metadata=SimpleNamespace(session_id=""), routing_context=SimpleNamespace()
    )
    chosen: Any = await router_.choose_replicas(replicas, pending)  # type: ignore[arg-type]
    assert [[r.replica_id for r in rank] for rank in chosen] == [["a", "b", "c"]]
    assert [r.asked for r in replicas] == [0, 1, 1, 1]
    assert told == {"b": 5, "c": 2}
    assert pending.routing_context.should_backoff


async def test_a_replica_that_does_not_answer_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chroma_plugin.server.ray_router.ASK_S", 0.01)

    class Silent(Replica):
        async def get_queue_len(self, *, deadline_s: float) -> int:
            await asyncio.Event().wait()
            return 0

    replicas = [Silent("a", 0), Replica("b", 7)]
    chosen: Any = await router({}, {}).choose_replicas(replicas)  # type: ignore[arg-type]
    assert [[r.replica_id for r in rank] for rank in chosen] == [["b"]]
