"""Endurance: conversations come and go, interrupt and crash, and nothing may be left behind.

Four things are held: memory is flat over the second half, no row or session is left in the end,
nothing reaches a reader after a cancel, and nobody meets an error.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from chroma_plugin.audio import INPUT_RATE_HZ, Samples
from chroma_plugin.bench.hearing import Heard, hear, open_to, speech
from chroma_plugin.bench.report import Curve, Panel, Report, memory, resident_mb, rounded
from chroma_plugin.bench.sizes import Setup
from chroma_plugin.config import SamplingParams
from chroma_plugin.engine.engine import Engine, EngineStats
from chroma_plugin.engine.parts import Parts
from chroma_plugin.errors import ChromaError
from chroma_plugin.reply import AudioChunk, ReplyStream, TextDelta
from chroma_plugin.session import Session

LINGER_S = 0.05
"""How long a reader waits, after a cancel, for what should not come."""
PATIENCE_S = 10.0
"""How long the engine may take to let go of everything in the end."""


@dataclass(frozen=True, slots=True)
class SoakPlan:
    """What goes on.

    Attributes:
        minutes: for how long.
        conversations: users at once.
        reply_s: the length of a reply.
        max_growth_mb: how much memory may grow over the second half, by a straight line.
    """

    minutes: float = 60.0
    conversations: int = 4
    reply_s: float = 1.0
    max_growth_mb: float = 16.0


@dataclass(slots=True)
class Soaked:
    """What happened.

    Attributes:
        replies: asked for.
        cancelled: by `cancel()`.
        crashed: whose reader went away without a word.
        sessions: opened.
        late: events that a reader got after its cancel.
        errors: what was raised, by class.
        left: what the engine held in the end.
        seconds: when memory was looked at.
        rss_mb: what it was.
    """

    replies: int = 0
    cancelled: int = 0
    crashed: int = 0
    sessions: int = 0
    late: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    left: EngineStats | None = None
    seconds: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)

    def growth_mb(self) -> float:
        """How much memory grew over the second half, by a straight line through it."""
        half = self.seconds[-1] / 2 if self.seconds else 0.0
        late = [(s, mb) for s, mb in zip(self.seconds, self.rss_mb, strict=True) if s >= half]
        if len(late) < 3:
            return 0.0
        return slope(*zip(*late, strict=True)) * (late[-1][0] - late[0][0])

    def violations(self, plan: SoakPlan) -> list[str]:
        """What should not have been."""
        found = []
        if (growth := self.growth_mb()) > plan.max_growth_mb:
            found.append(f"memory grew by {growth:.1f} MB in the second half")
        stats = self.left
        if stats is None or stats.sessions or stats.speaking or stats.waiting:
            found.append(f"the engine still holds conversations or rows: {stats}")
        if self.late:
            found.append(f"{self.late} events reached a reader after its cancel")
        if self.errors:
            found.append(f"errors: {self.errors}")
        if not self.replies:
            found.append("nothing was asked; give it more minutes")
        return found


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the straight line with the least squares."""
    x0, y0 = sum(xs) / len(xs), sum(ys) / len(ys)
    across = sum((x - x0) ** 2 for x in xs)
    return sum((x - x0) * (y - y0) for x, y in zip(xs, ys, strict=True)) / (across or 1.0)


def measure_soak(setup: Setup, plan: SoakPlan) -> Report:
    """Runs it; the report says what was violated.

    Raises:
        ChromaError: the weights cannot be had, or the engine died.
    """
    parts = setup.load(plan.conversations)
    soaked = asyncio.run(run_soak(setup, parts, plan))
    figures: dict[str, Any] = {
        name: getattr(soaked, name)
        for name in ("replies", "cancelled", "crashed", "sessions", "late", "errors")
    }
    figures["growth_mb"] = rounded(soaked.growth_mb())
    figures["left"] = None if soaked.left is None else asdict(soaked.left)
    report = Report("soak", setup.facts(parts), asdict(plan), figures, memory(parts.model.device))
    report.violations = soaked.violations(plan)
    report.panels = [Panel("Memory", "s", "MB", [Curve("", soaked.seconds, soaked.rss_mb)])]
    return report


