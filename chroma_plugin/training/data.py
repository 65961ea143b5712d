"""Makes training records: dialogues from `answers`, spoken by a speaker of `speech`, in the shards
that `records` reads.

A shard is made by chance of its own, so that any of them can be made at any time, by any process,
with the same result. It is there when its index is; what is there is not made again.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from chroma_plugin.audio import (
    INPUT_RATE_HZ,
    OUTPUT_RATE_HZ,
    Samples,
    float_to_pcm,
    replace_file,
    resample,
)
from chroma_plugin.errors import AudioError, ChromaError, ConfigError
from chroma_plugin.training.answers import Answers, BrokenAnswer, Domain
from chroma_plugin.training.domain import Exchange
from chroma_plugin.training.records import index_of
from chroma_plugin.training.speech import EspeakSpeaker, Speaker
from chroma_plugin.voice import MIN_SECONDS

SPLITS = {
    "train": (False, False),
    "heldout": (True, True),
    "new_voices": (True, False),
    "new_sentences": (False, True),
}
"""Of each split: whether its voices are held out, and whether its sentences are."""
CHARS_PER_SECOND = (2.0, 45.0)
"""Speech slower or faster than this is not what the text says."""

T = TypeVar("T")
_Turn = tuple[Exchange, Samples, Samples]
"""Texts, what the user says (16 kHz), what is answered (24 kHz)."""


@dataclass(frozen=True)
class DataPlan:
    """What is made.

    Attributes:
        train: dialogues of known voices and known sentences.
        heldout: dialogues of voices and sentences that training never sees.
        new_voices: such voices with known sentences.
        new_sentences: known voices with such sentences.
        turns: fewest and most exchanges of a dialogue.
        speaker_dialogues: dialogues that a voice answers in; each is asked in another voice.
        references: clips of that voice that are no answers.
        shard_dialogues: dialogues in a shard, whole speakers of them.
        max_clip_s: a longer clip sets its dialogue aside.
        seed: what everything is drawn by.

    Raises:
        ConfigError: a number is out of range.
    """

    train: int = 4000
    heldout: int = 200
    new_voices: int = 0
    new_sentences: int = 0
    turns: tuple[int, int] = (1, 3)
    speaker_dialogues: int = 4
    references: int = 2
    shard_dialogues: int = 128
    max_clip_s: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (*SPLITS, "speaker_dialogues", "references", "shard_dialogues"):
            least = 0 if name in SPLITS else 1
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be {least} or more.")
        if not 1 <= self.turns[0] <= self.turns[1]:
            raise ConfigError(f"turns is {self.turns}; it is the fewest (1 or more) and the most.")
        if self.shard_dialogues % self.speaker_dialogues:
            raise ConfigError(
                f"shard_dialogues is {self.shard_dialogues}; it must be a multiple of "
                f"speaker_dialogues ({self.speaker_dialogues}): a voice lies in one shard."
            )


@dataclass(frozen=True)
class Summary:
    """What was made, or has been made so far.

    Attributes:
        planned: dialogues that the plan asks for.
        dialogues: of them, done.
        found: of those, there already.
        broken: of those, set aside.
        reason: of the first one that was set aside this time.
        turns: questions with their answers; those of `found` count.
        clips: made this time.
        audio_s: length of the clips.
        seconds: taken this time.
    """

    planned: int = 0
    dialogues: int = 0
    found: int = 0
    broken: int = 0
    reason: str = ""
    turns: int = 0
    clips: int = 0
    audio_s: float = 0.0
    seconds: float = 0.0

    @property
    def clips_per_s(self) -> float:
        return self.clips / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        return (
            f"{self.dialogues}/{self.planned} dialogues ({self.found} found, {self.broken} "
            f"broken), {self.turns} turns; {self.clips} clips, {self.audio_s / 60:.1f} min of "
            f"audio in {self.seconds:.1f} s, {self.clips_per_s:.0f} clips/s"
        )


def build(
    plan: DataPlan,
    folder: str | Path,
    progress: Callable[[Summary], None] | None = None,
    *,
    answers: Answers | None = None,
    speaker: Speaker[Any] | None = None,
    workers: int = 1,
    threads: int = 1,
) -> Summary:
    """Makes what of a plan is missing in a folder.

    Args:
        plan: what to make. The same plan, answers and speaker give the same records.
        folder: made if it is not there.
        progress: called after each shard.
        answers: where dialogues come from; the built-in `Domain` if None.
        speaker: who speaks; `EspeakSpeaker` if None.
        workers: processes, a shard each; with more than one, answers and speaker are pickled.
        threads: dialogues of a shard that are spoken at a time.

    Raises:
        ChromaError: the folder holds records of another plan or of other texts, a speaker or
            endpoint does not work, or no dialogue at all can be made; says what to do.
    """
    folder = Path(folder)
    speaker = EspeakSpeaker() if speaker is None else speaker
    answers = Domain() if answers is None else answers
    _keep_plan(plan, answers, speaker, folder)
    shards = [shard for split in SPLITS for shard in _shards(plan, split, folder)]
    total = Summary(planned=sum(getattr(plan, split) for split in SPLITS))
    missing: list[_Shard] = []
    for shard in shards:
        if index_of(shard.path).exists():
            total = _sum(total, _found(shard))
        else:
            missing.append(shard)
    start = time.monotonic()
    for made in _made(missing, _Studio(plan, answers, speaker, threads), workers):
        total = replace(_sum(total, made), seconds=time.monotonic() - start)
        if progress:
            progress(total)
        if total.broken == total.dialogues:
            raise ChromaError(
                f"None of {total.dialogues} dialogues could be made; the first: {total.reason}"
            )
    return total


# -- shards --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shard:
    path: Path
    split: str
    number: int
    dialogues: int

    def rng(self, plan: DataPlan, *path: int) -> np.random.Generator:
        """Chance for one thing in it; no other thing's draws move it."""
        return np.random.default_rng(
            [plan.seed, list(SPLITS).index(self.split), self.number, *path]
        )


