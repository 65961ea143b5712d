"""The small world that chroma-tiny lives in: what it can be asked, and what it answers.

Capitals, sums, days, months, clocks, colours, spelling, counting, repeating and small talk. An
answer has 2 to 9 words; each is asked in several phrasings, and some are never asked in training.

A conversation about it has a *topic* after every exchange: what "And plus two?" or "And of Italy?"
goes on from. `""` is the topic of an exchange that nothing goes on from.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal
from zlib import crc32

import numpy as np

from chroma_plugin.training import phrasings as say
from chroma_plugin.training.small_talk import NOT_KNOWN, SMALL_TALK, UNKNOWN

Split = Literal["train", "heldout"]

HELD_OUT_SHARE = 1 / 12
"""Of an answer's phrasings: as many are left out of training, if it has four or more."""
FOLLOW_UP, AGAIN = 0.45, 0.08
"""How often a later turn goes on from the one before, or asks to hear it again."""
ORNAMENTED = 0.25
"""How often a question gets a "So," or a "please" around it."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer, as text."""

    question: str
    answer: str


Dialogue = tuple[Exchange, ...]


@dataclass(frozen=True, slots=True)
class _Asking:
    """One phrasing: asked when the topic is `before`, it gets `answer` and leaves `after`."""

    family: str
    before: str
    question: str
    answer: str
    after: str

    @property
    def key(self) -> tuple[str, str]:
        return self.before, plain(self.question)


# -- what can be asked ---------------------------------------------------------------------------


def _named(
    family: str, first: tuple[str, ...], answers: dict[str, str], named: tuple[str, ...] = say.AND
) -> Iterator[_Asking]:
    """A question about each of some things, and "And ...?" about another one."""
    for thing, answer in answers.items():
        for phrase in first:
            yield _Asking(family, "", phrase.format(thing), answer, family)
        for phrase in named:
            yield _Asking(family, family, phrase.format(thing), answer, family)


def _sums() -> Iterator[_Asking]:
    number = say.NUMBERS
    for sign, a, b in [("plus", a, b) for a in range(1, 7) for b in range(1, 7)] + [
        ("minus", a, b) for a in range(3, 11) for b in range(1, 4) if a > b
    ]:
        total = a + b if sign == "plus" else a - b
        made = f"{number[a]} {sign} {number[b]}"
        answer = f"{made.capitalize()} is {number[total]}."
        for phrase in say.SUM:
            yield _Asking("sum", "", phrase.format(made), answer, f"sum {total}")
    for total in range(1, 13):
        for step in (-3, -2, -1, 1, 2, 3):
            if 1 <= total + step <= 12:
                made = f"{'plus' if step > 0 else 'minus'} {number[abs(step)]}"
                for phrase in say.SUM_ON:
                    yield _Asking(
                        "sum",
                        f"sum {total}",
                        phrase.format(made),
                        f"That makes {number[total + step]}.",
                        f"sum {total + step}",
                    )


def _calendar(family: str, names: tuple[str, ...]) -> Iterator[_Asking]:
    """What comes after a day or a month, and before it; and on from there."""
    for word, on, step in (("after", say.AFTER_THAT, 1), ("before", say.BEFORE_THAT, -1)):
        for place, name in enumerate(names):
            other = names[(place + step) % len(names)]
            answer, after = f"{word.capitalize()} {name} comes {other}.", f"{family} {other}"
            for phrase in say.CALENDAR:
                yield _Asking(family, "", phrase.format(family, word, name), answer, after)
            for phrase in on:
                yield _Asking(family, f"{family} {name}", phrase, answer, after)


def _clock() -> Iterator[_Asking]:
    for hour in range(1, 13):
        later = say.NUMBERS[hour % 12 + 1]
        answer = f"Then it is {later} o'clock."
        for phrase in say.CLOCK:
            yield _Asking("clock", "", phrase.format(say.NUMBERS[hour]), answer, f"clock {later}")
        for phrase in say.CLOCK_ON:
            before = f"clock {say.NUMBERS[hour]}"
            yield _Asking("clock", before, phrase, answer, f"clock {later}")


