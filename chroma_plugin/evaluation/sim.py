"""Speaker similarity and word errors in SEED-TTS-EVAL's form.

The list has a line for each utterance: `name|prompt text|prompt audio|text to say`, and, if there
is one, `|human recording` of that text by the prompt's speaker. Without it the recording is looked
for where that test set has it, in `wavs/NAME.wav` beside the list. Paths are relative to the list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chroma_plugin.audio import OUTPUT_RATE_HZ, read_audio
from chroma_plugin.errors import AudioError, ConfigError
from chroma_plugin.evaluation import article
from chroma_plugin.evaluation.intervals import bootstrap
from chroma_plugin.evaluation.outcome import Bars, Grid, Outcome, rounded
from chroma_plugin.evaluation.speakers import SpeakerMeasure
from chroma_plugin.evaluation.synthesis import Spoken, Task
from chroma_plugin.evaluation.transcripts import AsrCommand, errors, words
from chroma_plugin.evaluation.voice_traits import Vector
from chroma_plugin.voice import Voice

Speak = Callable[[Sequence[Task]], list[Spoken | str]]
"""What says the tasks: an engine, or a folder of what was said before."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One line of the list.

    Attributes:
        name: of the utterance, and of its file.
        prompt_text: what is said in the prompt.
        prompt: the clip whose voice is to speak.
        text: what is to be said.
        human: the same text by the prompt's speaker, if there is a recording.
    """

    name: str
    prompt_text: str
    prompt: Path
    text: str
    human: Path | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """An utterance's figures: similarities, and word errors of how many words.

    Attributes:
        name: of the utterance.
        similarity: of what was said to its prompt.
        human: of the human recording to the prompt.
        errors: words that the ASR command had otherwise than the text; None without one.
        human_errors: the same of the human recording.
        words: words of the text.
        seconds: length of what was said.
    """

    name: str
    similarity: float
    human: float | None
    errors: int | None
    human_errors: int | None
    words: int
    seconds: float


def read_list(path: Path) -> list[Utterance]:
    """Reads a list.

    Raises:
        ConfigError: it cannot be read, a line has other than four or five fields, a name is no
            file's name or comes twice, or there is no line at all.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from error
    found: dict[str, Utterance] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("|")]
        if len(fields) not in (4, 5) or not all(fields[:4]):
            raise ConfigError(
                f"{path}, line {number}: write name|prompt text|prompt audio|text to say, and "
                "|human recording if there is one."
            )
        name = fields[0].removesuffix(".wav")
        if name in found or name != Path(name).name or name in (".", ".."):
            raise ConfigError(f"{path}, line {number}: {name!r} comes twice or names no file.")
        human = path.parent / (fields[4] if fields[4:] and fields[4] else f"wavs/{name}.wav")
        found[name] = Utterance(
            name, fields[1], path.parent / fields[2], fields[3], human if human.is_file() else None
        )
    if not found:
        raise ConfigError(f"{path}: has no lines.")
    return list(found.values())


def evaluate_similarity(
    utterances: Sequence[Utterance],
    speak: Speak,
    measure: SpeakerMeasure,
    folder: Path,
    asr: AsrCommand | None = None,
) -> Outcome:
    """Has every text said in its prompt's voice, and judges voice and words.

    Args:
        utterances: of `read_list`.
        speak: says tasks.
        measure: of the likeness of voices.
        folder: where the speech goes, as `NAME.wav`.
        asr: writes it down; without it words are not judged.

    Raises:
        AudioError: nothing could be judged; says why.
    """
    aside: list[str] = []
    tasks: list[tuple[Utterance, Task]] = []
    for utterance in utterances:
        try:
            voice = Voice.from_file(utterance.prompt, utterance.prompt_text, utterance.name)
        except AudioError as error:
            aside.append(f"{utterance.name}: {error}")
            continue
        task = Task(folder / f"{utterance.name}.wav", voice, utterance.text)
        tasks.append((utterance, task))
    judged: list[Judged] = []
    prompts: dict[Path, Vector] = {}
    said = speak([task for _, task in tasks]) if tasks else []
    for (utterance, _), spoken in zip(tasks, said, strict=True):
        if isinstance(spoken, str):
            aside.append(f"{utterance.name}: {spoken}")
            continue
        try:
            judged.append(_judged(utterance, spoken, measure, asr, prompts))
        except AudioError as error:
            aside.append(f"{utterance.name}: {error}")
    if not judged:
        raise AudioError(f"Not one of {len(utterances)} utterances could be judged. {aside[0]}")
    return _outcome(judged, aside, measure, asr is not None)


