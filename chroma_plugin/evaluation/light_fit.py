"""Fits the light measure of voices to training records, and checks it on their held-out voices.

    python -m chroma_plugin.evaluation.light_fit fit runs/tiny/data
    python -m chroma_plugin.evaluation.light_fit check runs/tiny/data

A linear discriminant analysis of `voice_traits`: every training voice is a class, of clips as they
were recorded and of copies of them by the codec, so that what a sentence or the codec changes is
spread within a voice. Only voices of the split `train` are fitted to; those of `heldout`, of
variants of espeak-ng that training leaves out, judge the result.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.numpy import save

from chroma_plugin.audio import Samples
from chroma_plugin.config import DEFAULT_MODEL
from chroma_plugin.errors import AudioError, ChromaError
from chroma_plugin.evaluation.conversation import talks_of
from chroma_plugin.evaluation.speakers import (
    FITTED,
    Axes,
    SpeakerMeasure,
    speaker_measure,
)
from chroma_plugin.evaluation.standards import Gallery
from chroma_plugin.evaluation.voice_traits import Vector, traits
from chroma_plugin.model.codec import Codec
from chroma_plugin.training.codec.judge import copy_of, whole_frames
from chroma_plugin.training.ear import load_ear
from chroma_plugin.training.records import Clip, Codes, Records

AXES = 16
"""More serve voices that were fitted to, and not others; found on training voices."""
SHRINK = 0.01
"""Part of the spread within voices that is taken to be even."""
ANSWERS, COPIED, COPIED_FRAMES = 4, 2, 24
"""Answers of a voice that are heard, as recorded and as copies; the copied part of a reference."""
SAME_CODES = 0.9
"""Fewer codes in common than this, and they are another codec's."""
PLACES = ("recordings", "copies")

app = typer.Typer(
    help="The light measure of voices.", add_completion=False, pretty_exceptions_enable=False
)
Data = Annotated[Path, typer.Argument(metavar="RECORDS", help="Folder of training records.")]
Model = Annotated[str, typer.Option(help="Whose codec copies.")]


# -- fit -------------------------------------------------------------------------------------


def fitted(told: Vector, speakers: Sequence[str], axes: int = AXES, shrink: float = SHRINK) -> Axes:
    """The axes along which voices differ most, for how much one voice varies.

    Args:
        told: traits of clips, `[clips, n]`.
        speakers: whose each is.
        axes: how many, at most one less than there are speakers.
        shrink: part of the spread within voices that is taken to be even over all traits.

    Raises:
        ChromaError: there are too few voices or clips.
    """
    names, ids = np.unique(list(speakers), return_inverse=True)
    counts = np.bincount(ids)
    fewest = min(counts.tolist(), default=0)
    if len(names) <= axes or fewest < 2:
        raise ChromaError(
            f"{len(names)} voices, of which one has {fewest} clips, are too few: "
            f"{axes + 1} voices of 2 clips each are needed."
        )
    mean, unit = told.mean(axis=0), told.std(axis=0) + 1e-9
    even = (told - mean) / unit
    voices = np.zeros((len(names), even.shape[1]))
    np.add.at(voices, ids, even)
    voices /= counts[:, None]
    apart = even - voices[ids]
    within = apart.T @ apart / (len(even) - len(names))
    between = np.cov(voices.T) - within * np.mean(1 / counts)
    level = np.trace(within) / len(within)
    within = (1 - shrink) * within + shrink * level * np.eye(len(within))
    whiten = np.linalg.inv(np.linalg.cholesky(within))
    _, turned = np.linalg.eigh(whiten @ between @ whiten.T)  # the largest come last
    found = (turned[:, ::-1][:, :axes].T @ whiten) / unit
    return Axes(found, found @ mean)


def heard(
    records: Records,
    codec: Codec,
    count: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Vector, list[str]]:
    """Traits of clips and of their copies.

    Args:
        records: with codes.
        codec: that made the codes.
        count: of voices; the first so many. All if None.
        say: gets a line for every 50 voices.

    Returns:
        Traits `[clips, n]`, and whose each is. A clip without a voice is left out.

    Raises:
        ChromaError: the codes are missing, or another codec's.
    """
    voices = dict(list(_voices(records).items())[:count])
    _check(codec, next(iter(voices.values()))[1][0])
    told: list[Vector] = []
    speakers: list[str] = []
    for number, (name, clips) in enumerate(voices.items(), 1):
        for samples in _said(codec, *clips):
            try:
                told.append(traits(samples))
            except AudioError:
                continue
            speakers.append(name)
        if number % 50 == 0:
            say(f"{number} of {len(voices)} voices, {len(told)} clips")
    return np.array(told), speakers


def packed(found: Axes, note: str) -> bytes:
    """A safetensors file that `speakers.packaged_axes` reads, with a note of what it is."""
    tensors = {"axes": found.axes.astype(np.float32), "center": found.center.astype(np.float32)}
    return save(tensors, {"what": note})  # one note: several come in any order


def _voices(records: Records) -> dict[str, tuple[list[Clip], tuple[Clip, ...]]]:
    """Of each speaker the answers and the reference clips."""
    voices: dict[str, tuple[list[Clip], tuple[Clip, ...]]] = {}
    for record in (records[number] for number in range(len(records))):
        answers, _ = voices.setdefault(record.speaker, ([], record.references))
        answers.append(record.turns[-1].answer)
    return voices


def _said(codec: Codec, answers: Sequence[Clip], references: Sequence[Clip]) -> Iterator[Samples]:
    yield from (clip.samples() for clip in [*references, *answers[:ANSWERS]])
    yield from (_decoded(codec, clip.codes()[:, :COPIED_FRAMES]) for clip in references[:1])
    yield from (_decoded(codec, clip.codes()) for clip in answers[:COPIED])