def _counting() -> Iterator[_Asking]:
    for last in range(3, 8):
        up = say.NUMBERS[1 : last + 1]
        for words, phrases, turned in (
            (up, say.COUNT, say.BACKWARDS),
            (up[::-1], say.COUNT_DOWN, say.FORWARDS),
        ):
            answer = " ".join(words).capitalize() + "."
            topic = f"count {answer}"
            for phrase in phrases:
                yield _Asking("count", "", phrase.format(say.NUMBERS[last]), answer, topic)
            other = " ".join(words[::-1]).capitalize() + "."
            for phrase in turned:
                yield _Asking("count", topic, phrase, other, f"count {other}")


def _everything() -> Iterator[_Asking]:
    capitals = say.CAPITALS.items()
    yield from _named(
        "capital", say.CAPITAL, {x: f"The capital of {x} is {y}." for x, y in capitals}, say.AND_OF
    )
    yield from _named("where", say.WHERE, {y: f"{y} is in {x}." for x, y in capitals})
    yield from _sums()
    yield from _calendar("day", say.DAYS)
    yield from _calendar("month", say.MONTHS)
    yield from _clock()
    yield from _named("meal", say.MEAL, {x: f"{x.capitalize()} is {y}." for x, y in say.MEALS})
    colours = {x: f"{x.capitalize()} is {y}." for x, y in say.COLOURS.items()}
    yield from _named("colour", say.COLOUR, colours)
    spelt = {x: f"{x.capitalize()} is spelled {' '.join(x.upper())}." for x in say.SPELT}
    yield from _named("spelling", say.SPELLING, spelt)
    opposites = {**say.OPPOSITES, **{y: x for x, y in say.OPPOSITES.items()}}
    yield from _named(
        "opposite",
        say.OPPOSITE,
        {x: f"The opposite of {x} is {y}." for x, y in opposites.items()},
        say.AND_OF,
    )
    yield from _counting()
    for thing in say.REPEATED:
        for phrase in say.REPEAT:
            yield _Asking("repeat", "", phrase.format(thing), f"{_begun(thing)}.", "")
    for answer, questions in SMALL_TALK.items():
        for question in questions:
            yield _Asking("talk", "", question, answer, "")
    for question in UNKNOWN:
        yield _Asking("unknown", "", question, NOT_KNOWN, "")


def _begun(text: str) -> str:
    return text[0].upper() + text[1:]


# -- what is held out ----------------------------------------------------------------------------

_ORNAMENTS = re.compile(r"^(?:okay|so|now|chroma), |, please(?=[.?]$)")


def plain(question: str) -> str:
    """The question as it is compared: lower case, without ornaments."""
    return _ORNAMENTS.sub("", question.lower())


@cache
def _askings() -> dict[Split, dict[str, dict[str, tuple[_Asking, ...]]]]:
    """Split, topic before (`""`: none) and answer, to the phrasings for it."""
    by_answer = defaultdict(list)
    for asking in _everything():
        by_answer[asking.answer].append(asking)
    found: dict[Split, dict[str, dict[str, list[_Asking]]]] = {"train": {}, "heldout": {}}
    for answer, asked in by_answer.items():
        # by a hash of the text: adding a question elsewhere in the world moves none of these
        asked.sort(key=lambda a: (crc32(repr(a.key).encode()), a.key))
        count = max(1, round(len(asked) * HELD_OUT_SHARE)) if len(asked) >= 4 else 0
        for place, asking in enumerate(asked):
            split: Split = "heldout" if place < count else "train"
            found[split].setdefault(asking.before, {}).setdefault(answer, []).append(asking)
    return {
        split: {
            topic: {answer: tuple(row) for answer, row in topics.items()}
            for topic, topics in of.items()
        }
        for split, of in found.items()
    }


def _held_out() -> frozenset[tuple[str, str]]:
    rows = (row for topics in _askings()["heldout"].values() for row in topics.values())
    again = (("*", plain(question)) for question in say.AGAIN_HELD_OUT)
    return frozenset([*(asking.key for row in rows for asking in row), *again])


HELD_OUT: frozenset[tuple[str, str]] = _held_out()
"""(topic before, plain question) that training never sees; `"*"` is any topic. Their answers are
seen under other phrasings."""


