"""A whole recipe on hums instead of speech: every stage runs, is not run twice, and what comes
out speaks through the engine."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chroma_plugin.config import GREEDY, EngineConfig
from chroma_plugin.engine.engine import Engine
from chroma_plugin.engine.parts import load_parts
from chroma_plugin.errors import ChromaError, ConfigError
from chroma_plugin.model.chroma import ChromaModel, Generation
from chroma_plugin.model.weights import check_checkpoint
from chroma_plugin.reply import AudioChunk, EndReason, TurnDone
from chroma_plugin.training import domain, stages
from chroma_plugin.training.answers import ChatEndpoint, Domain, PairsFile
from chroma_plugin.training.ear import examine, load_ear
from chroma_plugin.training.notes import Notes
from chroma_plugin.training.recipe import (
    PACKAGED_RECIPE,
    STAGES,
    Recipe,
    read_recipe,
    recipe_of,
)
from chroma_plugin.training.records import Record, Records
from chroma_plugin.training.stages import train_recipe
from chroma_plugin.voice import Voice
from tests.training.tape import taped_engine
from tests.training.test_data import Hum

SMALL = {
    "sizes": {"preset": "smallest"},
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


async def test_the_checkpoint_answers_through_the_engine(recipe: Recipe) -> None:
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
    done = events[-1]
    assert isinstance(done, TurnDone)
    assert done.reason in (EndReason.END_OF_SPEECH, EndReason.MAX_SECONDS)
    chunks = [event for event in events if isinstance(event, AudioChunk)]
    made_ms = sum(len(chunk.pcm) for chunk in chunks) / 48
    assert made_ms == done.audio_ms  # 0 too: after so few steps it may think that it said it all


def test_what_is_done_is_not_done_again(recipe: Recipe) -> None:
    said: list[str] = []
    result = train_recipe(recipe, said.append)
    assert said == [f"[{stage}] is done" for stage in STAGES]
    assert set(result.figures) == set(STAGES)


def test_other_settings_in_the_same_folder_are_refused(recipe: Recipe) -> None:
    other = replace(recipe, thinker=replace(recipe.thinker, spelling=0.1))
    with pytest.raises(ConfigError, match=r"thinker: was made with other settings"):
        train_recipe(other, str)


def test_changed_texts_are_noticed(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain, "fingerprint", lambda: "of other words")
    with pytest.raises(ConfigError, match=r"data: was made of other texts .*domain of other words"):
        train_recipe(recipe, str)


def test_a_note_that_tells_no_texts_is_a_good_one(recipe: Recipe, tmp_path: Path) -> None:
    path = recipe.folder / "data" / "done.json"
    note = json.loads(path.read_bytes())
    assert note["source"].startswith("domain ")
    del note["source"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "done.json").write_text(json.dumps(note))
    assert Notes(replace(recipe, folder=tmp_path)).is_done("data")


def test_texts_of_a_file_that_is_gone_are_not_compared(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(f'{{"question": "q{n}", "answer": "a {n}"}}\n' for n in range(60)))
    recipe = replace(recipe_of(SMALL | {"data": {"pairs": str(pairs)}}), folder=tmp_path / "run")
    Notes(recipe).mark("data", {"turns": 1.0})
    assert Notes(recipe).source.startswith("pairs ")
    pairs.write_text(pairs.read_text() + '{"question": "one", "answer": "more"}\n')
    with pytest.raises(ConfigError, match="of other texts"):
        Notes(recipe).is_done("data")
    pairs.unlink()
    assert Notes(recipe).is_done("data")


def test_an_endpoint_answers_the_questions_of_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    data = {"endpoint": "http://x/v1", "endpoint_model": "m", "endpoint_key_env": "MY_KEY"}
    asked = Notes(replace(recipe_of({"data": data}), folder=tmp_path)).answers
    assert isinstance(asked, ChatEndpoint) and isinstance(asked.questions, Domain)
    assert (asked.url, asked.model, asked.api_key) == ("http://x/v1", "m", "secret")
    data = {"endpoint": "http://x/v1", "endpoint_model": "m", "questions": "q.jsonl"}
    asked = Notes(replace(recipe_of({"data": data}), folder=tmp_path)).answers
    assert asked == ChatEndpoint("http://x/v1", "m", PairsFile(Path("q.jsonl")))


def test_typed_texts_are_new_ones_of_training_and_cost_no_model_an_answer(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(f'{{"question": "q{n}", "answer": "a {n}"}}\n' for n in range(60)))
    made = (
        Notes(replace(recipe_of({"data": data}), folder=tmp_path)).texts
        for data in ({}, {"pairs": str(pairs)}, {"endpoint": "http://x/v1", "endpoint_model": "m"})
    )
    world, file, endpoint = made
    assert world is not None and file is not None and endpoint is None
    one = [(e.question, e.answer) for e in Domain().dialogue(np.random.default_rng(1), False, 5)]
    assert world(np.random.default_rng(1), 5) == one and len(one) == 5
    drawn = {file(np.random.default_rng(seed), 3)[0][0] for seed in range(400)}
    held = {
        PairsFile(pairs).dialogue(np.random.default_rng(n), True, 1)[0].question for n in range(99)
    }
    assert held and not drawn & held and len(drawn | held) == 60


def test_an_examination_below_the_bar_is_told(recipe: Recipe) -> None:
    """The recipe of this file is done; its checkpoint never gets an answer right."""
    assert train_recipe(recipe, str).missed == ()
    barred = replace(recipe, export=replace(recipe.export, least_right=0.9))
    assert train_recipe(barred, str).missed == ("right is 0.00; it must be 0.90 or more",)
    assert train_recipe(replace(barred, stages=("data",)), str).missed == ()


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


LOSSES = {
    # heads, thrown away afterwards, go up and down in so few steps
    "codec": ("mel", "log", "low", "wave"),
    "thinker": ("text", "spelling"),
    "speech": ("backbone", "depth"),
}
"""Of each stage, as they are called in its log."""


def losses(folder: Path) -> dict[str, tuple[float, float]]:
    """Every loss of a run that learns from nothing, first and last."""
    found = {}
    for stage, names in LOSSES.items():
        lines = (folder / stage / "run" / "log.jsonl").read_text().splitlines()
        steps = [entry for entry in map(json.loads, lines) if "loss" in entry]
        for name in names:
            values = [entry[name] for entry in steps if name in entry]
            found[f"{stage} {name}"] = values[0], values[-1]
    return found


async def engine_and_plain_loop(
    checkpoint: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[list[int]], list[list[int]]]:
    """The codes of a greedy reply to a record, by an engine and by the plain loop."""
    frames = 20  # fewer than end a reply that repeats itself
    made: list[Generation] = []
    plain = ChromaModel.generate_greedy

    def kept(self: ChromaModel, *given: object) -> Generation:
        made.append(plain(self, *given))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(ChromaModel, "generate_greedy", kept)
    asked = replace(record, turns=record.turns[:1])
    examine(load_ear(checkpoint), [asked], max_frames=frames)
    parts = load_parts(EngineConfig(model=checkpoint, device="cpu"))
    engine, tape = taped_engine(parts, frames)
    clip = record.references[0]
    voice = Voice.from_samples(clip.samples(), 24_000, clip.text)
    async with engine:
        session = await engine.open_session(voice=voice, sampling=GREEDY)
        tape.begin()
        session.push_audio(asked.turns[0].question.samples())
        events = [event async for event in session.commit_turn()]
        await session.aclose()
    done = events[-1]
    assert isinstance(done, TurnDone)
    return torch.stack(tape.codes[: done.frames]).tolist(), made[0].codes.tolist()


async def test_the_engine_says_of_it_what_the_plain_loop_says(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Records(recipe.folder / "data", "heldout")[0]
    engine, plain = await engine_and_plain_loop(recipe.folder / "checkpoint", record, monkeypatch)
    assert engine == plain and len(engine) > 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng is not installed")
async def test_the_two_minute_profile_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What CI runs: real speech, every loss lower at the end, and a checkpoint that speaks through
    the engine as through the plain loop."""
    monkeypatch.undo()  # no hums
    recipe = replace(read_recipe(PACKAGED_RECIPE, "ci"), folder=tmp_path)
    result = train_recipe(recipe, str)
    for name, (first, last) in losses(tmp_path).items():
        assert last < 0.95 * first, name
    assert result.figures["depth"]["depth"] < result.figures["speech"]["depth"]
    assert check_checkpoint(result.folder).config.weights == "trained"
    record = Records(tmp_path / "data", "heldout")[0]
    engine, plain = await engine_and_plain_loop(result.folder, record, monkeypatch)
    assert engine == plain and len(engine) > 1
