"""Conversations asked, judged and held to bars: right, understood, ended, pitch, voice, and whether
a later turn is as good as the first.

The short conversations, each as it was recorded, are held to the bars; those of ten turns beside
them serve to compare turns. What has failed counts as a reply that is nothing of what it should be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from chroma_plugin.config import SamplingParams
from chroma_plugin.evaluation.conversation import (
    LONG_TURNS,
    Ask,
    Reply,
    Talk,
    written_setting,
)
from chroma_plugin.evaluation.intervals import fewer, wilson
from chroma_plugin.evaluation.outcome import Bars, Cell, Grid, Outcome, rounded
from chroma_plugin.evaluation.standards import Judge, Judged, recordings

FIGURES = ("right", "understood", "ended", "pitch", "voice")
"""Shares of replies that are held to a bar; what each is, `standards.Judged` says."""
BARS = {"right": 0.95, "understood": 0.80, "ended": 0.99, "pitch": 0.80, "voice": 0.70}
RTF_BAR = 0.5
"""Seconds of making for a second of speech on one core; told, and no condition."""
TURNS = (1, 2, LONG_TURNS)
TURN_FIGURES = ("right", "understood", "ended")
CHANCE = 0.05
"""A later turn is worse if chance gives so few only this often, or more seldom."""


@dataclass(frozen=True, slots=True)
class Job:
    """Conversations to be held in one way, with one setting.

    Attributes:
        name: of the way.
        ask: the way.
        talks: what to ask.
        sampling: how codes are drawn.
    """

    name: str
    ask: Ask
    talks: Sequence[Talk]
    sampling: SamplingParams = field(default_factory=SamplingParams)


Hold = Callable[[Sequence[Job]], list[list[list[Reply]]]]
"""Holds the conversations of some jobs: for each job its talks' replies."""


def plan(
    ways: Mapping[str, Ask],
    talks: Sequence[Talk],
    long: Sequence[Talk],
    settings: Sequence[SamplingParams],
) -> list[Job]:
    """What is to be held: everything in every way with the first setting, and the short talks
    again in the first way with each other setting.
    """
    jobs = [Job(name, ask, [*talks, *long], settings[0]) for name, ask in ways.items()]
    name, ask = next(iter(ways.items()))
    return jobs + [Job(name, ask, talks, setting) for setting in settings[1:]]


def evaluate(
    jobs: Sequence[Job],
    held: Sequence[Sequence[Sequence[Reply]]],
    judge: Judge,
    bars: Mapping[str, float] = BARS,
    codec: Any = None,
) -> Outcome:
    """Judges what was replied.

    Args:
        jobs: of `plan`.
        held: the replies to them.
        judge: of single replies.
        bars: the least share of each of `FIGURES`.
        codec: sends a recording through the codec; without it only plain recordings are judged
            beside the replies.

    Returns:
        The outcome; `figures["met"]` says whether every bar is met in every way.
    """
    judged = [judge.judge(job.talks, rows) for job, rows in zip(jobs, held, strict=True)]
    ways: dict[str, list[Judged]] = {}
    for job, rows in zip(jobs, judged, strict=True):
        ways.setdefault(job.name, rows)  # its first job, which is of the setting held to bars
    short = [talk for talk in jobs[0].talks if not talk.long]
    beside = {"recordings": judge.judge(short, recordings(short))}
    if codec is not None:
        beside["through the codec"] = judge.judge(short, recordings(short, codec))
    outcome = Outcome("conversation", {}, {})
    figures: dict[str, Any] = {name: _way(rows, bars) for name, rows in ways.items()}
    outcome.figures = {
        "met": all(bar["met"] is not False for way in figures.values() for bar in way["bars"]),
        "ways": figures,
        "beside": {name: _shares(rows) for name, rows in beside.items()},
        "sampling": _settings(jobs, judged),
        "replies": [
            {"way": name} | {k: _plain(v) for k, v in asdict(one).items()}
            for name, rows in ways.items()
            for one in rows
        ],
    }
    outcome.set_aside = [
        f"{name}, conversation {one.talk + 1}, turn {one.turn}: {one.error}"
        for name, rows in ways.items()
        for one in rows
        if one.error
    ]
    outcome.grids = _grids(outcome.figures, bars)
    outcome.bars = [
        Bars(
            f"By {name}, {way['replies']} replies; dashed: the bar",
            "share",
            list(FIGURES),
            [way[figure] for figure in FIGURES],
            [tuple(way["intervals"][figure]) for figure in FIGURES],
            [bars.get(figure) for figure in FIGURES],
        )
        for name, way in figures.items()
    ]
    outcome.notes = [
        "right: the text is the right answer. understood: the ear writes down that text. answered: "
        "it writes down the right answer. pitch: within 10% of the prompt's. voice: nearest of 12.",
        "Recordings are judged as replies are: more than they reach cannot be reached.",
        "RTF is wall time, on as many cores as the engine was given; it is no condition.",
    ]
    if any(figures[name]["voice"] is None for name in figures):
        outcome.notes.append("There are fewer than 12 voices to choose from: no bar for the voice.")
    return outcome


# -- figures ---------------------------------------------------------------------------------