@cache
def _answers() -> tuple[str, ...]:
    topics = [of for split in _askings().values() for of in split.values()]
    return tuple(sorted({answer for of in topics for answer in of}))


def answers() -> list[str]:
    """Every answer of this world, sorted; over 200."""
    return list(_answers())


@cache
def fingerprint() -> str:
    """A hash of every text of this world and of how often what is drawn: equal for equal worlds."""
    words = {name: getattr(say, name) for name in dir(say) if name.isupper()}
    drawn = (HELD_OUT_SHARE, FOLLOW_UP, AGAIN, ORNAMENTED)
    whole = repr((words, drawn, list(_everything())))
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


# -- conversations -------------------------------------------------------------------------------


def dialogue(rng: np.random.Generator, split: Split, turns: int) -> Dialogue:
    """A conversation: openers of all kinds, follow-ups, and wishes to hear an answer again.

    Args:
        rng: what it is drawn by.
        split: "train", or "heldout": every question of it is a held-out one.
        turns: how many exchanges, 1 or more.

    Returns:
        `turns` exchanges.
    """
    if turns < 1:
        raise ValueError(f"a dialogue of {turns} turns; ask for 1 or more")
    askings, again = _askings()[split], say.AGAIN if split == "train" else say.AGAIN_HELD_OUT
    done: list[Exchange] = []
    topic = ""
    for _ in range(turns):
        wish = rng.random()
        if done and wish < AGAIN:
            done.append(Exchange(again[rng.integers(len(again))], done[-1].answer))
            continue
        on = askings.get(topic, {}) if topic else {}
        on = {answer: row for answer, row in on.items() if done[-1].answer != answer}
        openers = askings[""]
        if on and wish < AGAIN + FOLLOW_UP:
            asking = _pick(rng, list(on.values()))
        else:
            family = _drawn_family(rng, openers)
            asking = _pick(rng, [row for row in openers.values() if row[0].family == family])
        done.append(Exchange(_ornamented(rng, asking), asking.answer))
        topic = asking.after
    return tuple(done)


def reference_text(rng: np.random.Generator, sentences: int = 2) -> str:
    """What is said in a reference clip: plain sentences, none of them an answer of this world."""
    return " ".join(_sentence(rng) for _ in range(sentences))


def _drawn_family(rng: np.random.Generator, openers: dict[str, tuple[_Asking, ...]]) -> str:
    """A family with more answers is drawn more often, but less than in proportion."""
    sizes: dict[str, int] = defaultdict(int)
    for row in openers.values():
        sizes[row[0].family] += 1 if row[0].family != "unknown" else 16
    weights = np.sqrt(list(sizes.values()))
    return list(sizes)[rng.choice(len(weights), p=weights / weights.sum())]


def _pick(rng: np.random.Generator, rows: list[tuple[_Asking, ...]]) -> _Asking:
    row = rows[rng.integers(len(rows))]
    return row[rng.integers(len(row))]


def _ornamented(rng: np.random.Generator, asking: _Asking) -> str:
    question = asking.question
    if asking.family in ("talk", "repeat") or asking.before or rng.random() >= ORNAMENTED:
        return question
    if rng.random() < 0.4:
        return f"{question[:-1]}, please{question[-1]}"
    opening = say.OPENINGS[rng.integers(len(say.OPENINGS))]
    return f"{opening}, {question[0].lower()}{question[1:]}"


def _sentence(rng: np.random.Generator) -> str:
    def word(words: tuple[str, ...]) -> str:
        return words[rng.integers(len(words))]

    who = f"{word(say.THE)} {word(say.ADJECTIVES)} {word(say.BEINGS)}"
    where = f"{word(say.PLACED)} the {word(say.ADJECTIVES)} {word(say.PLACES)}"
    if rng.random() < 0.5:
        what = f"{word(say.DONE_TO)} {word(say.THE).lower()} {word(say.THINGS)}"
        return f"{who} {what} {where}."
    return f"{who} {word(say.DONE)} {where}, and then {word(say.DONE)} {word(say.WHEN)}."
