"""Many callers of one server, in real time: who is answered, how soon, and without a gap.

Each user calls, is greeted, asks, listens, thinks, sometimes breaks in, hangs up, and calls again.
The greeting is a marker: words that only this user asks for, with a seed that only he has, at the
beginning of a conversation, so they must sound the same each time. With the ids of replies and
messages, which must be nobody else's, that finds mixed-up conversations.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from chroma_plugin.audio import Samples
from chroma_plugin.bench.caller import Answer, Caller, CallFailed, KeyRefused, Turns, alike
from chroma_plugin.bench.report import (
    ClientFacts,
    Curve,
    Panel,
    Report,
    percentile,
    resident_mb,
    rounded,
    spread,
)
from chroma_plugin.errors import ChromaError

KEY_HINT = "; set CHROMA_API_KEY here to a key of that server's"
ALIKE = 0.9
"""A greeting is the same speech as before; another one's is near 0."""
NAMES = (
    "alfa", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett",
    "kilo", "lima", "mike", "november", "oscar", "papa", "quebec", "romeo", "sierra", "tango",
    "uniform", "victor", "whiskey", "xray", "yankee", "zulu",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RemotePlan:
    """What is asked of a server; pairs are the shortest and the longest.

    Attributes:
        users: callers at the same time.
        seconds: for how long turns are begun; those that have begun are ended.
        calls: of each user; None: as many as there is time for.
        turns: who finds the turns: the server's VAD, or the client.
        turns_per_call: questions of a call.
        pause_s: between a reply and the next question.
        away_s: between two calls.
        interrupted: the share of replies that the user breaks into.
        patience_s: a reply that does not come, or does not end, within that is lost.
        markers: calls begin with the marker; False for servers that know no `chroma.say`.
        seed: of users and pauses.
        max_first_ms: bar: the 95th percentile of the time to first audio.
        max_underruns: bar: the share of replies that run dry.
        max_growth_mb: bar: what the server's memory grows from its second quarter to its last.
    """

    users: int = 4
    seconds: float = 60.0
    calls: int | None = None
    turns: Turns = "server"
    turns_per_call: tuple[int, int] = (2, 4)
    pause_s: tuple[float, float] = (0.5, 3.0)
    away_s: tuple[float, float] = (0.5, 3.0)
    interrupted: float = 0.2
    patience_s: float = 30.0
    markers: bool = True
    seed: int = 0
    max_first_ms: float | None = None
    max_underruns: float | None = None
    max_growth_mb: float | None = None


@dataclass(slots=True)
class RemoteTally:
    """What happened.

    Attributes:
        calls: that were made.
        turns: questions that were asked, and greetings.
        answers: replies with sound.
        interruptions: replies that the user broke into while they were made.
        stopped_ms: from the first word of such a user to the end of the reply.
        lost: turns and calls that came to nothing, by reason.
        mixed_up: what one user got of another's.
        markers: greetings that were held to the first one.
        least_alike: the least that one was like it.
        memory_mb: the server's, and when, in seconds.
    """

    calls: int = 0
    turns: int = 0
    answers: list[Answer] = field(default_factory=list)
    interruptions: int = 0
    stopped_ms: list[float] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    mixed_up: list[str] = field(default_factory=list)
    markers: int = 0
    least_alike: float = 1.0
    memory_mb: list[tuple[float, float]] = field(default_factory=list)

    def lose(self, why: str) -> None:
        """Counts a turn or a call that came to nothing."""
        self.lost[why] = self.lost.get(why, 0) + 1

    @property
    def first_ms(self) -> list[float]:
        """From the last of the user's words to the first of the reply."""
        return self._firsts("asked_s", unasked=False)

    def _firsts(self, zero: str, *, unasked: bool) -> list[float]:
        return [
            (a.playback.first_s - getattr(a, zero)) * 1000
            for a in self.answers
            if a.playback.first_s is not None and a.unasked is unasked
        ]

    @property
    def growth_mb(self) -> float | None:
        """The median of the server's memory in the last quarter, less that of the second."""
        held = [megabytes for _, megabytes in self.memory_mb]
        quarter = len(held) // 4
        if not quarter:
            return None
        early = percentile(held[quarter : 2 * quarter], 50)
        late = percentile(held[-quarter:], 50)
        return None if early is None or late is None else late - early

    def figures(self) -> dict[str, Any]:
        """All of it, as figures of a report."""
        gaps = [gap for a in self.answers for gap in a.playback.underruns_s]
        return {
            "first_audio_ms": spread(self.first_ms),
            "first_audio_after_commit_ms": spread(self._firsts("committed_s", unasked=False)),
            "first_audio_of_greeting_ms": spread(self._firsts("asked_s", unasked=True)),
            "stopped_ms": spread(self.stopped_ms),
            "calls": self.calls,
            "turns": self.turns,
            "replies": len(self.answers),
            "interruptions": self.interruptions,
            "audio_s": rounded(sum(a.playback.played_s for a in self.answers), 1),
            "underruns": len(gaps),
            "replies_with_underruns": sum(bool(a.playback.underruns_s) for a in self.answers),
            "underrun_total_ms": rounded(sum(gaps) * 1000),
            "underrun_longest_ms": rounded(max(gaps, default=0.0) * 1000),
            "lost": sum(self.lost.values()),
            "lost_by_reason": self.lost,
            "mixed_up": len(self.mixed_up),
            "markers": self.markers,
            "least_alike": rounded(self.least_alike),
            "server_growth_mb": rounded(self.growth_mb, 1),
        }

    def violations(self, plan: RemotePlan) -> list[str]:
        """What should not have been."""
        found = [f"lost: {why} ({count})" for why, count in self.lost.items()]
        found += [f"mixed up: {what}" for what in self.mixed_up]
        if not self.answers:
            found.append("nobody was answered")
            return found
        slow, limit_ms = percentile(self.first_ms, 95), plan.max_first_ms
        if limit_ms is not None and slow is not None and slow > limit_ms:
            found.append(f"first audio after {slow:.0f} ms (p95), more than {limit_ms:g}")
        dry = sum(bool(a.playback.underruns_s) for a in self.answers) / len(self.answers)
        if plan.max_underruns is not None and dry > plan.max_underruns:
            found.append(f"{dry:.1%} of the replies ran dry, more than {plan.max_underruns:.1%}")
        growth_mb, most_mb = self.growth_mb, plan.max_growth_mb
        if most_mb is not None and growth_mb is not None and growth_mb > most_mb:
            found.append(f"the server grew by {growth_mb:.1f} MB, more than {most_mb:g}")
        return found


class RemoteLoad:
    """The callers of one run.

    Args:
        url: the server's WebSocket.
        plan: what they do.
        questions: what they say: speech, float32 at 24 kHz.
        key: of the server, or None.
        pid: of the server's process on this machine, whose memory is watched; or None.
    """

    def __init__(
        self,
        url: str,
        plan: RemotePlan,
        questions: list[Samples],
        *,
        key: str | None = None,
        pid: int | None = None,
    ) -> None:
        self._url, self._plan, self._questions = url, plan, questions
        self._key, self._pid = key, pid
        self._owners: dict[str, int] = {}
        self._greetings: dict[int, Samples] = {}
        self._until_s = 0.0
        self.tally = RemoteTally()

    async def run(self) -> RemoteTally:
        """All callers, to the end of their last calls."""
        dice, begin_s = random.Random(self._plan.seed), time.perf_counter()
        self._until_s = begin_s + self._plan.seconds
        watching = asyncio.create_task(self._watch(begin_s))
        try:
            each = [random.Random(dice.getrandbits(64)) for _ in range(self._plan.users)]
            async with asyncio.TaskGroup() as group:
                for user, own in enumerate(each):
                    group.create_task(self._user(user, own))
        finally:
            watching.cancel()
        return self.tally

    async def _watch(self, begin_s: float) -> None:
        while self._pid is not None and (megabytes := resident_mb(self._pid)):
            self.tally.memory_mb.append((time.perf_counter() - begin_s, megabytes))
            await asyncio.sleep(1.0)

    async def _user(self, user: int, dice: random.Random) -> None:
        plan = self._plan
        await asyncio.sleep(dice.uniform(0, plan.pause_s[1]))  # not all at once
        for number in itertools.count():
            if number == plan.calls or time.perf_counter() >= self._until_s:
                return
            self.tally.calls += 1
            caller = Caller(
                self._url, key=self._key, turns=plan.turns, claim=lambda i: self._own(i, user)
            )
            try:
                async with caller:
                    await self._call(caller, user, dice)
            except KeyRefused as error:
                self.tally.lose(f"{error}{KEY_HINT}")
                return
            except CallFailed as error:
                self.tally.lose(str(error))
            for stranger in caller.strangers:
                self.tally.mixed_up.append(f"user {user} got {stranger} of another one")
            await asyncio.sleep(dice.uniform(*plan.away_s))

    def _own(self, given_id: str, user: int) -> bool:
        return self._owners.setdefault(given_id, user) == user

    async def _call(self, caller: Caller, user: int, dice: random.Random) -> None:
        plan = self._plan
        if plan.markers:
            await self._greet(caller, user)
        for _ in range(dice.randint(*plan.turns_per_call)):
            await asyncio.sleep(dice.uniform(*plan.pause_s))
            if time.perf_counter() >= self._until_s:
                return
            answer = await self._ask(caller, dice)
            if dice.random() < plan.interrupted:
                answer = await self._break_in(caller, answer, dice)
            await self._hear_out(caller, answer)

    # -- what a user does --------------------------------------------------------------------

    async def _greet(self, caller: Caller, user: int) -> None:
        self.tally.turns += 1
        name = f"{NAMES[user % len(NAMES)]} {NAMES[user // len(NAMES) % len(NAMES)]}"
        marker = f"{name.capitalize()} is calling."
        await caller.ask(say=marker, sampling={"seed": user + 1})
        answer = await self._answered(caller, 0)
        answer.unasked = True
        await self._hear_out(caller, answer)
        if not marker.startswith(answer.text.strip()):  # a model may stop before the last word
            self.tally.mixed_up.append(f"user {user} was greeted as somebody else")
            return
        if user not in self._greetings:
            self._greetings[user] = answer.samples
            return
        self.tally.markers += 1
        likeness = alike(self._greetings[user], answer.samples)
        self.tally.least_alike = min(self.tally.least_alike, likeness)
        if likeness < ALIKE:
            self.tally.mixed_up.append(f"user {user} was greeted with another's sound")

    async def _ask(self, caller: Caller, dice: random.Random) -> Answer:
        self.tally.turns += 1
        known = len(caller.answers)
        await caller.say(dice.choice(self._questions))
        return await self._answered(caller, known)

    async def _answered(self, caller: Caller, known: int) -> Answer:
        """Waits for the first sound of a new reply that the user has not cut off himself."""

        def begun() -> Answer | None:
            new = [a for a in caller.answers[known:] if a.why != "turn_detected"]
            return new[-1] if new and (new[-1].pcm or new[-1].status) else None

        await caller.until(begun, self._plan.patience_s, "a reply")
        answer = begun()
        assert answer is not None
        self.tally.answers.append(answer)
        return answer

    async def _hear_out(self, caller: Caller, answer: Answer) -> None:
        await caller.until(lambda: answer.status, self._plan.patience_s, "the end of a reply")
        if answer.status == "failed":
            raise CallFailed(f"reply failed: {answer.why}")
        if not answer.pcm and answer.status != "cancelled":
            raise CallFailed("a reply without sound")
        await asyncio.sleep(max(answer.playback.ends_s - time.perf_counter(), 0.0))

    async def _break_in(self, caller: Caller, answer: Answer, dice: random.Random) -> Answer:
        """Listens for a moment, then speaks on; what was not heard leaves the conversation."""
        await asyncio.sleep(dice.uniform(0.2, 1.0))
        if answer.status and time.perf_counter() > answer.playback.ends_s:
            return answer  # it was shorter than that
        begin_s, heard = time.perf_counter(), caller.turns_heard
        if self._plan.turns == "client":
            await caller.truncate(answer)
            asking = asyncio.create_task(self._ask(caller, dice))
        else:
            asking = asyncio.create_task(self._ask(caller, dice))
            seen = caller.until(
                lambda: caller.turns_heard > heard, self._plan.patience_s, "the end of a barge-in"
            )
            try:
                await seen
                await caller.truncate(answer)
            except CallFailed:
                asking.cancel()
                raise
        try:
            await caller.until(lambda: answer.status, self._plan.patience_s, "a reply's end")
            if answer.status == "cancelled":
                self.tally.interruptions += 1
                self.tally.stopped_ms.append((answer.ended_s - begin_s) * 1000)
            return await asking
        finally:
            asking.cancel()


def measure_remote_load(
    url: str, plan: RemotePlan, questions: list[Samples], *, key: str | None, pid: int | None
) -> Report:
    """Runs it.

    Raises:
        ChromaError: there is nothing to say.
    """
    if not questions:
        raise ChromaError("Nothing to say: name a recording of a question.")
    tally = asyncio.run(RemoteLoad(url, plan, questions, key=key, pid=pid).run())
    held = {} if not tally.memory_mb else {"server_rss_mb": round(tally.memory_mb[-1][1], 1)}
    report = Report(
        "loadtest",
        ClientFacts.gather(url, plan.seed),
        asdict(plan),
        tally.figures(),
        held,
        tally.violations(plan),
    )
    report.panels = [
        Panel("From the last word of a question to the first sound of its reply", "reply", "ms",
              [Curve.of("", tally.first_ms)], plan.max_first_ms),
        Panel("The server's memory", "s", "MB",
              [Curve("", *zip(*tally.memory_mb, strict=True))] if tally.memory_mb else []),
    ]  # fmt: skip
    return report
