"""The light measure's axes: fitted to training voices, the same every time, and kept in a file."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load
from typer.testing import CliRunner

from chroma_plugin.audio import FRAME_SAMPLES, Samples
from chroma_plugin.errors import ChromaError
from chroma_plugin.evaluation import light_fit, speakers
from chroma_plugin.evaluation.light_fit import (
    AXES,
    equal_error,
    fitted,
    found_again,
    heard,
    packed,
)
from chroma_plugin.evaluation.speakers import FITTED, Axes, LightMeasure, packaged_axes
from chroma_plugin.evaluation.voice_traits import TRAITS
from chroma_plugin.training.codec.judge import copy_of, whole_frames
from chroma_plugin.training.codes import encode_folder
from chroma_plugin.training.data import DataPlan, build
from chroma_plugin.training.records import Records
from tests.evaluation.test_standards import VOICES, Singer


class Verbatim(torch.nn.Module):
    """A codec whose codes are the samples, all 1920 of a frame."""

    num_codebooks = FRAME_SAMPLES

    def __init__(self, scale: int = 10_000) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(float(scale)))
        self.upsample: Any = torch.nn.Module()
        self.upsample.conv = torch.nn.Linear(1, 1)

    @torch.no_grad()
    def encode(self, audio: torch.Tensor) -> torch.Tensor:
        frames = audio.reshape(len(audio), -1, FRAME_SAMPLES).transpose(1, 2)
        return (frames * self.scale).round().long()

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return (codes.transpose(1, 2).reshape(len(codes), 1, -1) / self.scale).float()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many voices to fit to as to find again; the singer's are the same ones."""
    where = tmp_path_factory.mktemp("records")
    plan = DataPlan(VOICES, VOICES, turns=(1, 1), speaker_dialogues=1, shard_dialogues=VOICES)
    build(plan, where, speaker=Singer())
    encode_folder(Verbatim(), where, variants=1)  # type: ignore[arg-type]
    return where