def _way(rows: Sequence[Judged], bars: Mapping[str, float]) -> dict[str, Any]:
    found = _shares(rows)
    turns = {
        str(turn): {"of": len(of)} | {name: _share(of, name)[0] for name in TURN_FIGURES}
        for turn in TURNS
        for of in [[one for one in rows if one.turn == turn]]
    }
    held = [_held(name, found[name], least) for name, least in bars.items()]
    held += [_no_worse(rows, turn) for turn in TURNS[1:]]
    return {**found, "turns": turns, "bars": held}


def _held(name: str, share: float | None, least: float) -> dict[str, Any]:
    met = None if share is None else share >= least
    return {"name": name, "bar": least, "share": share, "met": met}


def _no_worse(rows: Sequence[Judged], turn: int) -> dict[str, Any]:
    """A turn beside the first: how often chance alone makes it so much worse, by figure."""
    chances: dict[str, float | None] = {}
    for name in TURN_FIGURES:
        (_, count, of), (_, first, first_of) = (
            _share([one for one in rows if one.turn == n], name) for n in (turn, 1)
        )
        chances[name] = rounded(fewer(count, of, first, first_of)) if of and first_of else None
    known = [chance for chance in chances.values() if chance is not None]
    met = min(known) > CHANCE if known else None
    return {"name": f"turn {turn} no worse than turn 1", "chances": chances, "met": met}


def _shares(rows: Sequence[Judged]) -> dict[str, Any]:
    """Shares of the replies of short conversations, with 95% intervals."""
    short = [one for one in rows if not one.long]
    found = {name: _share(short, name) for name in (*FIGURES, "answered")}
    seconds = sum(one.seconds for one in short)
    made_s = sum(one.made_s for one in short)
    return {
        "replies": len(short),
        "failed": sum(bool(one.error) for one in short),
        **{name: rounded(share) for name, (share, _, _) in found.items()},
        "intervals": {
            name: [round(value, 4) for value in wilson(count, of)]
            for name, (_, count, of) in found.items()
        },
        "seconds": round(seconds, 2),
        "rtf": rounded(made_s / seconds) if seconds and made_s else None,
    }


def _share(rows: Sequence[Judged], name: str) -> tuple[float | None, int, int]:
    """Share, count and of how many; those that were not judged are left out."""
    known = [getattr(one, name) for one in rows if getattr(one, name) is not None]
    return sum(known) / len(known) if known else None, sum(known), len(known)


def _settings(jobs: Sequence[Job], judged: Sequence[Sequence[Judged]]) -> dict[str, Any]:
    """The settings that were compared, and the one by which replies are best understood."""
    compared = []
    for job, rows in zip(jobs, judged, strict=True):
        if job.name != jobs[0].name:
            continue
        found = _shares(rows)
        setting = {"temperature": job.sampling.temperature, "top_k": job.sampling.top_k}
        setting |= {name: found[name] for name in (*FIGURES, "answered", "rtf")}
        compared.append({"setting": written_setting(job.sampling)} | setting)
    best = max(compared, key=lambda row: [row[n] or 0.0 for n in ("understood", "ended", "voice")])
    return {"compared": compared, "best": best["setting"]}


def _plain(value: object) -> object:
    return round(value, 4) if isinstance(value, float) else value


# -- tables ----------------------------------------------------------------------------------


def _grids(figures: Mapping[str, Any], bars: Mapping[str, float]) -> list[Grid]:
    ways, beside = figures["ways"], figures["beside"]
    rows: list[list[Cell]] = []
    for name in FIGURES:
        row: list[Cell] = [name, _percent(bars.get(name))]
        for way in ways.values():
            met = next((bar["met"] for bar in way["bars"] if bar["name"] == name), None)
            row.append(_percent(way[name], {True: "", False: " MISSED", None: ""}[met]))
        rows.append(row + [_percent(other[name]) for other in beside.values()])
    answered = [_percent(row["answered"]) for row in (*ways.values(), *beside.values())]
    rows.append(["answered", None, *answered])
    speeds = [way["rtf"] for way in ways.values()]
    rows.append(["RTF", f"< {RTF_BAR:g}", *speeds, *[None] * len(beside)])
    count = next(iter(ways.values()))["replies"]
    grids = [Grid(f"{count} replies", ("", "bar", *ways, *beside), rows)]
    grids.append(
        Grid(
            "By turn; a later one is worse if chance gives so few in at most 5%",
            ("", "replies", *TURN_FIGURES, "no worse"),
            [
                [
                    f"{name}, turn {turn}",
                    way["turns"][str(turn)]["of"],
                    *(_percent(way["turns"][str(turn)][figure]) for figure in TURN_FIGURES),
                    _met(way, turn),
                ]
                for name, way in ways.items()
                for turn in TURNS
            ],
        )
    )
    compared = figures["sampling"]["compared"]
    if len(compared) > 1:
        names = (*FIGURES, "answered")
        title = f"Sampling, temperature:top_k; best understood by {figures['sampling']['best']}"
        cells = [[row["setting"], *(_percent(row[name]) for name in names)] for row in compared]
        grids.append(Grid(title, ("", *names), cells))
    return grids


def _met(way: Mapping[str, Any], turn: int) -> str | None:
    name = f"turn {turn} no worse than turn 1"
    met = next((bar["met"] for bar in way["bars"] if bar["name"] == name), None)
    return None if met is None else "yes" if met else "NO"


def _percent(share: float | None, after: str = "") -> str | None:
    return None if share is None else f"{100 * share:.1f}%{after}"