async def run_soak(setup: Setup, parts: Parts, plan: SoakPlan) -> Soaked:
    """One engine and its restless users."""
    soaked, dice = Soaked(), random.Random(setup.seed)
    begin_s = time.perf_counter()
    until_s = begin_s + 60 * plan.minutes
    async with Engine(setup.engine_config(plan.conversations), load=lambda _: parts) as engine:

        async def look() -> None:
            while True:
                soaked.seconds.append(time.perf_counter() - begin_s)
                soaked.rss_mb.append(resident_mb())
                await asyncio.sleep(max(60 * plan.minutes / 400, 0.05))

        looking = asyncio.create_task(look())
        try:
            users = (random.Random(dice.getrandbits(64)) for _ in range(plan.conversations))
            await asyncio.gather(*(_User(engine, plan, soaked, u).live(until_s) for u in users))
        finally:
            looking.cancel()
        patient_until_s = time.perf_counter() + min(PATIENCE_S, 60 * plan.minutes)
        while True:
            soaked.left = left = engine.stats
            if not (left.sessions or left.speaking or left.waiting):
                break
            if time.perf_counter() > patient_until_s:
                break
            await asyncio.sleep(0.02)
    return soaked


@dataclass(slots=True)
class _User:
    """Opens conversations one after another and ends each reply in a way of its own."""

    engine: Engine
    plan: SoakPlan
    soaked: Soaked
    dice: random.Random

    async def live(self, until_s: float) -> None:
        """One conversation after another, until the time is up."""
        longest = speech(1.0)
        while time.perf_counter() < until_s:
            sampling = SamplingParams(seed=self.dice.getrandbits(32))
            self.soaked.sessions += 1
            try:
                async with open_to(
                    self.engine, sampling=sampling, max_reply_s=self.plan.reply_s
                ) as session:
                    for _ in range(self.dice.randint(1, 4)):
                        if time.perf_counter() < until_s:
                            await self._turn(session, longest)
            except ChromaError as error:
                name = type(error).__name__
                self.soaked.errors[name] = self.soaked.errors.get(name, 0) + 1
                await asyncio.sleep(0.1)  # what failed at once would fail at once again

    async def _turn(self, session: Session, longest: Samples) -> None:
        share = self.dice.uniform(0.2, 1.0)
        session.push_audio(longest[: round(share * INPUT_RATE_HZ)])
        if self.dice.random() < 0.1:  # thinks better of it
            session.clear_audio()
            return
        self.soaked.replies += 1
        stream = session.commit_turn()
        reading = asyncio.create_task(hear(stream, Heard(time.perf_counter())))
        end = self.dice.choice(("hear", "hear", "cancel", "crash", "speak over"))
        try:
            if end == "hear":
                await reading
                return
            await asyncio.wait([reading], timeout=self.dice.uniform(0.0, self.plan.reply_s))
        finally:
            if end != "speak over":
                reading.cancel()
        if end == "cancel":
            await asyncio.wait([reading])
            session.cancel()
            self.soaked.cancelled += 1
            await asyncio.sleep(LINGER_S)
            self.soaked.late += await late_events(stream)
        elif end == "crash":
            self.soaked.crashed += 1
        else:  # the next turn, or the end of the session, ends this reply
            session.push_audio(longest[: round(0.3 * INPUT_RATE_HZ)])
            session.commit_audio()
            await reading


async def late_events(stream: ReplyStream) -> int:
    """How much text and audio a cancelled reply still hands out."""
    late = 0
    async for event in stream:
        late += isinstance(event, AudioChunk | TextDelta)
    return late
