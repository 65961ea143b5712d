"""Many conversations at once: does everybody hear a reply without a gap, and how soon?

Conversations are always on and in real time: speech, a reply that is listened to, a pause, speech
again; some users interrupt. Or replies are asked for at a rate, however long the earlier ones take.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from chroma_plugin.audio import FRAME_MS, INPUT_RATE_HZ, Samples
from chroma_plugin.bench.hearing import Heard, StepClock, firsts, hear, open_to, speak, speech
from chroma_plugin.bench.plain import PlainLoop, PlainRun
from chroma_plugin.bench.report import (
    Curve,
    Panel,
    Report,
    memory,
    percentile,
    ratio,
    rounded,
    spread,
)
from chroma_plugin.bench.sizes import Setup
from chroma_plugin.config import SamplingParams
from chroma_plugin.engine.engine import Engine
from chroma_plugin.engine.parts import Parts
from chroma_plugin.errors import ChromaError
from chroma_plugin.session import Session


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What is asked of the engine.

    Attributes:
        conversations: held at once; with a rate, how many replies may speak at once.
        seconds: for how long new questions are asked; replies that have begun are heard out.
        rate: replies asked for per second, at random moments; None for always-on conversations.
        speech_s: the shortest and the longest question.
        reply_s: the length of a reply.
        pause_s: the longest pause after a reply.
        interrupted: the share of replies that the user breaks into.
    """

    conversations: int = 4
    seconds: float = 60.0
    rate: float | None = None
    speech_s: tuple[float, float] = (1.5, 4.0)
    reply_s: float = 6.0
    pause_s: float = 1.0
    interrupted: float = 0.3


@dataclass(slots=True)
class Tally:
    """What happened.

    Attributes:
        replies: all that were asked for.
        interruptions: how many of them the user broke into.
        errors: what was raised, by class.
        held: conversations that went on to the end without an error or a gap.
        speaking: the most replies that spoke at once.
        clock: every step.
        plain: a reply of the plain loop, if one was made beside, and the cost of a further frame.
    """

    replies: list[Heard] = field(default_factory=list)
    interruptions: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    held: int = 0
    speaking: int = 0
    clock: StepClock = field(default_factory=StepClock)
    plain: tuple[PlainRun, float] | None = None

    @property
    def underruns_s(self) -> list[float]:
        return [gap for heard in self.replies for gap in heard.playback.underruns_s]

    @property
    def unanswered(self) -> int:
        """Replies that ended without any audio."""
        return sum(h.done is not None and not h.playback.played_s for h in self.replies)

    def fail(self, error: Exception) -> None:
        """Counts an error."""
        name = type(error).__name__
        self.errors[name] = self.errors.get(name, 0) + 1

    def holds(self, step_limit_ms: float = FRAME_MS) -> bool:
        """Nobody heard a gap or an error, and steps are shorter than the audio they make."""
        slowest = percentile(self.clock.steps_ms, 99)
        answered = bool(self.replies) and not self.unanswered
        return (
            answered
            and not self.errors
            and not self.underruns_s
            and slowest is not None
            and slowest < step_limit_ms
        )

    def figures(self) -> dict[str, Any]:
        """All of it, as figures of a report."""
        gaps = self.underruns_s
        return {
            "first_byte_ms": spread(firsts(self.replies, "first_s")),
            "first_playable_ms": spread(firsts(self.replies, "playable_s")),
            "first_audible_ms": spread(firsts(self.replies, "audible_s")),
            "step_ms": spread(self.clock.steps_ms),
            "replies": len(self.replies),
            "unanswered": self.unanswered,
            "interruptions": self.interruptions,
            "audio_s": rounded(sum(h.playback.played_s for h in self.replies)),
            "conversations_held": self.held,
            "speaking_at_once": self.speaking,
            "underruns": len(gaps),
            "underrun_total_ms": rounded(sum(gaps) * 1000),
            "underrun_longest_ms": rounded(max(gaps, default=0.0) * 1000),
            "errors": sum(self.errors.values()),
            "errors_by_class": self.errors,
        } | self._beside()

    def _beside(self) -> dict[str, Any]:
        """The plain loop's figures, and how much longer it would take for the same frames."""
        if self.plain is None:
            return {}
        run, frame_ms = self.plain
        frames = sum(h.playback.played_s for h in self.replies) * 1000 / FRAME_MS
        return {
            "plain_rtf": rounded(run.rtf),
            "plain_frame_ms": rounded(frame_ms),
            "frames_ratio_plain_to_engine": ratio(frame_ms * frames, sum(self.clock.steps_ms)),
        }


def measure_load(setup: Setup, plan: LoadPlan) -> Report:
    """Runs it.

    Raises:
        ChromaError: the weights cannot be had, or the engine died.
    """
    parts = setup.load(plan.conversations)
    tally = asyncio.run(run_load(setup, parts, plan, plain=True))
    held = memory(parts.model.device)
    report = Report("load", setup.facts(parts), asdict(plan), tally.figures(), held)
    report.figures["holds"] = tally.holds()
    report.panels = [
        Panel("From the last byte of user audio to the first of the reply", "reply", "ms",
              [Curve.of("", firsts(tally.replies, "first_s"))]),
        Panel("Steps", "step", "ms", [Curve.of("", tally.clock.steps_ms)], FRAME_MS),
    ]  # fmt: skip
    return report


