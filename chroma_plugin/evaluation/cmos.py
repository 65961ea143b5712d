"""A blind listening test: pairs of recordings in one page, and its key.

The folder has one folder for each of two systems, with recordings of the same names; for
similarity also `reference`, with a clip of the speaker for each name. The page holds all of the
audio, at one level, under names that say nothing; which is which stands in the key alone, which
stays with whoever runs the test.

Two kinds of trials catch inattention: repeats, a pair once more with its sides exchanged, and
anchors, a recording beside itself made plainly worse.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np

from chroma_plugin.audio import (
    OUTPUT_RATE_HZ,
    Samples,
    level_dbfs,
    read_audio,
    replace_file,
    resample,
)
from chroma_plugin.errors import ChromaError, ConfigError

Asked = Literal["naturalness", "similarity"]

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")
LEVEL_DBFS = -26.0
"""RMS of every clip: louder is taken for better."""
PEAK = 0.98
MAX_CLIP_S = 60.0
ANCHOR_SHIFT = 1.35
"""A similarity anchor is played so much faster: another vocal tract, another pitch."""


@dataclass(frozen=True, slots=True)
class TestPlan:
    """What a page asks.

    Attributes:
        question: naturalness or similarity.
        systems: the two folders that are compared.
        repeats: pairs that come twice.
        anchors: trials with an obvious answer.
        seed: of which pairs these are, and of the order.
    """

    question: Asked = "naturalness"
    systems: tuple[str, str] = ("chroma", "other")
    repeats: int = 3
    anchors: int = 3
    seed: int = 0

    __test__ = False  # no test of pytest's


@dataclass(slots=True)
class Page:
    """A listening test.

    Attributes:
        html: the page.
        key: what its trials and clips are, for `listeners.read_key`.
        pairs: how many there are.
        left_out: recordings that only one of the folders has.
    """

    html: str
    key: dict[str, Any]
    pairs: int
    left_out: list[str] = field(default_factory=list)

    def write(self, path: Path) -> Path:
        """Writes the page, and the key beside it.

        Returns:
            The key's place.

        Raises:
            ChromaError: they cannot be written.
        """
        place = path.with_suffix(".key.json")
        try:
            replace_file(path, self.html.encode())
            replace_file(place, json.dumps(self.key, indent=1).encode())
        except OSError as error:
            raise ChromaError(f"{path}: cannot be written ({error.strerror}).") from error
        return place


def make_page(folder: Path, plan: TestPlan) -> Page:
    """Makes the page of a folder.

    Raises:
        ConfigError: a folder is missing, or they have no recording in common.
        AudioError: a recording cannot be read, or is longer than a minute.
    """
    sides = [_recordings(folder / name) for name in plan.systems]
    if plan.systems[0] == plan.systems[1]:
        raise ConfigError(f"{plan.systems[0]!r} cannot be compared with itself.")
    wanted = [*sides, _recordings(folder / "reference")] if _referred(plan) else sides
    names = sorted(set.intersection(*(set(side) for side in wanted)))
    if not names:
        raise ConfigError(f"{folder}: its folders have no recording of the same name.")
    return _Maker(plan, wanted).page(names)


def spoiled(samples: Samples, question: Asked, seed: int) -> Samples:
    """A recording made plainly worse: for naturalness in noise, as loud as itself, and coarse; for
    similarity in another voice.

    Args:
        samples: float32 `[n]`, 24 kHz.
        question: which.
        seed: of the noise.
    """
    if question == "similarity":
        return resample(samples, round(OUTPUT_RATE_HZ * ANCHOR_SHIFT), OUTPUT_RATE_HZ)
    level = 10 ** (level_dbfs(samples) / 20) if len(samples) else 0.0
    noise = np.random.default_rng(seed).normal(0.0, max(level, 1e-3), len(samples))
    coarse = np.round((samples + noise) * 16) / 16  # five bits
    return np.asarray(coarse.clip(-1, 1), np.float32)


def levelled(samples: Samples) -> Samples:
    """At the level of all clips, or below it if the peaks would be cut."""
    level, peak = level_dbfs(samples), float(np.abs(samples).max(initial=0.0))
    if not np.isfinite(level):
        return samples
    gain = min(10 ** ((LEVEL_DBFS - level) / 20), PEAK / peak)
    return np.asarray(samples * gain, np.float32)


class _Maker:
    """Collects clips under names that say nothing, and trials with their key."""

    def __init__(self, plan: TestPlan, sides: list[dict[str, Path]]) -> None:
        self._plan, self._sides = plan, sides
        self._rng = np.random.default_rng(plan.seed)
        self._clips: dict[str, str] = {}
        self._named: dict[str, str] = {}
        self._trials: list[dict[str, Any]] = []
        self._key: dict[str, dict[str, Any]] = {}

    def page(self, names: list[str]) -> Page:
        plan = self._plan
        order = [names[i] for i in self._rng.permutation(len(names))]
        for name in order:
            self._add("pair", name, self._clip(0, name), self._clip(1, name))
        for trial in self._trials[: plan.repeats]:
            again = trial | {"id": self._token("t")}
            self._key[again["id"]] = self._key[trial["id"]] | {"kind": "repeat"}
            self._trials.append(again)
        for number in range(plan.anchors):
            name = order[-1 - number % len(order)]
            side = number % 2
            clean = read_audio(self._sides[side][name], OUTPUT_RATE_HZ, max_seconds=MAX_CLIP_S)
            bad = spoiled(clean, plan.question, plan.seed + number)
            self._add("anchor", name, self._clip(side, name), self._kept("spoiled", bad))
        left_out = sorted(set.union(*(set(side) for side in self._sides)) - set(names))
        digest = hashlib.sha256("".join(self._clips.values()).encode())
        digest.update(repr(plan).encode())
        test = digest.hexdigest()[:12]
        trials = [self._trials[i] for i in self._rng.permutation(len(self._trials))]
        # a repeat is the later one of its group, so originals must come first
        trials.sort(key=lambda trial: self._key[trial["id"]]["kind"] == "repeat")
        told = {
            "id": test,
            "seed": plan.seed,
            "question": plan.question,
            "trials": trials,
            "clips": self._clips,
        }
        key = {
            "test": test,
            "question": plan.question,
            "systems": list(plan.systems),
            "trials": self._key,
            "clips": self._named,
        }
        template = (files("chroma_plugin") / "evaluation" / "listening_test.html").read_text(
            encoding="utf-8"
        )
        inside = json.dumps(told).replace("</", "<\\/")
        return Page(template.replace("/*PLAN*/", inside), key, len(names), left_out)

    def _add(self, kind: str, name: str, first: str, second: str) -> None:
        trial = {"id": self._token("t"), "group": self._token("g")}
        trial["first"], trial["second"] = (
            (first, second) if self._rng.random() < 0.5 else (second, first)
        )
        if _referred(self._plan):
            trial["reference"] = self._clip(2, name)
        self._key[trial["id"]] = {"kind": kind, "name": name, "group": trial["group"]}
        if kind == "anchor":
            self._key[trial["id"]]["right"] = first
        self._trials.append(trial)

    def _token(self, letter: str) -> str:
        return f"{letter}{self._rng.integers(2**40):010x}"

    def _clip(self, side: int, name: str) -> str:
        system = "reference" if side == 2 else self._plan.systems[side]
        path = self._sides[side][name]
        return self._kept(system, read_audio(path, OUTPUT_RATE_HZ, max_seconds=MAX_CLIP_S))

    def _kept(self, system: str, samples: Samples) -> str:
        import soundfile

        encoded = io.BytesIO()
        soundfile.write(encoded, levelled(samples), OUTPUT_RATE_HZ, format="FLAC")
        data = encoded.getvalue()
        tag = f"{system}/{hashlib.sha256(data).hexdigest()}/{self._plan.seed}"
        clip = f"c{hashlib.sha256(tag.encode()).hexdigest()[:10]}"
        self._clips[clip] = f"data:audio/flac;base64,{base64.b64encode(data).decode()}"
        self._named[clip] = system
        return clip


def _referred(plan: TestPlan) -> bool:
    return plan.question == "similarity"


def _recordings(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: no such folder. A test has a folder for each system"
            f"{', and `reference`' if folder.name == 'reference' else ''}, with recordings of the "
            "same names."
        )
    there = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return {path.stem: path for path in there}