def clouds(rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """Thirty voices of twelve clips, apart in traits 1 and 4; trait 0 varies most, within them."""
    voices = np.zeros((30, 6))
    voices[:, [1, 4]] = rng.normal(0, [3, 2], (30, 2))
    clips = np.repeat(voices, 12, axis=0) + rng.normal(0, [9, 1, 1, 0.1, 1, 1], (360, 6))
    return clips + 50, [f"v{n // 12}" for n in range(360)]


# -- fit -------------------------------------------------------------------------------------


def test_the_axes_are_those_that_voices_differ_in() -> None:
    told, names = clouds(np.random.default_rng(0))
    found = fitted(told, names, axes=2)
    weights = np.abs(found.axes) * told.std(axis=0)
    assert set(weights.argmax(axis=1)) == {1, 4}
    along = told @ found.axes.T - found.center
    assert along.mean(axis=0) == pytest.approx([0, 0], abs=1e-9)
    within = along.reshape(30, 12, 2) - along.reshape(30, 12, 2).mean(axis=1, keepdims=True)
    assert np.square(within).sum(axis=(0, 1)) / (360 - 30) == pytest.approx([1, 1], rel=0.1)
    again = fitted(told, names, axes=2)
    assert np.array_equal(found.axes, again.axes) and np.array_equal(found.center, again.center)
    assert fitted(told[::-1], names[::-1], axes=2).axes @ told[0] - found.center == pytest.approx(
        along[0], abs=1e-6
    )


def test_too_few_voices_or_clips_are_refused() -> None:
    told, names = clouds(np.random.default_rng(0))
    with pytest.raises(ChromaError, match=r"30 voices.*31 voices of 2 clips each are needed"):
        fitted(told, names, axes=30)
    with pytest.raises(ChromaError, match="one has 1 clips"):
        fitted(told[11:], names[11:], axes=2)


def test_clips_and_copies_of_the_training_voices_are_heard(folder: Path) -> None:
    said: list[str] = []
    records = Records(folder)
    told, names = heard(records, Verbatim(), say=said.append)  # type: ignore[arg-type]
    assert told.shape == (len(names), TRAITS) and len(set(names)) == VOICES and said == []
    assert all(name.startswith("train-") for name in names)
    assert names.count(names[0]) == 5  # two references and an answer; copies of one and of it
    few, of = heard(records, Verbatim(), 3)  # type: ignore[arg-type]
    assert len(set(of)) == 3 and np.array_equal(few, told[: len(few)])


def test_codes_of_another_codec_are_refused(folder: Path) -> None:
    with pytest.raises(ChromaError, match=r"codes are another codec's.*--model"):
        heard(Records(folder), Verbatim(9_000))  # type: ignore[arg-type]


# -- check -----------------------------------------------------------------------------------


def test_voices_are_found_again_with_axes_that_were_kept(folder: Path) -> None:
    told, names = heard(Records(folder), Verbatim())  # type: ignore[arg-type]
    kept = load(packed(fitted(told, names, axes=8), "a test"))
    measure = LightMeasure(Axes(kept["axes"].astype(np.float64), kept["center"].astype(np.float64)))

    def through(samples: Samples) -> Samples:
        return copy_of(Verbatim(), whole_frames(samples))[0]  # type: ignore[arg-type]

    found = found_again(Records(folder, "heldout"), measure, through)
    assert found.answers == VOICES and len(found.nearest) == 4
    assert min(found.nearest.values()) >= 0.7 and max(found.equal_error.values()) < 0.2
    assert 0 < found.alike[1] < found.alike[0] < 1

    class Deaf:
        name = "deaf"

        def embed(self, samples: Samples) -> np.ndarray:
            return np.zeros(1)

        def compare(self, first: np.ndarray, second: np.ndarray) -> float:
            return 1.0

    found = found_again(Records(folder, "heldout"), Deaf(), through)
    assert set(found.nearest.values()) == {0.0}
    assert list(found.equal_error.values()) == pytest.approx([0.5] * 4)


def test_few_voices_are_none_to_choose_from(tmp_path: Path) -> None:
    build(DataPlan(0, 2, turns=(1, 1)), tmp_path, speaker=Singer())
    with pytest.raises(ChromaError, match="too few voices"):
        found_again(Records(tmp_path, "heldout"), LightMeasure(), lambda samples: samples)


def test_an_equal_error_rate() -> None:
    assert equal_error([0.8, 0.9, 0.7], [0.1, 0.2, 0.3]) == 0
    assert equal_error([0.1, 0.2], [0.8, 0.9]) == 1
    assert equal_error([0.9, 0.8, 0.7, 0.2], [0.1, 0.15, 0.3, 0.75]) == pytest.approx(0.25)


# -- what is packaged ------------------------------------------------------------------------


def test_the_packaged_file_is_what_it_says() -> None:
    path = Path(str(files("chroma_plugin") / "assets" / FITTED))
    with safe_open(path, framework="np") as file:
        note = file.metadata()["what"]
    said = re.fullmatch(
        r"axes of LightMeasure, by light_fit: (\d+) voices, (\d+) clips and copies, codes \w+ 0",
        note,
    )
    assert said and int(said[2]) > 6 * int(said[1]) > 6 * 300
    axes = packaged_axes()
    assert axes.axes.shape == (AXES, TRAITS) and axes.center.shape == (AXES,)
    assert np.isfinite(axes.axes).all() and np.linalg.matrix_rank(axes.axes) == AXES
    assert path.stat().st_size < 20_000


def test_axes_of_other_traits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = packaged_axes()
    other = Axes(axes.axes[:, 1:], axes.center)
    with pytest.raises(ChromaError, match=rf"not of {TRAITS} traits. Fit them anew"):
        LightMeasure(other)
    monkeypatch.setattr(speakers, "packaged_axes", lambda: other)
    with pytest.raises(ChromaError, match="light_fit"):
        speakers.speaker_measure("light")


# -- commands --------------------------------------------------------------------------------


def test_the_commands_fit_and_check(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ear:
        def __init__(self) -> None:
            self.model: Any = type("Model", (), {"codec": Verbatim()})

        def through_codec(self, samples: Samples) -> Samples:
            return copy_of(self.model.codec, whole_frames(samples))[0]

    monkeypatch.setattr(light_fit, "load_ear", lambda model: Ear())
    monkeypatch.setattr(light_fit, "AXES", 8)
    made = []
    for name in ("one", "two"):
        told = CliRunner().invoke(light_fit.app, ["fit", str(folder), "-o", str(tmp_path / name)])
        assert told.exit_code == 0, told.output
        assert f"{VOICES} voices, {5 * VOICES} clips and copies" in told.stdout
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1] and load(made[0])["axes"].shape == (8, TRAITS)
    told = CliRunner().invoke(light_fit.app, ["check", str(folder)])
    assert told.exit_code == 0, told.output
    assert told.stdout.startswith(f"light, {VOICES} answers: nearest of 12")
    assert told.stdout.count("among") == 4 and "copies of one voice 0." in told.stdout


def test_a_command_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["light_fit", "fit", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: .*holds no records of 'train'"):
        light_fit.main()
