"""How many conversations an engine holds, and what it gains by making their frames together."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chroma_plugin.audio import FRAME_MS, Samples
from chroma_plugin.bench.hearing import Heard, StepClock, hear, open_to, speech
from chroma_plugin.bench.latency import FRAME_PARTS
from chroma_plugin.bench.load import LoadPlan, Tally, largest, run_load
from chroma_plugin.bench.plain import PlainLoop, PlainRun
from chroma_plugin.bench.report import Curve, Panel, Report, memory, ratio, rounded, spread
from chroma_plugin.bench.sizes import Setup
from chroma_plugin.config import GREEDY
from chroma_plugin.engine.engine import Engine
from chroma_plugin.engine.parts import Parts


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What is tried.

    Attributes:
        most: more conversations than this are not tried; 0 leaves this half out.
        seconds: how long each number is held.
        together: numbers of conversations that are answered as fast as it goes.
        speech_s: the length of the question in the latter.
        reply_s: the length of a reply.
    """

    most: int = 64
    seconds: float = 20.0
    together: Sequence[int] = (1, 2, 4, 8)
    speech_s: float = 5.0
    reply_s: float = 10.0


def measure_sweep(setup: Setup, plan: SweepPlan) -> Report:
    """Runs it.

    Raises:
        ChromaError: the weights cannot be had, or the engine died.
    """
    parts = setup.load(max(plan.together, default=1))
    figures: dict[str, Any] = {}
    panels = []
    if plan.together:
        rows = asyncio.run(measure_together(setup, parts, plan))
        figures["together"] = rows
        panels.append(_together_panel(rows))
    if plan.most:
        tried = asyncio.run(_sweep(setup, parts, plan))
        held = [n for n, tally in tried.items() if tally.holds()]
        figures["largest"] = max(held, default=0)
        figures["largest_is_a_lower_bound"] = figures["largest"] == plan.most
        figures["tried"] = [_row(n, tried[n]) for n in sorted(tried)]
        panels.append(_sweep_panel(tried))
    report = Report("sweep", setup.facts(parts), asdict(plan), figures, memory(parts.model.device))
    report.panels = panels
    return report


# -- how many are held -----------------------------------------------------------------------


async def _sweep(setup: Setup, parts: Parts, plan: SweepPlan) -> dict[int, Tally]:
    tried: dict[int, Tally] = {}

    async def holds(conversations: int) -> bool:
        load = LoadPlan(conversations, plan.seconds, reply_s=plan.reply_s)
        tried[conversations] = await run_load(setup, parts, load)
        return tried[conversations].holds()

    await largest(holds, plan.most)
    return tried


def _row(conversations: int, tally: Tally) -> dict[str, Any]:
    figures = tally.figures()
    kept = ("first_byte_ms", "step_ms", "underruns", "underrun_longest_ms", "errors")
    return {
        "conversations": conversations,
        "holds": tally.holds(),
        **{name: figures[name] for name in kept},
    }


def _sweep_panel(tried: dict[int, Tally]) -> Panel:
    numbers = sorted(tried)
    p99s = [tried[n].figures()["step_ms"]["p99"] or 0.0 for n in numbers]
    return Panel("Steps, p99", "conversations", "ms", [Curve("", numbers, p99s)], FRAME_MS)


# -- what batching gains ---------------------------------------------------------------------


async def measure_together(setup: Setup, parts: Parts, plan: SweepPlan) -> list[dict[str, Any]]:
    """Audio per second of several conversations in one batch, against the plain loop one after
    another.

    The plain loop runs before each of them and after the last, so that a machine that slows down
    on the way slows both. `ratio` has everything in it, prefills too: questions are pushed at once.
    `frames_only_ratio` is what the frames alone gain: the plain loop's time for a further frame by
    the time of all steps, for each frame made in them.
    """
    question = speech(plan.speech_s)
    frames = round(plan.reply_s * 1000 / FRAME_MS)
    plain = PlainLoop(parts, question)
    runs: list[PlainRun] = []
    made: list[_Together] = []
    config = setup.engine_config(max(plan.together), run_ahead_s=math.inf)
    async with Engine(config, load=lambda _: parts) as engine:
        for number in plan.together:
            runs += await plain.runs(engine, frames)
            made.append(await _together(engine, question, number, plan.reply_s))
        runs += await plain.runs(engine, frames)
        plain_frame_ms = await plain.frame_ms(engine, runs[-1])
    plain_rate = sum(run.audio_s for run in runs) / sum(run.total_s for run in runs)
    return [
        {
            "conversations": engine.conversations,
            "audio_s_per_s": rounded(engine.audio_s / engine.work_s),
            "plain_audio_s_per_s": rounded(plain_rate),
            "ratio": ratio(engine.audio_s / engine.work_s, plain_rate),
            "frame_ms": rounded(engine.frame_ms),
            "plain_frame_ms": rounded(plain_frame_ms),
            "frames_only_ratio": ratio(plain_frame_ms, engine.frame_ms),
            "step_parts_ms": engine.step_parts_ms,
            "plain_rtf": spread([run.rtf for run in runs]),
        }
        for engine in made
    ]


@dataclass(frozen=True, slots=True)
class _Together:
    """What an engine made as fast as it goes.

    Attributes:
        conversations: how many at once.
        audio_s: seconds of audio.
        work_s: seconds that it took.
        frame_ms: all steps, by the frames made in them.
        step_parts_ms: where the time of a step went.
    """

    conversations: int
    audio_s: float
    work_s: float
    frame_ms: float
    step_parts_ms: dict[str, float]


async def _together(engine: Engine, question: Samples, number: int, reply_s: float) -> _Together:
    clock = StepClock()
    await _all_answered(engine, question, number, 4 * FRAME_MS / 1000)  # warm-up
    clock.watch(engine)
    begin = time.perf_counter()
    heard = await _all_answered(engine, question, number, reply_s)
    work_s = time.perf_counter() - begin
    done = [h.done for h in heard if h.done is not None]
    frames = max(sum(d.frames for d in done), 1)
    return _Together(
        conversations=number,
        audio_s=sum(h.playback.played_s for h in heard),
        work_s=work_s,
        frame_ms=sum(clock.steps_ms) / frames,
        step_parts_ms={
            part: round(ms, 3)
            for part in FRAME_PARTS
            if (ms := sum(getattr(d.timings, f"{part}_ms") for d in done) / frames)
        },
    )


async def _all_answered(
    engine: Engine, question: Samples, number: int, reply_s: float
) -> list[Heard]:
    """So many conversations, all asked at once, to the end of the last reply."""

    async def one() -> Heard:
        async with open_to(engine, sampling=GREEDY, max_reply_s=reply_s) as session:
            session.push_audio(question)
            return await hear(session.commit_turn(), Heard(time.perf_counter()))

    return list(await asyncio.gather(*(one() for _ in range(number))))


def _together_panel(rows: list[dict[str, Any]]) -> Panel:
    numbers = [row["conversations"] for row in rows]
    return Panel(
        "Audio per second of work", "conversations together", "s",
        [Curve("engine", numbers, [row["audio_s_per_s"] for row in rows]),
         Curve("plain loop, one after another", numbers,
               [row["plain_audio_s_per_s"] for row in rows])],
    )  # fmt: skip
