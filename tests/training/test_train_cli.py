"""`chroma-plugin train`: what it refuses and prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from chroma_plugin import cli
from chroma_plugin.training import stages
from chroma_plugin.training.recipe import Recipe
from chroma_plugin.training.stages import Result as Trained


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["train", *map(str, arguments)])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    recipes: list[Recipe] = []

    def train_recipe(recipe: Recipe, say: Any) -> Trained:
        recipes.append(recipe)
        say("[data]")
        stopped = "codec" if recipe.seed else ""
        figures = {"data": {"turns": 3.0}}
        missed = recipe.export.missed({"right": 0.4, "ended": 1.0})
        return Trained(recipe.folder / "checkpoint", stopped, figures, missed)

    monkeypatch.setattr(stages, "train_recipe", train_recipe)
    return recipes


def test_the_packaged_recipe_is_run(asked: list[Recipe], tmp_path: Path) -> None:
    done = run("--profile", "reduced", "--folder", tmp_path, "--stage", "data", "--stage", "codec")
    assert done.exit_code == 0, done.output
    assert asked[0].folder == tmp_path and asked[0].stages == ("data", "codec")
    assert "[data]" in done.stdout


def test_json_stands_alone_on_stdout(asked: list[Recipe], tmp_path: Path) -> None:
    done = run("--folder", tmp_path, "--json")
    line = json.loads(done.stdout)
    assert line == {
        "folder": str(tmp_path / "checkpoint"),
        "stopped": "",
        "missed": [],
        "figures": {"data": {"turns": 3.0}},
    }


def test_a_stopped_run_says_so_by_its_exit_code(asked: list[Recipe], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[recipe]\nseed = 1\n")
    assert run("--config", path).exit_code == 130


def test_a_missed_bar_is_told_and_the_command_fails(asked: list[Recipe], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[export]\nleast_right = 0.5\nleast_ended = 0.9\n")
    done = run("--config", path, "--json")
    assert done.exit_code == 1
    assert "misses the bar" in done.stderr
    assert "right is 0.40; it must be 0.50 or more" in done.stderr and "ended" not in done.stderr
    assert json.loads(done.stdout)["missed"] == ["right is 0.40; it must be 0.50 or more"]
    path.write_text("[export]\nleast_right = 0.4\n")
    assert run("--config", path).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--config", "none.toml"), "no such file"),
        (("--profile", "none"), "no profile 'none'"),
        (("--stage", "none"), "--stage has 'none'"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments: tuple[str, ...], told: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert told in done.stderr and done.stderr.count("\n") == 1


def test_help_is_printed() -> None:
    done = run("--help")
    assert done.exit_code == 0 and "--profile" in done.stdout