@dataclass
class _Content:
    """A shard while it is put together."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    broken: list[dict[str, Any]] = field(default_factory=list)
    audio: dict[str, list[NDArray[np.int16]]] = field(
        default_factory=lambda: {"user": [], "target": [], "reference": []}
    )
    ends: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    clips: int = 0
    audio_s: float = 0.0

    def add_speaker(self, voice: str, clips: list[tuple[str, Samples]] | str) -> None:
        kept = [] if isinstance(clips, str) else clips
        said = [{"text": t, "span": self._add("reference", x, OUTPUT_RATE_HZ)} for t, x in kept]
        self.lines.append({"speaker": len(self.lines), "voice": voice, "references": said})

    def add_dialogue(self, number: int, speaker: int, asking: str, turns: list[_Turn]) -> None:
        rows = []
        for exchange, user, target in turns:
            spans = {
                "user": self._add("user", user, INPUT_RATE_HZ),
                "target": self._add("target", target, OUTPUT_RATE_HZ),
            }
            rows.append(asdict(exchange) | spans)
        line = {"dialogue": number, "speaker": speaker, "user_voice": asking, "turns": rows}
        self.lines.append(line)
        self.turns += len(rows)

    def write(self, path: Path) -> None:
        tensors = {
            kind: np.concatenate([np.zeros(0, np.int16), *clips])
            for kind, clips in self.audio.items()
        }
        replace_file(path.with_name(path.name + ".safetensors"), save(tensors))
        if self.broken:
            replace_file(path.with_name(path.name + ".broken.jsonl"), _json_lines(self.broken))
        if self.turns:  # one without any is tried again
            replace_file(index_of(path), _json_lines(self.lines))

    def _add(self, kind: str, samples: Samples, rate_hz: int) -> list[int]:
        start = self.ends[kind]
        self.ends[kind] += len(samples)
        self.audio[kind].append(np.frombuffer(float_to_pcm(samples), "<i2"))
        self.clips += 1
        self.audio_s += len(samples) / rate_hz
        return [start, self.ends[kind]]


def _shards(plan: DataPlan, split: str, folder: Path) -> Iterator[_Shard]:
    for number, first in enumerate(range(0, getattr(plan, split), plan.shard_dialogues)):
        count = min(plan.shard_dialogues, getattr(plan, split) - first)
        yield _Shard(folder / f"{split}-{number:05d}", split, number, count)


@dataclass(frozen=True)
class _Studio:
    """What dialogues are made with."""

    plan: DataPlan
    answers: Answers
    speaker: Speaker[Any]
    threads: int

    def make(self, shard: _Shard) -> Summary:
        """Makes one shard: audio, what was set aside, and last of all its index."""
        plan, new_voices = self.plan, SPLITS[shard.split][0]
        numbers = range(-(-shard.dialogues // plan.speaker_dialogues))
        voices = [self.speaker.draw(shard.rng(plan, 0, n), held_out=new_voices) for n in numbers]

        def introduced(n: int) -> list[tuple[str, Samples]] | str:
            return _or_reason(self._references, shard.rng(plan, 1, n), voices[n])

        def talked(n: int) -> tuple[str, list[_Turn]] | str:
            voice = voices[n // plan.speaker_dialogues]
            return _or_reason(self._dialogue, shard.rng(plan, 2, n), voice, SPLITS[shard.split])

        with ThreadPoolExecutor(self.threads) as pool:
            references = list(pool.map(introduced, numbers))
            dialogues = list(pool.map(talked, range(shard.dialogues)))
        content = _Content()
        for voice, clips in zip(voices, references, strict=True):
            content.add_speaker(self.speaker.describe(voice), clips)
        for n, dialogue in enumerate(dialogues):
            of = n // plan.speaker_dialogues
            why = references[of] if isinstance(references[of], str) else dialogue
            if isinstance(why, str):
                content.broken.append({"dialogue": n, "reason": why})
            elif not isinstance(dialogue, str):
                content.add_dialogue(n, of, *dialogue)
        content.write(shard.path)
        return Summary(
            dialogues=shard.dialogues,
            broken=len(content.broken),
            reason=content.broken[0]["reason"] if content.broken else "",
            turns=content.turns,
            clips=content.clips,
            audio_s=content.audio_s,
        )

    def _references(self, rng: np.random.Generator, voice: Any) -> list[tuple[str, Samples]]:
        """Clips of a voice with what is said in them, each long enough to be a reference."""
        made = []
        for _ in range(self.plan.references):
            text = self.answers.reference(rng)
            samples = self._spoken(text, voice)
            for _ in range(3):
                if len(samples) >= MIN_SECONDS * OUTPUT_RATE_HZ:
                    break
                text = f"{text} {self.answers.reference(rng)}"
                samples = self._spoken(text, voice)
            made.append((text, samples))
        return made

    def _dialogue(
        self, rng: np.random.Generator, voice: Any, new: tuple[bool, bool]
    ) -> tuple[str, list[_Turn]]:
        """A dialogue, asked in a voice drawn here and answered in the one given."""
        new_voices, new_sentences = new
        asking = self.speaker.draw(rng, held_out=new_voices)
        count = int(rng.integers(self.plan.turns[0], self.plan.turns[1] + 1))
        turns = []
        for exchange in self.answers.dialogue(rng, new_sentences, count):
            user = self._spoken(exchange.question, asking)
            target = self._spoken(exchange.answer, voice)
            turns.append((exchange, resample(user, OUTPUT_RATE_HZ, INPUT_RATE_HZ), target))
        return self.speaker.describe(asking), turns

    def _spoken(self, text: str, voice: Any) -> Samples:
        samples = self.speaker.speak(text, voice)
        seconds = len(samples) / OUTPUT_RATE_HZ
        low, high = CHARS_PER_SECOND
        if seconds > self.plan.max_clip_s:
            raise AudioError(
                f"{seconds:.1f} s of speech, more than {self.plan.max_clip_s:g}, for {text!r}"
            )
        if not low <= len(text) / max(seconds, 1e-3) <= high:
            raise AudioError(f"{seconds:.2f} s of speech cannot be all of, or only, {text!r}")
        return samples


def _or_reason(make: Callable[..., T], *given: Any) -> T | str:
    """What is made, or why it cannot be."""
    try:
        return make(*given)
    except (AudioError, BrokenAnswer) as error:
        return str(error)


def _made(missing: list[_Shard], studio: _Studio, workers: int) -> Iterator[Summary]:
    if workers <= 1 or len(missing) <= 1:
        yield from map(studio.make, missing)
        return
    fresh = multiprocessing.get_context("spawn")  # a fork of a process with torch in it may hang
    with ProcessPoolExecutor(min(workers, len(missing)), mp_context=fresh) as pool:
        running = [pool.submit(studio.make, shard) for shard in missing]
        try:
            for future in as_completed(running):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


# -- files ---------------------------------------------------------------------------------------


def _json_lines(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def _found(shard: _Shard) -> Summary:
    """What the index of a shard that is there says of it."""
    lines = [json.loads(x) for x in index_of(shard.path).read_text("utf-8").splitlines()]
    kept = [line for line in lines if "turns" in line]
    return Summary(
        dialogues=shard.dialogues,
        found=shard.dialogues,
        broken=shard.dialogues - len(kept),
        turns=sum(len(line["turns"]) for line in kept),
    )


def _sum(total: Summary, part: Summary) -> Summary:
    names = [name for name in asdict(part) if name != "reason"]
    both = {name: getattr(total, name) + getattr(part, name) for name in names}
    return Summary(**both, reason=total.reason or part.reason)


def _keep_plan(plan: DataPlan, answers: Answers, speaker: Speaker[Any], folder: Path) -> None:
    """Writes plan.json, or checks that it is of the same plan and of the same texts."""
    kinds = {"answers": type(answers).__name__, "speaker": type(speaker).__name__}
    text = json.dumps({**asdict(plan), **kinds, "source": answers.source}, indent=1) + "\n"
    path = folder / "plan.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        replace_file(path, text.encode())
        return
    wanted, found = json.loads(text), json.loads(path.read_text("utf-8"))
    source = found.pop("source", wanted["source"])  # which folders of old do not tell
    if found != {name: value for name, value in wanted.items() if name != "source"}:
        raise ChromaError(
            f"{path}: this folder holds records of another plan; give the new plan a new folder, "
            "or delete this one."
        )
    if source != wanted["source"]:
        raise ChromaError(
            f"{path}: this folder holds records of other texts ({source}) than there are now "
            f"({wanted['source']}); give these a new folder, or delete this one."
        )
