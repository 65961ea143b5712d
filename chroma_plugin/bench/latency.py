"""One conversation at a time: how soon it is answered, how fast, and where the time goes."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import asdict, dataclass

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
from chroma_plugin.config import GREEDY
from chroma_plugin.engine.engine import Engine
from chroma_plugin.errors import ChromaError

FRAME_PARTS = ("thinker", "backbone", "depth", "frame", "codec")
SETTLE_S = 0.5
"""Time for the engine to read a new conversation's instructions, before all is said at once."""


@dataclass(frozen=True, slots=True)
class LatencyPlan:
    """What is measured.

    Attributes:
        turns: replies of each kind.
        speech_s: the length of the question.
        reply_s: the length of a reply.
        plain_turns: runs of the plain loop.
    """

    turns: int = 10
    speech_s: float = 5.0
    reply_s: float = 4.0
    plain_turns: int = 3


def measure_latency(setup: Setup, plan: LatencyPlan) -> Report:
    """Runs it.

    Raises:
        ChromaError: the weights cannot be had, or nothing was answered.
    """
    begin = time.perf_counter()
    parts = setup.load()
    load_s = time.perf_counter() - begin
    question = speech(plan.speech_s)
    config = setup.engine_config(run_ahead_s=math.inf, time_parts=True)
    clock = StepClock()
    early: list[Heard] = []
    late: list[Heard] = []
    runs: list[PlainRun] = []
    frame_ms: list[float] = []
    held: dict[str, float] = {}
    figures: dict[str, object] = {"load_s": rounded(load_s)}

    async def run() -> None:
        begin = time.perf_counter()
        async with Engine(config, load=lambda _: parts) as engine:
            figures["engine_start_s"] = rounded(time.perf_counter() - begin)
            begin = time.perf_counter()
            await _ask(engine, question, plan.reply_s, early=False)
            figures["warm_up_s"] = rounded(time.perf_counter() - begin)
            clock.watch(engine)
            for _ in range(plan.turns):
                early.append(await _ask(engine, question, plan.reply_s, early=True))
                late.append(await _ask(engine, question, plan.reply_s, early=False))
            held.update(memory(parts.model.device))
            plain = PlainLoop(parts, question)
            frames = round(plan.reply_s * 1000 / FRAME_MS)
            runs.extend(await plain.runs(engine, frames, plan.plain_turns))
            frame_ms.append(await plain.frame_ms(engine, runs[-1]))

    asyncio.run(run())
    figures |= _figures(early, late, clock)
    figures |= _beside(early, late, runs, frame_ms[0])
    report = Report("latency", setup.facts(parts), asdict(plan), figures, held)
    report.panels = [
        Panel(
            "From the last byte of user audio to the first of the reply", "turn", "ms",
            [Curve.of("spoken in real time", firsts(early, "first_s")),
             Curve.of("pushed at once at its end", firsts(late, "first_s"))],
        ),
        Panel("Steps", "step", "ms", [Curve.of("", clock.steps_ms)], FRAME_MS),
    ]  # fmt: skip
    return report


async def _ask(engine: Engine, question: Samples, reply_s: float, *, early: bool) -> Heard:
    """One question of a new conversation, spoken in real time or pushed at once at its end."""
    async with open_to(engine, sampling=GREEDY, max_reply_s=reply_s) as session:
        if early:
            heard = Heard(await speak(session, question))
        else:
            await asyncio.sleep(min(SETTLE_S, len(question) / INPUT_RATE_HZ))
            heard = Heard(time.perf_counter())
            session.push_audio(question)
        await hear(session.commit_turn(), heard)
    if heard.done is None or not heard.done.frames:
        raise ChromaError("A reply held no audio; there is nothing to measure. Try another --seed.")
    return heard


def _figures(early: list[Heard], late: list[Heard], clock: StepClock) -> dict[str, object]:
    figures: dict[str, object] = {}
    for name, turns in (("", early), ("at_once_", late)):
        figures[f"{name}first_byte_ms"] = spread(firsts(turns, "first_s"))
        figures[f"{name}first_playable_ms"] = spread(firsts(turns, "playable_s"))
        figures[f"{name}first_audible_ms"] = spread(firsts(turns, "audible_s"))
        figures[f"{name}queued_ms"] = spread(_part(turns, "queued"))
        figures[f"{name}prefill_ms"] = spread(_part(turns, "prefill"))
    figures["rtf"] = spread(_rtfs(early))
    parts = [part for part in FRAME_PARTS if any(_part(early, part))]
    for part in parts:
        figures[f"turn_{part}_ms"] = spread(_part(early, part))
    for part in parts:
        figures[f"frame_{part}_ms"] = rounded(_frame_ms(early, (part,)))
    figures["step_ms"] = spread(clock.steps_ms)
    figures["gap_ms"] = spread(clock.gaps_ms)
    for part in ("queued", "prefill"):  # queued: the audio tower's last blocks are in it too
        figures[f"{part}_ratio_at_once_to_early"] = ratio(
            percentile(_part(late, part), 50), percentile(_part(early, part), 50)
        )
    figures["first_byte_ratio_at_once_to_early"] = ratio(
        percentile(firsts(late, "first_s"), 50), percentile(firsts(early, "first_s"), 50)
    )
    return figures


def _beside(
    early: list[Heard], late: list[Heard], runs: list[PlainRun], plain_frame_ms: float
) -> dict[str, object]:
    """The plain loop's figures, and how much longer it takes.

    The replies to questions pushed at once are those that do the same work after the clock starts.
    """
    plain_rtf = percentile([run.rtf for run in runs], 50)
    engine_ms = _frame_ms(early + late, FRAME_PARTS)
    return {
        "plain_rtf": spread([run.rtf for run in runs]),
        "plain_frames": runs[-1].frames,
        "plain_whole_reply_ms": spread([run.total_s * 1000 for run in runs]),
        "plain_frame_ms": rounded(plain_frame_ms),
        "engine_frame_ms": rounded(engine_ms),
        "frame_ratio_plain_to_engine": ratio(plain_frame_ms, engine_ms),
        "rtf_ratio_plain_to_engine": ratio(plain_rtf, percentile(_rtfs(early), 50)),
        "at_once_rtf_ratio_plain_to_engine": ratio(plain_rtf, percentile(_rtfs(late), 50)),
    }


def _part(turns: list[Heard], part: str) -> list[float]:
    return [getattr(turn.done.timings, f"{part}_ms") for turn in turns if turn.done]


def _rtfs(turns: list[Heard]) -> list[float]:
    return [turn.rtf for turn in turns if turn.rtf is not None]


def _frame_ms(turns: list[Heard], parts: tuple[str, ...]) -> float:
    frames = sum(turn.done.frames for turn in turns if turn.done)
    return sum(sum(_part(turns, part)) for part in parts) / frames
