"""Many replicas and many calls, as a simulation: who is turned away, and what it costs.

Calls come at random, stay for a while and go. Each takes a place of a replica, or is refused. Ray's
autoscaler starts and drains replicas, a replica takes its time to become warm, nodes fail with all
calls on them. Nothing is measured on a device here: how many places a replica has is given.

Erlang's formulas (`erlang.py`) stand beside it: for a fixed number of places they say the same.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from chroma_plugin.errors import ConfigError

LOOK_S = 10.0
"""Between two looks of the autoscaler."""
HOUR_S = 3600.0


# -- what is simulated -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScalePlan:
    """A fleet and its callers.

    Attributes:
        erlangs: calls wanted at the same time, on average over a day.
        peak: the busiest moment of a day, by that average; 1: all hours are alike.
        call_s: the mean length of a call.
        lengths: `exponential`, or `fixed`: all are alike.
        places: calls that a replica takes.
        min_replicas, max_replicas: how many there may be; there are `min_replicas` at first.
        target_load: the share of places taken that the autoscaler aims at.
        upscale_delay_s, downscale_delay_s: how long it makes sure.
        start_s: until a new replica is warm.
        node_mtbf_h: mean time between the failures of a node, in hours.
        node_replicas: replicas that fail together.
        router: `fewest` calls first, or the emptier of `two` drawn at random, which is Ray's own.
        hours: that are counted.
        warm_up_h: that go before them.
        seed: of all chance.

    Raises:
        ConfigError: a number is out of range.
    """

    erlangs: float = 100.0
    peak: float = 1.0
    call_s: float = 300.0
    lengths: Literal["exponential", "fixed"] = "exponential"
    places: int = 128
    min_replicas: int = 1
    max_replicas: int = 1
    target_load: float = 0.8
    upscale_delay_s: float = 10.0
    downscale_delay_s: float = 600.0
    start_s: float = 180.0
    node_mtbf_h: float = math.inf
    node_replicas: int = 1
    router: Literal["fewest", "two"] = "fewest"
    hours: float = 24.0
    warm_up_h: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("erlangs", "call_s", "places", "node_mtbf_h", "node_replicas", "hours"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be more than 0.")
        for name in ("upscale_delay_s", "downscale_delay_s", "start_s", "warm_up_h"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be 0 or more.")
        if not 1 <= self.peak <= 2:
            raise ConfigError(f"peak is {self.peak!r}; it must be 1 to 2 (nights are not below 0).")
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ConfigError(
                f"min_replicas is {self.min_replicas!r}; it must be 1 to max_replicas."
            )
        if not 0 < self.target_load <= 1:
            raise ConfigError(f"target_load is {self.target_load!r}; it must be above 0, up to 1.")

    def erlangs_at(self, second: float) -> float:
        """Calls wanted at some time of the day: one wave, quietest at 0 h, busiest at 12 h."""
        wave = -math.cos(2 * math.pi * second / (24 * HOUR_S))
        return self.erlangs * (1 + (self.peak - 1) * wave)


@dataclass(slots=True)
class ScaleResult:
    """What became of the calls, in the hours that count.

    Attributes:
        calls: that came.
        refused: that found no place.
        in_vain: of these, while some replica had one.
        cut: that lost their replica; most are taken up by another one.
        lost: of these, that found no place there.
        call_hours: that were talked.
        gpu_hours: of all replicas, also of those that start or drain.
        most_gpus: at the same time.
        failures: of nodes.
    """

    calls: int = 0
    refused: int = 0
    in_vain: int = 0
    cut: int = 0
    lost: int = 0
    call_hours: float = 0.0
    gpu_hours: float = 0.0
    most_gpus: int = 0
    failures: int = 0

    @property
    def blocking(self) -> float:
        """The share of calls that were refused."""
        return self.refused / self.calls if self.calls else 0.0

    def figures(self, places: int, price: float) -> dict[str, Any]:
        """For a table and a line of JSON.

        Args:
            places: of a replica.
            price: of an hour of one GPU.
        """
        hours, offered = self.call_hours, self.gpu_hours * places
        return {
            "calls": self.calls,
            "refused": self.refused,
            "blocking": round(self.blocking, 6),
            "refused_in_vain": self.in_vain,
            "cut": self.cut,
            "lost": self.lost,
            "utilisation": round(hours / offered, 4) if offered else 0.0,
            "call_hours": round(hours, 1),
            "gpu_hours": round(self.gpu_hours, 1),
            "most_gpus": self.most_gpus,
            "node_failures": self.failures,
            "price_per_call_hour": round(price * self.gpu_hours / hours, 4) if hours else None,
        }


@dataclass(slots=True, eq=False)
class _Call:
    end_s: float
    replica: _Replica | None


@dataclass(slots=True, eq=False)
class _Replica:
    number: int
    state: Literal["starting", "warm", "draining", "gone"] = "starting"
    calls: dict[int, _Call] = field(default_factory=dict)


# -- the simulation ----------------------------------------------------------------------------


def simulate(plan: ScalePlan) -> ScaleResult:
    """Runs a plan; the same plan gives the same result."""
    return _Fleet(plan).run()


class _Fleet:
    """Events in the order of their times; each is a function that is called at its time."""

    def __init__(self, plan: ScalePlan) -> None:
        self._plan, self._result = plan, ScaleResult()
        self._dice = random.Random(plan.seed)
        self._now_s, self._from_s = 0.0, plan.warm_up_h * HOUR_S
        self._to_s = self._from_s + plan.hours * HOUR_S
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._replicas: dict[int, _Replica] = {}
        self._emptiest: list[tuple[int, int]] = []  # (calls, replica); some are out of date
        self._born = self._talking = self._next_call = 0
        self._target = plan.min_replicas
        self._wish: tuple[int, float] | None = None  # the direction of a change, and since when

    def run(self) -> ScaleResult:
        plan = self._plan
        for _ in range(plan.min_replicas):
            self._become_warm(self._new_replica())
        self._at(self._dice.expovariate(self._highest_rate), self._arrive)
        if plan.max_replicas > plan.min_replicas:
            self._at(LOOK_S, self._look)
        while self._events and self._events[0][0] <= self._to_s:
            when_s, _, do = heapq.heappop(self._events)
            self._pass(when_s)
            do()
        self._pass(self._to_s)
        return self._result

    def _at(self, when_s: float, do: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when_s, self._count, do))

    def _pass(self, until_s: float) -> None:
        """Adds up what time brings while nothing changes."""
        hours = (until_s - max(self._now_s, self._from_s)) / HOUR_S
        if hours > 0:
            result = self._result
            result.call_hours += hours * self._talking
            result.gpu_hours += hours * len(self._replicas)
            result.most_gpus = max(result.most_gpus, len(self._replicas))
        self._now_s = until_s

    @property
    def _counts(self) -> bool:
        return self._now_s >= self._from_s

    # -- calls -------------------------------------------------------------------------------

    @property
    def _highest_rate(self) -> float:
        return self._plan.erlangs * self._plan.peak / self._plan.call_s

    def _arrive(self) -> None:
        plan = self._plan
        self._at(self._now_s + self._dice.expovariate(self._highest_rate), self._arrive)
        if self._dice.random() * plan.peak * plan.erlangs > plan.erlangs_at(self._now_s):
            return  # thinned out: it is not the busiest hour
        self._result.calls += self._counts
        length_s = plan.call_s
        if plan.lengths == "exponential":
            length_s = self._dice.expovariate(1 / plan.call_s)
        call = _Call(self._now_s + length_s, None)
        if self._take_up(self._next_call, call):
            number = self._next_call
            self._next_call += 1
            self._at(call.end_s, lambda: self._end(number, call))
        else:
            self._result.refused += self._counts
            self._result.in_vain += self._counts and self._room() is not None

    def _take_up(self, number: int, call: _Call) -> bool:
        replica = self._room() if self._plan.router == "fewest" else self._emptier_of_two()
        if replica is None:
            return False
        call.replica = replica
        replica.calls[number] = call
        self._talking += 1
        self._tell(replica)
        return True

    def _end(self, number: int, call: _Call) -> None:
        replica = call.replica
        if replica is None:  # it was lost before
            return
        del replica.calls[number]
        self._talking -= 1
        if replica.state == "draining" and not replica.calls:
            self._remove(replica)
        else:
            self._tell(replica)

    def _tell(self, replica: _Replica) -> None:
        if replica.state == "warm":
            heapq.heappush(self._emptiest, (len(replica.calls), replica.number))

    def _room(self) -> _Replica | None:
        """The warm replica with the fewest calls, if it has a place."""
        while self._emptiest:
            calls, number = self._emptiest[0]
            replica = self._replicas.get(number)
            if replica is None or replica.state != "warm" or len(replica.calls) != calls:
                heapq.heappop(self._emptiest)
                continue
            return replica if calls < self._plan.places else None
        return None

    def _emptier_of_two(self) -> _Replica | None:
        warm = [r for r in self._replicas.values() if r.state == "warm"]
        drawn = self._dice.sample(warm, min(2, len(warm)))
        best = min(drawn, key=lambda r: len(r.calls), default=None)
        return best if best is not None and len(best.calls) < self._plan.places else None

    # -- replicas ----------------------------------------------------------------------------

    def _new_replica(self) -> _Replica:
        replica = self._replicas[self._born] = _Replica(self._born)
        self._born += 1
        return replica

    def _start(self) -> None:
        replica = self._new_replica()
        self._at(self._now_s + self._plan.start_s, lambda: self._become_warm(replica))

    def _become_warm(self, replica: _Replica) -> None:
        if replica.state != "starting":
            return
        replica.state = "warm"
        self._tell(replica)
        plan = self._plan
        if plan.node_mtbf_h < math.inf:  # each brings its share of what its node fails by
            mean_s = plan.node_mtbf_h * plan.node_replicas * HOUR_S
            self._at(self._now_s + self._dice.expovariate(1 / mean_s), lambda: self._fail(replica))

    def _remove(self, replica: _Replica) -> None:
        replica.state = "gone"
        del self._replicas[replica.number]

    def _fail(self, first: _Replica) -> None:
        """A node goes, with all replicas on it; those in their place start elsewhere."""
        if first.state == "gone":
            return
        node = first.number // self._plan.node_replicas
        gone = [r for r in self._replicas.values() if r.number // self._plan.node_replicas == node]
        for replica in gone:
            self._remove(replica)
        self._result.failures += self._counts
        for replica in gone:
            for number, call in replica.calls.items():
                self._talking -= 1
                call.replica = None
                self._result.cut += self._counts
                if not self._take_up(number, call):
                    self._result.lost += self._counts
        self._fill()

    # -- the autoscaler ----------------------------------------------------------------------

    def _look(self) -> None:
        plan = self._plan
        self._at(self._now_s + LOOK_S, self._look)
        wanted = math.ceil(self._talking / (plan.places * plan.target_load))
        wanted = min(max(wanted, plan.min_replicas), plan.max_replicas)
        if wanted == self._target:
            self._wish = None
            return
        direction = 1 if wanted > self._target else -1
        if self._wish is None or self._wish[0] != direction:
            self._wish = direction, self._now_s
        delay_s = plan.upscale_delay_s if direction > 0 else plan.downscale_delay_s
        if self._now_s - self._wish[1] >= delay_s:
            self._target, self._wish = wanted, None
            self._fill()

    def _fill(self) -> None:
        """Starts what is missing, drains what is too much, the newest first."""
        serving = [r for r in self._replicas.values() if r.state != "draining"]
        for _ in range(self._target - len(serving)):
            self._start()
        surplus = sorted(serving, key=lambda r: (r.state == "starting", r.number))
        for replica in surplus[self._target :]:
            replica.state = "draining"
            if not replica.calls:
                self._remove(replica)