def _judged(
    utterance: Utterance,
    spoken: Spoken,
    measure: SpeakerMeasure,
    asr: AsrCommand | None,
    prompts: dict[Path, Vector],
) -> Judged:
    if utterance.prompt not in prompts:
        prompts[utterance.prompt] = measure.embed(read_audio(utterance.prompt, OUTPUT_RATE_HZ))
    prompt, human = prompts[utterance.prompt], None
    samples = read_audio(spoken.path, OUTPUT_RATE_HZ)
    if utterance.human is not None:
        recording = read_audio(utterance.human, OUTPUT_RATE_HZ)
        human = measure.compare(prompt, measure.embed(recording))
    wanted = words(utterance.text)

    def mistakes(path: Path | None) -> int | None:
        if asr is None or path is None:
            return None
        return errors(words(asr.write_down(path)), wanted)

    return Judged(
        utterance.name,
        measure.compare(prompt, measure.embed(samples)),
        human,
        mistakes(spoken.path),
        mistakes(utterance.human),
        len(wanted),
        len(samples) / OUTPUT_RATE_HZ,
    )


def _outcome(
    judged: Sequence[Judged], aside: list[str], measure: SpeakerMeasure, heard: bool
) -> Outcome:
    ours = [one.similarity for one in judged]
    paired = [one for one in judged if one.human is not None]
    human = [one.human for one in judged if one.human is not None]
    ours_low_high, human_low_high = bootstrap(ours), bootstrap(human)
    # the gain is over the recordings that there are: of the same utterances on both sides
    beside = float(np.mean([one.similarity for one in paired])) if paired else None
    baseline = float(np.mean(human)) if human else None
    gain = article.relative_gain(beside, baseline) if beside and baseline else None
    rate = _rate([(one.errors, one.words) for one in judged])
    human_rate = _rate([(one.human_errors, one.words) for one in judged])
    figures = {
        "similarity": rounded(float(np.mean(ours))),
        "similarity_95": _pair(ours_low_high),
        "human_similarity": rounded(baseline),
        "human_similarity_95": _pair(human_low_high),
        "relative_gain": rounded(gain),
        "wer": rounded(rate),
        "human_wer": rounded(human_rate),
        "utterances": len(judged),
        "with_human": len(human),
        "set_aside": len(aside),
        "seconds": rounded(sum(one.seconds for one in judged), 2),
        "each": [
            {
                "name": one.name,
                "similarity": rounded(one.similarity),
                "human": rounded(one.human),
                "errors": one.errors,
                "words": one.words,
            }
            for one in judged
        ],
    }
    theirs = article.relative_gain(article.SIMILARITY, article.HUMAN_SIMILARITY)
    rows = [
        ("here", float(np.mean(ours)), _range(ours_low_high), _percent(gain), _percent(rate)),
        ("human, here", baseline, _range(human_low_high), None, _percent(human_rate)),
        ("Chroma, article", article.SIMILARITY, None, _percent(theirs), None),
        ("human, article", article.HUMAN_SIMILARITY, None, None, None),
        ("CosyVoice 3, article", article.COSYVOICE_SIMILARITY, None, None, None),
    ]
    outcome = Outcome("sim", {"measure": measure.name, "asr": heard}, figures, set_aside=aside)
    heads = ("", "similarity", "95%", "over human", "WER")
    outcome.grids = [Grid(f"{len(judged)} utterances, by {measure.name}", heads, rows)]
    outcome.notes = [
        "Similarities by different measures are not comparable; gains over a human baseline are."
    ]
    if measure.name == "light":
        outcome.notes.append("The built-in measure is weak: give --speaker wavlm for a figure.")
    if baseline is None:
        outcome.notes.append("No human recordings in the list: no gain over them.")
    outcome.bars = [
        Bars(
            f"Speaker similarity by {measure.name}; the article's by its own measure",
            "similarity",
            ["here", "human, here", "article", "human, article"],
            [float(np.mean(ours)), baseline, article.SIMILARITY, article.HUMAN_SIMILARITY],
            [ours_low_high, human_low_high, None, None],
        )
    ]
    return outcome


def _rate(counts: Sequence[tuple[int | None, int]]) -> float | None:
    """All errors by all words, of those that were written down."""
    known = [(wrong, of) for wrong, of in counts if wrong is not None]
    total = sum(of for _, of in known)
    return sum(wrong for wrong, _ in known) / total if total else None


def _pair(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else [round(value, 4) for value in interval]


def _range(interval: tuple[float, float] | None) -> str | None:
    return None if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.2f}%"
