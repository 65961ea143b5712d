"""URO-Bench's basic track: spoken questions, answered by an engine, written down and scored.

A set is a folder with `test.jsonl` and its audio; a line has `source_wav` (relative to the file),
`source_text`, and, where there is a right answer, `target_text`, a text or a list of them. Sets lie
in the folder given, or in its `basic`, as the benchmark's archive has them.

Source: R. Yan et al., URO-Bench, arXiv 2502.17810, and its repository.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chroma_plugin.errors import AudioError, ChromaError, ConfigError
from chroma_plugin.evaluation import article
from chroma_plugin.evaluation.intervals import bootstrap
from chroma_plugin.evaluation.outcome import Bars, Cell, Grid, Outcome, rounded
from chroma_plugin.evaluation.scores import Judge, NoScore, Rule, by_rule
from chroma_plugin.evaluation.synthesis import Spoken, Task
from chroma_plugin.evaluation.transcripts import AsrCommand, word_error_rate

Speak = Callable[[Sequence[Task]], list[Spoken | str]]

SETS: dict[str, tuple[str, Rule]] = {
    "Repeat": ("understanding", "wer"),
    "Summary": ("understanding", "graded"),
    "GaokaoEval": ("understanding", "contains"),
    "StoralEval": ("reasoning", "graded"),
    "TruthfulEval": ("reasoning", "graded"),
    "Gsm8kEval": ("reasoning", "contains"),
    "MLC": ("reasoning", "contains"),
    "AlpacaEval": ("oral", "open"),
    "CommonEval": ("oral", "open"),
    "WildchatEval": ("oral", "open"),
    "Repeat-zh": ("understanding", "wer"),
    "LCSTS-zh": ("understanding", "graded"),
    "MLC-zh": ("reasoning", "contains"),
    "OpenbookQA-zh": ("reasoning", "contains"),
    "AlpacaEval-zh": ("oral", "open"),
    "Claude-zh": ("oral", "open"),
}
"""What each set of the basic track asks for, and how it is scored. Where a judge is given, it also
decides whether an answer contains the right one."""
ENGLISH = tuple(name for name in SETS if not name.endswith("-zh"))


@dataclass(frozen=True, slots=True)
class Question:
    """One line of a set.

    Attributes:
        audio: the spoken question.
        text: its words.
        references: right answers; empty where there are none.
    """

    audio: Path
    text: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """A set of questions.

    Attributes:
        name: of its folder.
        task: what it asks for.
        rule: how it is scored.
        questions: its lines.
    """

    name: str
    task: str
    rule: Rule
    questions: tuple[Question, ...]


@dataclass(slots=True)
class SetScore:
    """What a set came to.

    Attributes:
        asked: the set.
        scores: of 100, of those questions that could be scored.
        rates: word error rate of the transcript against the reply's own text.
        unscored: questions that only a judge could score, or that it gave no mark for.
    """

    asked: QuestionSet
    scores: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    unscored: int = 0

    @property
    def score(self) -> float | None:
        """The mean; None of none."""
        return float(np.mean(self.scores)) if self.scores else None


def read_sets(
    folder: Path,
    names: Sequence[str] = (),
    rule: Rule | None = None,
    limit: int | None = None,
) -> list[QuestionSet]:
    """Finds and reads the sets of a folder.

    Args:
        folder: that of the sets, or the one above `basic`.
        names: only these; all that are there if empty.
        rule: how to score sets that are not of the benchmark; they are searched for the right
            answer, or, without one, judged, if it is None.
        limit: read no more questions of each.

    Raises:
        ConfigError: there are none, one is missing, or a line cannot be used; says which.
    """
    base = folder / "basic" if (folder / "basic").is_dir() else folder
    if not base.is_dir():
        raise ConfigError(f"{folder}: no such folder.")
    there = {path.parent.name: path for path in sorted(base.glob("*/test.jsonl"))}
    if lacking := [name for name in names if name not in there]:
        raise ConfigError(f"{base}: has no {', '.join(lacking)}; there are {', '.join(there)}.")
    if not there:
        raise ConfigError(f"{base}: has no sets. A set is a folder with a test.jsonl in it.")
    return [_read(there[name], rule, limit) for name in names or there]


def evaluate_dialogue(
    sets: Sequence[QuestionSet],
    speak: Speak,
    folder: Path,
    asr: AsrCommand | None = None,
    judge: Judge | None = None,
) -> Outcome:
    """Has every question answered, and scores what was said.

    Args:
        sets: of `read_sets`.
        speak: answers recordings.
        folder: where the replies go, as `SET/0000.wav`; each set's scored lines as `SET.jsonl`.
        asr: writes them down; without it the replies' own texts are scored.
        judge: marks what no rule can.

    Raises:
        AudioError: nothing was answered; says why.
        ChromaError: the judge cannot be reached.
    """
    results: list[SetScore] = []
    aside: list[str] = []
    tasks = [
        Task(folder / one.name / f"{number:04d}.wav", question=question.audio)
        for one in sets
        for number, question in enumerate(one.questions)
    ]
    replies = iter(speak(tasks))
    for one in sets:
        result, lines = SetScore(one), []
        for question, said in zip(one.questions, replies, strict=False):
            try:
                if isinstance(said, str):
                    raise AudioError(said)
                lines.append(_scored(result, question, said, asr, judge))
            except (AudioError, NoScore) as error:
                aside.append(f"{one.name}, {question.audio.name}: {error}")
                result.unscored += isinstance(error, NoScore)
        _write(folder / f"{one.name}.jsonl", lines)
        results.append(result)
    if not any(result.scores or result.unscored for result in results):
        raise AudioError(f"Not one question could be scored. {aside[0] if aside else ''}".strip())
    return _outcome(results, aside, asr is not None, judge)


def _scored(
    result: SetScore,
    question: Question,
    said: Spoken,
    asr: AsrCommand | None,
    judge: Judge | None,
) -> dict[str, Any]:
    heard = asr.write_down(said.path) if asr else said.text
    if asr and said.text:
        result.rates.append(word_error_rate(heard, said.text))
    rule = result.asked.rule
    if judge and rule != "wer":
        score: float | None = judge.score(rule, question.text, heard, question.references)
    else:
        score = by_rule(rule, heard, question.references)
    if score is None:
        result.unscored += 1
    else:
        result.scores.append(score)
    return {
        "audio": said.path.name,
        "question": question.text,
        "references": question.references,
        "text": said.text,
        "heard": heard,
        "score": rounded(score, 2),
    }


def _outcome(
    results: Sequence[SetScore], aside: list[str], heard: bool, judge: Judge | None
) -> Outcome:
    rows: list[list[Cell]] = []
    sets: dict[str, Any] = {}
    for result in results:
        one, interval = result.asked, bootstrap(result.scores)
        theirs = article.URO.get(one.name)
        rate = float(np.mean(result.rates)) if result.rates else None
        sets[one.name] = {
            "task": one.task,
            "rule": one.rule,
            "score": rounded(result.score, 2),
            "score_95": None if interval is None else [round(value, 2) for value in interval],
            "scored": len(result.scores),
            "unscored": result.unscored,
            "questions": len(one.questions),
            "asr_wer": rounded(rate),
            "article": theirs,
        }
        span = None if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"
        rows.append(
            [one.name, one.task, one.rule, len(result.scores), result.score, span, theirs, rate]
        )
    means = {result.asked.name: result.score for result in results if result.score is not None}
    overall = float(np.mean(list(means.values()))) if means else None
    complete = set(ENGLISH) <= set(means)
    rows.append(
        ["overall" if complete else "mean of these", None, None, None, overall, None,
         article.URO_OVERALL, None]
    )  # fmt: skip
    rows.append(["GLM-4-Voice, overall", *[None] * 5, article.URO_OVERALL_BEST, None])
    rates = [rate for result in results for rate in result.rates]
    figures = {
        "overall": rounded(overall, 2),
        "complete": complete,
        "article_overall": article.URO_OVERALL,
        "asr_wer": rounded(float(np.mean(rates))) if rates else None,
        "sets": sets,
        "set_aside": len(aside),
    }
    settings = {"asr": heard, "judge": None if judge is None else judge.model}
    outcome = Outcome("uro", settings, figures, set_aside=aside)
    heads = ("set", "task", "scored by", "scored", "score", "95%", "article", "ASR WER")
    outcome.grids = [Grid("URO-Bench, basic track: scores of 100", heads, rows)]
    if not heard:
        outcome.notes.append("Without --asr the replies' own texts were scored, not the speech.")
    if judge is None and any(result.unscored for result in results):
        outcome.notes.append("Open questions need a judge: --judge URL --judge-model NAME.")
    if judge is None and any(result.asked.rule == "contains" for result in results):
        outcome.notes.append(
            "Right answers were looked for word by word; the article's scores are a judge's."
        )
    if not complete:
        outcome.notes.append("The article's overall is the mean of all ten English sets.")
    names = [result.asked.name for result in results]
    outcome.bars = [
        Bars("Here", "score", names, [r.score for r in results],
             [bootstrap(r.scores) for r in results]),
        Bars("Article", "score", names, [article.URO.get(name) for name in names]),
    ]  # fmt: skip
    return outcome


def _read(path: Path, rule: Rule | None, limit: int | None) -> QuestionSet:
    name = path.parent.name
    questions = []
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from error
    for number, line in enumerate(lines[:limit], 1):
        try:
            row = json.loads(line)
            wanted = row.get("target_text")
            if wanted is None and name in SETS and SETS[name][1] == "wer":
                wanted = row["source_text"]  # the question says what to repeat
            listed = wanted if isinstance(wanted, list) else [wanted]
            references = tuple(str(text) for text in listed if text not in (None, ""))
            audio = path.parent / str(row["source_wav"])
            questions.append(Question(audio, str(row["source_text"]), references))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f'{path}, line {number}: {error!r}. A line is {{"source_wav": "...", '
                '"source_text": "...", "target_text": "..."}.'
            ) from error
    if not questions:
        raise ConfigError(f"{path}: has no questions.")
    answered = any(question.references for question in questions)
    task, known = SETS.get(name, ("other", rule or ("contains" if answered else "open")))
    return QuestionSet(name, task, known, tuple(questions))


def _write(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ChromaError(f"{path}: cannot be written ({error.strerror}).") from error
