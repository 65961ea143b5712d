"""A whole recipe on hums instead of speech: every stage runs, is not run twice, and what comes
out speaks through the engine."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chroma_plugin.config import GREEDY, EngineConfig
from chroma_plugin.engine.engine import Engine
from chroma_plugin.errors import ChromaError, ConfigError
from chroma_plugin.model.weights import check_checkpoint
from chroma_plugin.reply import AudioChunk, TurnDone
from chroma_plugin.training import stages
from chroma_plugin.training.recipe import (
    PACKAGED_RECIPE,
    STAGES,
    Recipe,
    read_recipe,
    recipe_of,
)
from chroma_plugin.training.stages import train_recipe
from chroma_plugin.voice import Voice
from tests.training.test_data import Hum

SMALL = {
    "sizes": {"preset": "packaged"},
    "data": {"train": 4, "heldout": 2, "shard_dialogues": 4, "speaker_dialogues": 2},
    "codec": {"steps": 4, "rows": 4, "frames": 4, "corpus_minutes": 0.3, "judged": 2,
              "held_out_minutes": 0.1, "warmup_steps": 1},
    "encode": {"variants": 2},
    "thinker": {"steps": 6, "turns": 10, "clips": 6, "evaluated": 2, "warmup_steps": 1},
    "speech": {"steps": 8, "replies": 2, "held_out": 2, "warmup_steps": 1},
    "depth": {"steps": 3, "replies": 2, "warmup_steps": 1},
    "export": {"examined": 1},
}  # fmt: skip


@pytest.fixture(autouse=True)
def hums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_speaker", lambda recipe: Hum())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Recipe:
    """Done once for all tests of this file."""
    recipe = replace(recipe_of(SMALL), folder=folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "_speaker", lambda recipe: Hum())
        said: list[str] = []
        result = train_recipe(recipe, said.append)
    assert result.stopped == "" and result.folder == folder / "checkpoint"
    assert [line for line in said if line.startswith("[")][0::2] == [f"[{s}]" for s in STAGES]
    assert set(result.figures) == set(STAGES)
    return recipe


@pytest.mark.parametrize("stage", ["codec", "thinker", "speech", "depth"])
def test_each_training_stage_leaves_its_log(recipe: Recipe, stage: str) -> None:
    path = recipe.folder / stage / "run" / "log.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert any("eval" in line for line in lines)
    note = json.loads((recipe.folder / stage / "done.json").read_bytes())
    assert note["figures"] == [line["eval"] for line in lines if "eval" in line][-1]


async def test_the_checkpoint_speaks_through_the_engine(recipe: Recipe) -> None:
    folder = recipe.folder / "checkpoint"
    report = check_checkpoint(folder)
    assert report.config.weights == "trained"
    clip = Hum().speak("x" * 60, 150)
    engine = Engine(EngineConfig(model=str(folder), device="cpu", max_replies=1, max_reply_s=1.0))
    await engine.start()
    try:
        voice = Voice.from_samples(clip, 24_000, "This is what is hummed in the clip.")
        session = await engine.open_session(voice=voice, sampling=GREEDY)
        session.push_audio(np.sin(np.arange(16_000) * 0.05).astype(np.float32) * 0.1)
        events = [event async for event in session.commit_turn()]
        await session.aclose()
    finally:
        await engine.close()
    assert any(isinstance(event, AudioChunk) for event in events)
    assert isinstance(events[-1], TurnDone)


def test_what_is_done_is_not_done_again(recipe: Recipe) -> None:
    said: list[str] = []
    result = train_recipe(recipe, said.append)
    assert said == [f"[{stage}] is done" for stage in STAGES]
    assert set(result.figures) == set(STAGES)


def test_other_settings_in_the_same_folder_are_refused(recipe: Recipe) -> None:
    other = replace(recipe, thinker=replace(recipe.thinker, spelling=0.1))
    with pytest.raises(ConfigError, match=r"thinker: was made with other settings"):
        train_recipe(other, str)


def test_a_stage_left_out_must_be_there(tmp_path: Path) -> None:
    recipe = replace(recipe_of(SMALL), folder=tmp_path, stages=("encode",))
    with pytest.raises(ChromaError, match=r"stage 'codec' has not been done"):
        train_recipe(recipe, str)


def test_parts_are_taken_from_a_checkpoint(recipe: Recipe, tmp_path: Path) -> None:
    made = str(recipe.folder / "checkpoint")
    raw = SMALL | {"codec": {"take": made}, "thinker": {"take": made}}
    taking = replace(recipe_of(raw), folder=tmp_path, stages=("codec", "thinker"))
    result = train_recipe(taking, str)
    assert result.figures == {"codec": {}, "thinker": {}}
    for name in ("tokenizer.json", "config.json"):
        assert (tmp_path / "start" / name).exists()
    before, after = (stages._Run(r, str).model("codec", "thinker") for r in (recipe, taking))
    for (name, one), (_, other) in zip(
        before.thinker.state_dict().items(), after.thinker.state_dict().items(), strict=True
    ):
        assert (one - other).abs().max() < 0.02, name  # the checkpoint is bfloat16


def test_another_checkpoint_learns_to_speak(recipe: Recipe, tmp_path: Path) -> None:
    """As the released model would be: its codec and thinker stay as they are."""
    base = recipe.folder / "checkpoint"
    raw = {k: v for k, v in SMALL.items() if k not in ("codec", "thinker", "sizes")}
    raw["speech"] = {**SMALL["speech"], "lora": 4}
    raw["depth"] = {**SMALL["depth"], "lora": 4}
    raw["recipe"] = {"base": str(base)}
    tuning = replace(recipe_of(raw), folder=tmp_path)
    result = train_recipe(tuning, str)
    assert result.stopped == ""
    before, after = (stages.load_checkpoint(folder) for folder in (base, result.folder))
    same = {"thinker": True, "codec": True, "backbone": False, "depth": False}
    for part, wanted in same.items():
        pairs = zip(getattr(before, part).state_dict().values(),
                    getattr(after, part).state_dict().values(), strict=True)  # fmt: skip
        assert all(bool((a == b).all()) for a, b in pairs) is wanted, part


def test_a_signal_stops_a_stage_and_the_same_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(recipe_of(SMALL), folder=tmp_path, stages=("data", "codec"))
    train_recipe(replace(recipe, stages=("data",)), str)
    real = stages.train_codec

    def interrupted(*arguments: object, **named: object) -> object:
        codec, outcome = real(*arguments, **named)  # type: ignore[arg-type]
        return codec, replace(outcome, why="stopped")

    monkeypatch.setattr(stages, "train_codec", interrupted)
    result = train_recipe(recipe, str)
    assert result.stopped == "codec" and "codec" not in result.figures
    monkeypatch.setattr(stages, "train_codec", real)
    assert train_recipe(recipe, str).stopped == ""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng is not installed")
def test_the_two_minute_profile_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CI runs: real speech, every loss lower at the end, a checkpoint that loads."""
    monkeypatch.undo()  # no hums
    recipe = replace(read_recipe(PACKAGED_RECIPE, "ci"), folder=tmp_path)
    result = train_recipe(recipe, str)
    for stage, loss in (("codec", "mel"), ("thinker", "text"), ("speech", "backbone")):
        lines = (tmp_path / stage / "run" / "log.jsonl").read_text().splitlines()
        found = [entry[loss] for entry in map(json.loads, lines) if loss in entry]
        assert found[-1] < 0.9 * found[0], stage
    assert result.figures["depth"]["depth"] < result.figures["speech"]["depth"]
    assert check_checkpoint(result.folder).config.weights == "trained"