async def run_load(setup: Setup, parts: Parts, plan: LoadPlan, *, plain: bool = False) -> Tally:
    """One engine under the planned load; after it the plain loop on the same thread."""
    tally, dice = Tally(), random.Random(setup.seed)
    longest = speech(plan.speech_s[1])
    config = setup.engine_config(plan.conversations)
    async with Engine(config, load=lambda _: parts) as engine, _watched(engine, tally):
        until_s = time.perf_counter() + plan.seconds
        kind = _Always if plan.rate is None else _Arriving
        await kind(engine, plan, longest, tally, until_s).run(dice)
        if plain:
            loop = PlainLoop(parts, longest)
            (run,) = await loop.runs(engine, round(plan.reply_s * 1000 / FRAME_MS))
            tally.plain = run, await loop.frame_ms(engine, run)
    return tally


@asynccontextmanager
async def _watched(engine: Engine, tally: Tally) -> AsyncIterator[None]:
    """Warms up, then counts steps, and looks now and then at how many speak."""
    async with open_to(engine, max_reply_s=0.5) as session:
        await hear(session.respond(), Heard(0.0))
    tally.clock.watch(engine)

    async def look() -> None:
        while True:
            tally.speaking = max(tally.speaking, engine.stats.speaking)
            await asyncio.sleep(0.05)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()


@dataclass(slots=True)
class _Users:
    """What users of both kinds do."""

    engine: Engine
    plan: LoadPlan
    longest: Samples
    tally: Tally
    until_s: float

    async def run(self, dice: random.Random) -> None:
        raise NotImplementedError

    def question(self, dice: random.Random) -> Samples:
        """Speech of a random length."""
        return self.longest[: round(dice.uniform(*self.plan.speech_s) * INPUT_RATE_HZ)]

    async def converse(
        self,
        dice: random.Random,
        turns: Callable[[Session, random.Random], Coroutine[Any, Any, list[Heard]]],
    ) -> None:
        """A session from its opening to its end; its errors are counted."""
        sampling = SamplingParams(seed=dice.getrandbits(32))
        try:
            async with open_to(
                self.engine, sampling=sampling, max_reply_s=self.plan.reply_s
            ) as session:
                replies = await turns(session, dice)
        except ChromaError as error:
            self.tally.fail(error)
            return
        self.tally.held += not any(heard.playback.underruns_s for heard in replies)


class _Always(_Users):
    """Conversations that go on all the time."""

    async def run(self, dice: random.Random) -> None:
        each = [random.Random(dice.getrandbits(64)) for _ in range(self.plan.conversations)]
        await asyncio.gather(*(self.converse(own, self._turns) for own in each))

    async def _turns(self, session: Session, dice: random.Random) -> list[Heard]:
        replies: list[Heard] = []
        await asyncio.sleep(dice.uniform(0, self.plan.pause_s))  # not all at once
        while time.perf_counter() < self.until_s:
            heard = Heard(await speak(session, self.question(dice)))
            replies.append(heard)
            self.tally.replies.append(heard)
            if dice.random() < self.plan.interrupted:
                await self._break_in(session, heard, dice)
                continue
            await hear(session.commit_turn(), heard)
            await _sleep_until(heard.playback.ends_s)
            await asyncio.sleep(dice.uniform(0, self.plan.pause_s))
        return replies

    async def _break_in(self, session: Session, heard: Heard, dice: random.Random) -> None:
        """Listens for a while, then speaks on."""
        reading = asyncio.create_task(hear(session.commit_turn(), heard))
        patience_s = dice.uniform(0.3, 0.8) * self.plan.reply_s
        try:
            await asyncio.wait([reading], timeout=patience_s)
            if not reading.done() or time.perf_counter() < heard.playback.ends_s:
                session.truncate(heard.playback.heard_s(time.perf_counter()) * 1000)
                self.tally.interruptions += 1
            await reading
        finally:
            reading.cancel()


class _Arriving(_Users):
    """Replies asked for at a rate, each in a conversation of its own."""

    async def run(self, dice: random.Random) -> None:
        assert self.plan.rate is not None
        async with asyncio.TaskGroup() as group:
            while time.perf_counter() < self.until_s:
                own = random.Random(dice.getrandbits(64))
                group.create_task(self.converse(own, self._ask))
                await asyncio.sleep(dice.expovariate(self.plan.rate))

    async def _ask(self, session: Session, dice: random.Random) -> list[Heard]:
        heard = Heard(time.perf_counter())
        session.push_audio(self.question(dice))
        self.tally.replies.append(heard)
        await hear(session.commit_turn(), heard)
        await _sleep_until(heard.playback.ends_s)
        return [heard]


async def _sleep_until(moment_s: float) -> None:
    await asyncio.sleep(max(moment_s - time.perf_counter(), 0.0))


async def largest(holds: Callable[[int], Coroutine[Any, Any, bool]], most: int) -> int:
    """The largest number that holds: doubling until one does not, then halving the gap."""
    good, bad, tried = 0, most + 1, 1
    while good + 1 < bad:
        if await holds(tried):
            good = tried
            tried = min(2 * good, most) if bad > most else (good + bad) // 2
        else:
            bad = tried
            tried = (good + bad) // 2
    return good
