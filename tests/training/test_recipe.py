"""Recipes: what a TOML file may say, and how it is told that it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from chroma_plugin.errors import ConfigError
from chroma_plugin.training.recipe import (
    PACKAGED_RECIPE,
    STAGES,
    Recipe,
    changed,
    read_recipe,
    recipe_of,
)
from chroma_plugin.training.tiny import SMALLEST, TRAINABLE


@pytest.mark.parametrize("profile", [None, "reduced", "ci", "gpu"])
def test_the_packaged_recipe_is_a_good_one(profile: str | None) -> None:
    recipe = read_recipe(PACKAGED_RECIPE, profile)
    assert recipe.stages == STAGES
    assert recipe.sizes == (SMALLEST if profile == "ci" else TRAINABLE)
    assert recipe.depth.stage == "depth" and recipe.speech.stage == "both"
    assert not recipe.codec.loop.autocast
    loops = (recipe.codec.loop, recipe.thinker_loop, recipe.speech_loop, recipe.depth_loop)
    minutes = [loop.minutes or 0 for loop in loops]
    if profile == "reduced":
        assert sum(minutes) < 18
        assert recipe.export.least_ended > 0 and recipe.export.least_right > 0
    if profile == "gpu":
        assert minutes == [12, 3, 8.5, 1.5]
    if profile == "ci":
        assert all(loop.steps and loop.steps <= 50 for loop in loops)


def test_a_profile_takes_the_place_of_what_is_above(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        '[recipe]\nfolder = "here"\nseed = 3\n[thinker]\nminutes = 5\nlr = 1\n'
        "[profile.short.thinker]\nminutes = 1\n"
    )
    plain, short = read_recipe(path), read_recipe(path, "short")
    assert (plain.thinker_loop.minutes, plain.thinker_loop.lr) == (5.0, 1.0)
    assert (short.thinker_loop.minutes, short.thinker_loop.lr) == (1.0, 1.0)
    assert plain.folder == Path("here") and plain.data.seed == 3
    assert plain.codec.loop.seed == plain.speech_loop.seed == 3


def test_an_empty_recipe_has_the_defaults() -> None:
    recipe = recipe_of({})
    assert recipe.sizes == TRAINABLE and recipe.data.train == 4000
    assert recipe.thinker_loop.betas == (0.9, 0.98)
    assert recipe.depth.depth_share == 1.0


def test_steps_alone_are_a_budget() -> None:
    loop = recipe_of({"thinker": {"steps": 7}}).thinker_loop
    assert loop.steps == 7 and loop.minutes is None


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"speach": {}}, r"speach is unknown; do you mean speech\?"),
        ({"speech": 3}, r"speech is 3; it must be a table, \[speech\]"),
        ({"recipe": {"sead": 1}}, r"\[recipe\]: sead is unknown; do you mean seed\?"),
        ({"recipe": {"seed": "1"}}, r"seed is '1'; it must be a whole number"),
        ({"recipe": {"seed": True}}, r"seed is True; it must be a whole number"),
        ({"recipe": {"stages": "data"}}, r"stages is 'data'; it must be a list"),
        ({"recipe": {"stages": ["date"]}}, r"stages has 'date'; the stages are data, codec"),
        ({"recipe": {"device": "cuda:7"}}, r"torch sees no CUDA device"),
        ({"sizes": {"preset": "huge"}}, r"preset is 'huge'; use trainable or smallest"),
        ({"data": {"train": -1}}, r"\[data\]: train is -1"),
        ({"data": {"turns": [1]}}, r"turns is \[1\]; it must be a list of 2"),
        ({"thinker": {"minutes": 0}}, r"\[thinker\]"),
        ({"thinker": {"turns": 2}}, r"turns is 2; it must be 10 or more"),
        ({"codec": {"autocast": True}}, r"float32"),
        ({"speech": {"stage": "third"}}, r"stage is 'third'; use 'both' or 'depth'"),
        ({"speech": {"lr": "fast"}}, r"\[speech\] lr is 'fast'; it must be a number"),
        ({"speech": {"recompute": 1}}, r"recompute is 1; it must be true or false"),
        ({"depth": {"numbering": "training"}}, r"they must be equal"),
        ({"export": {"dtype": "int8"}}, r"dtype is 'int8'; use 'float32' or 'bfloat16'"),
        ({"encode": {"lr": 1.0}}, r"\[encode\]: lr is unknown"),
        ({"data": {"endpoint": "http://x/v1"}}, r"endpoint and endpoint_model belong together"),
        ({"data": {"endpoint_model": "m"}}, r"endpoint and endpoint_model belong together"),
        ({"data": {"questions": "q.jsonl"}}, r"\[data\]: questions is of use with an endpoint"),
        ({"data": {"endpoint_key_env": "KEY"}}, r"endpoint_key_env is of use with an endpoint"),
        (
            {"data": {"endpoint": "http://x/v1", "endpoint_model": "m", "pairs": "p.jsonl"}},
            r"pairs holds answers and the endpoint makes them",
        ),
        ({"export": {"temperature": 0}}, r"\[export\]: temperature is 0.0; it must be above 0"),
        ({"export": {"least_right": 1.5}}, r"\[export\]: least_right is 1\.5; it must be a share"),
        ({"export": {"least_ended": 0.5, "examined": 0}}, r"least_ended needs an examination"),
    ],
)
def test_what_is_wrong_is_named(raw: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_of(raw, "my.toml")


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[recipe\n")
    with pytest.raises(ConfigError, match=r"bad\.toml: is not readable as TOML"):
        read_recipe(tmp_path / "bad.toml")
    with pytest.raises(ConfigError, match="no profile 'fast'; its profiles are: reduced, ci, gpu"):
        read_recipe(PACKAGED_RECIPE, "fast")


def test_a_stage_depends_on_its_settings_and_those_before() -> None:
    base = Recipe()
    other = recipe_of({"thinker": {"spelling": 0.1}})
    same = recipe_of({"thinker": {"minutes": 99}, "data": {"workers": 9, "threads": 7}})
    plain = recipe_of({})
    assert plain.key("encode") == other.key("encode")
    assert plain.key("thinker") != other.key("thinker")
    assert plain.key("export") != other.key("export")
    assert plain.key("export") == same.key("export")
    assert len({base.key(stage) for stage in STAGES}) == len(STAGES)


def test_what_came_later_changes_no_key_of_a_recipe_without_it() -> None:
    """Folders that are there stay good: keys are made of what these options show."""
    plain = recipe_of({})
    assert repr(plain.data_options) == (
        "DataOptions(pairs='', speaker='espeak', voices=('default',), held_out_voices=())"
    )
    assert repr(plain.export) == (
        "ExportOptions(dtype='bfloat16', codec_dtype='float16', temperature=1.0, examined=24)"
    )
    barred = recipe_of({"export": {"least_ended": 0.9}})
    assert barred.key("export") == plain.key("export")  # the same folder is shipped


def test_another_endpoint_model_or_file_of_questions_is_another_key() -> None:
    asked = {"endpoint": "http://localhost:8000/v1", "endpoint_model": "small"}
    made = [
        recipe_of({"data": data}).key("data")
        for data in (
            {},
            asked,
            asked | {"endpoint_model": "large"},
            asked | {"endpoint": "http://localhost:8001/v1"},
            asked | {"questions": "q.jsonl"},
        )
    ]
    assert len(set(made)) == len(made)
    with_key = recipe_of({"data": asked | {"endpoint_key_env": "KEY"}})
    assert with_key.key("data") == made[1]  # whose key is used makes no other answers


def test_a_bar_names_what_was_missed() -> None:
    bar = recipe_of({"export": {"least_right": 0.5, "least_ended": 0.9}}).export
    assert bar.missed({"right": 0.5, "understood": 0.0, "ended": 0.9}) == ()
    assert bar.missed({"right": 0.25, "understood": 1.0, "ended": 1.0}) == (
        "right is 0.25; it must be 0.50 or more",
    )
    assert len(bar.missed({})) == 2
    assert recipe_of({}).export.missed({}) == ()


def test_folder_and_stages_may_be_changed(tmp_path: Path) -> None:
    recipe = changed(Recipe(), tmp_path, ["codec"])
    assert (recipe.folder, recipe.stages) == (tmp_path, ("codec",))
    assert changed(Recipe()) == Recipe()
    with pytest.raises(ConfigError, match="--stage has 'coded'"):
        changed(Recipe(), None, ["coded"])