@torch.inference_mode()
def _decoded(codec: Codec, codes: Codes) -> Samples:
    made = codec.decode(torch.from_numpy(codes.astype(np.int64))[None])
    return np.asarray(made[0, 0].clamp(-1, 1).numpy(), np.float32)


@torch.inference_mode()
def _check(codec: Codec, clip: Clip) -> None:
    """By codes, not by `codec_key`: a checkpoint keeps rounded weights."""
    there, now = clip.codes(), copy_of(codec, whole_frames(clip.samples()))[1]
    if there.shape != now.shape or (there == now).mean() < SAME_CODES:
        raise ChromaError(
            f"{clip.shard.path}: its codes are another codec's; encode the records with this "
            "model's, or name the model whose codec made them (--model)."
        )


# -- check -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """How well voices are found again.

    Attributes:
        nearest: share of answers whose own voice is the nearest of twelve, by what the answer
            and what the gallery is, of `PLACES`.
        equal_error: error rate over all pairs of an answer and a reference clip where as many of
            one voice are taken for two as of two voices for one, likewise.
        answers: how many there were.
        alike: median alikeness of copies of one voice, and of two.
    """

    nearest: dict[tuple[str, str], float]
    equal_error: dict[tuple[str, str], float]
    answers: int
    alike: tuple[float, float]


def found_again(
    records: Records, measure: SpeakerMeasure, through: Callable[[Samples], Samples]
) -> Found:
    """How well a measure finds the voices of all answers of some records, as `Gallery` asks.

    Args:
        records: of voices that it was not fitted to.
        measure: any.
        through: makes a copy.

    Raises:
        ChromaError: the records hold fewer voices than should be chosen from.
    """
    gallery = Gallery(records, measure)
    if not gallery.full:
        raise ChromaError("The records hold too few voices to choose from.")
    known: dict[tuple[str, int, str, str], Vector | None] = {}

    def vector(clip: Clip, place: str) -> Vector | None:
        key = (clip.kind, clip.place, str(clip.shard.path), place)
        if key not in known:
            samples = clip.samples() if place == PLACES[0] else through(clip.samples())
            try:
                known[key] = measure.embed(samples)
            except AudioError:
                known[key] = None
        return known[key]

    def alike(one: Vector | None, other: Vector | None) -> float:
        return -np.inf if one is None or other is None else measure.compare(one, other)

    asked = [(talk, turn.answer) for talk in talks_of(records)[0] for turn in talk.turns]
    references = {name: clips for name, (_, clips) in _voices(records).items()}
    nearest, errors = {}, {}
    medians = (0.0, 0.0)
    for place, beside in ((p, b) for p in PLACES for b in PLACES):
        right = []
        same: list[float] = []
        other: list[float] = []
        for talk, answer in asked:
            voice = vector(answer, place)
            own, others = gallery.beside(talk)
            likeness = alike(voice, vector(own, beside))
            right.append(all(alike(voice, vector(clip, beside)) < likeness for clip in others))
            for name, clips in references.items():
                kept = same if name == talk.speaker else other
                kept += [alike(voice, vector(clip, beside)) for clip in clips]
        nearest[place, beside] = float(np.mean(right))
        errors[place, beside] = equal_error(same, other)
        medians = float(np.median(same)), float(np.median(other))  # of copies in the end
    return Found(nearest, errors, len(asked), medians)


def equal_error(same: Sequence[float], other: Sequence[float]) -> float:
    """The rate at which pairs of one voice and of two are taken for the other equally often."""
    limits = np.sort(np.concatenate([same, other]))
    missed = np.searchsorted(np.sort(same), limits) / len(same)
    taken = 1 - np.searchsorted(np.sort(other), limits) / len(other)
    at = np.abs(missed - taken).argmin()
    return float(missed[at] + taken[at]) / 2


# -- commands --------------------------------------------------------------------------------


@app.command()
def fit(
    records: Data,
    output: Annotated[Path, typer.Option("-o", "--output", help="What to write.")] = Path(FITTED),
    voices: Annotated[
        int | None, typer.Option(min=AXES + 1, help="Only so many, from the first on.")
    ] = None,
    model: Model = DEFAULT_MODEL,
) -> None:
    """Fit it to the training voices of some records, which have codes."""
    _one_thread()
    train = Records(records, "train")
    codec = load_ear(model).model.codec
    told, speakers = heard(train, codec, voices, lambda line: typer.echo(line, err=True))
    said = f"{len(set(speakers))} voices, {len(speakers)} clips and copies"
    note = f"axes of LightMeasure, by light_fit: {said}, codes {train.shards[0].encoded.key}"
    output.write_bytes(packed(fitted(told, speakers, AXES), note))
    typer.echo(f"{output}: {said}")


@app.command()
def check(
    records: Data,
    speaker: Annotated[str, typer.Option(help="Another measure, as of eval sim.")] = "light",
    model: Model = DEFAULT_MODEL,
) -> None:
    """Find the held-out voices of some records again, among twelve and in pairs."""
    _one_thread()
    measure = speaker_measure(speaker)
    found = found_again(Records(records, "heldout"), measure, load_ear(model).through_codec)
    typer.echo(f"{measure.name}, {found.answers} answers: nearest of 12, equal error rate")
    for (place, beside), share in found.nearest.items():
        error = found.equal_error[place, beside]
        typer.echo(f"{place} among {beside}: {share:.1%}, {error:.1%}")
    typer.echo("copies of one voice {:.2f}, of two {:.2f}".format(*found.alike))


def _one_thread() -> None:
    torch.set_num_threads(1)


def main() -> None:
    """`python -m chroma_plugin.evaluation.light_fit`."""
    try:
        app()
    except ChromaError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
