"""What listeners preferred: their result files, read with the key of their page.

A listener who fails the anchors, or contradicts themselves in the repeats, is set aside whole. Of
the others the votes on pairs count, each once: repeats and anchors do not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chroma_plugin.errors import ConfigError
from chroma_plugin.evaluation import article
from chroma_plugin.evaluation.intervals import grouped_bootstrap, sign_test, wilson
from chroma_plugin.evaluation.outcome import Bars, Cell, Grid, Outcome, rounded

MARKS = range(-3, 4)


@dataclass(frozen=True, slots=True)
class Key:
    """What a page's trials and clips are.

    Attributes:
        test: the page's id.
        question: naturalness or similarity.
        systems: the two that are compared.
        trials: kind, name and group of each; `right`, the clip to be preferred, of an anchor.
        clips: whose each is.
    """

    test: str
    question: str
    systems: tuple[str, str]
    trials: dict[str, dict[str, str]]
    clips: dict[str, str]


@dataclass(frozen=True, slots=True)
class Attention:
    """How attentive a listener must be.

    Attributes:
        anchors: share of the anchors to be answered rightly.
        repeats: share of the repeats that must not contradict the first answer.
    """

    anchors: float = 0.75
    repeats: float = 0.5


@dataclass(slots=True)
class Listener:
    """One listener.

    Attributes:
        name: as they gave it.
        marks: of each pair, from -3, the first system much better, to 3, the second.
        anchors: whether each anchor was answered rightly.
        repeats: whether each repeat agrees with the first answer: no preference the other way.
    """

    name: str
    marks: dict[str, int]
    anchors: list[bool]
    repeats: list[bool]

    def inattentive(self, bars: Attention) -> str | None:
        """Why this listener does not count; None if they do."""
        for kind, answers, needed in (
            ("anchors", self.anchors, bars.anchors),
            ("repeats", self.repeats, bars.repeats),
        ):
            if answers and sum(answers) / len(answers) < needed:
                passed = f"{sum(answers)} of {len(answers)} {kind}"
                return f"{self.name}: {passed} answered well, {needed:.0%} are needed"
        return None


def read_key(path: Path) -> Key:
    """Reads the key that `cmos page` wrote.

    Raises:
        ConfigError: it cannot be read, or is no key.
    """
    row = _json(path)
    try:
        first, second = (str(name) for name in row["systems"])
        return Key(
            str(row["test"]), str(row["question"]), (first, second), row["trials"], row["clips"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: is no key of a listening test ({error!r}).") from error


def read_listener(path: Path, key: Key) -> Listener:
    """Reads a listener's result file.

    Raises:
        ConfigError: it cannot be read, is of another page, or an answer of it is none.
    """
    row = _json(path)
    try:
        if row["test"] != key.test:
            raise ConfigError(f"{path}: belongs to another page than the key.")
        listener = Listener(str(row["listener"]), {}, [], [])
        groups: dict[str, int] = {}
        again: list[tuple[str, int]] = []
        for answer in row["answers"]:
            trial = key.trials[answer["trial"]]
            score, sides = int(answer["score"]), (answer["a"], answer["b"])
            if score not in MARKS:
                raise ValueError(f"a mark of {score}")
            if trial["kind"] == "anchor":
                listener.anchors.append(score < 0 if sides[0] == trial["right"] else score > 0)
                continue
            owners = tuple(key.clips[clip] for clip in sides)
            if set(owners) != set(key.systems):
                raise ValueError(f"a pair of {owners[0]} and {owners[1]}")
            mark = score if owners == key.systems else -score
            if trial["kind"] == "repeat":
                again.append((trial["group"], mark))
            else:
                groups[trial["group"]] = listener.marks[trial["name"]] = mark
        listener.repeats.extend(groups[g] * mark >= 0 for g, mark in again if g in groups)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: is no result of this page ({error!r}).") from error
    return listener


def analyse(
    key: Key, listeners: Sequence[Listener], bars: Attention | None = None, seed: int = 0
) -> Outcome:
    """Preferences with deuce, their intervals, and the mean of the marks.

    The shares have Wilson's intervals, as if votes were independent; that of the mean draws whole
    listeners. The p-value is a sign test's, deuces left out.

    Args:
        key: of the page.
        listeners: of `read_listener`.
        bars: who counts.
        seed: of the draws.

    Raises:
        ConfigError: nobody is left, or one listener came twice.
    """
    bars = bars or Attention()
    names = [listener.name for listener in listeners]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"Results of {', '.join(twice)} come twice; give each file once.")
    aside = [why for listener in listeners if (why := listener.inattentive(bars))]
    kept = [one for one in listeners if not one.inattentive(bars) and one.marks]
    if not kept:
        raise ConfigError(f"No listener is left to count. {aside[0] if aside else ''}".strip())
    marks = np.array([mark for one in kept for mark in one.marks.values()])
    votes = len(marks)
    counts = [int((marks < 0).sum()), int((marks > 0).sum()), int((marks == 0).sum())]
    # a higher CMOS is better for the first system
    mean = -float(marks.mean())
    spread = grouped_bootstrap(
        {one.name: [-float(mark) for mark in one.marks.values()] for one in kept}, seed=seed
    )
    chance = sign_test(counts[0], counts[1])
    titles = [*key.systems, "deuce"]
    shares = [count / votes for count in counts]
    intervals = [wilson(count, votes) for count in counts]
    figures: dict[str, Any] = {
        "question": key.question,
        "systems": list(key.systems),
        "percent": {
            title: rounded(100 * share, 2) for title, share in zip(titles, shares, strict=True)
        },
        "percent_95": {
            title: [round(100 * value, 2) for value in interval]
            for title, interval in zip(titles, intervals, strict=True)
        },
        "cmos": rounded(mean),
        "cmos_95": None if spread is None else [round(value, 4) for value in spread],
        "p": float(f"{chance:.3g}"),
        "votes": votes,
        "listeners": len(kept),
        "set_aside": len(aside),
        "anchors": _share([right for one in listeners for right in one.anchors]),
        "repeats": _share([same for one in listeners for same in one.repeats]),
    }
    outcome = Outcome(
        "cmos",
        {"test": key.test, "anchors": bars.anchors, "repeats": bars.repeats},
        figures,
        set_aside=aside,
    )
    outcome.grids = [
        Grid(
            f"{key.question.capitalize()}: {votes} votes of {len(kept)} listeners",
            ("preferred", "percent", "95%", "votes"),
            [
                (title, 100 * share, f"{100 * low:.1f} to {100 * high:.1f}", count)
                for title, share, (low, high), count in zip(
                    titles, shares, intervals, counts, strict=True
                )
            ],
        ),
        Grid(
            f"Comparative mark of {key.systems[0]}, -3 to 3",
            ("CMOS", "95%", "p (sign test)"),
            [
                (
                    f"{mean:+.2f}",
                    None if spread is None else f"{spread[0]:+.2f} to {spread[1]:+.2f}",
                    f"{chance:.2g}",
                )
            ],
        ),
        _beside(),
    ]
    outcome.bars = [
        Bars(
            f"{key.question.capitalize()}: preferred by {len(kept)} listeners",
            "percent of votes",
            titles,
            [100 * share for share in shares],
            [(100 * low, 100 * high) for low, high in intervals],
        )
    ]
    return outcome


def _beside() -> Grid:
    rows: list[list[Cell]] = [
        [question, *percents] for question, percents in article.PREFERENCES.items()
    ]
    theirs, recordings = article.ELEVENLABS_TO_RECORDINGS
    rows.append([f"naturalness, against recordings ({recordings}%)", None, theirs, None])
    return Grid(
        "The article: percent of votes", ("question", "Chroma", "ElevenLabs", "deuce"), rows
    )


def _share(answers: Sequence[bool]) -> float | None:
    return rounded(sum(answers) / len(answers)) if answers else None


def _json(path: Path) -> dict[str, Any]:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{path}: is no result of a listening test.")
    return row
