"""The notes of a run: which of a recipe's stages are done, with which settings and of which texts.

A note is `done.json` in the stage's folder, written last. What it was made with must be what the
recipe says now: parts of two recipes are never mixed. Knows nothing of what stages do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from chroma_plugin.audio import replace_file
from chroma_plugin.errors import ChromaError, ConfigError
from chroma_plugin.training.answers import Answers, ChatEndpoint, Domain, PairsFile
from chroma_plugin.training.recipe import STAGES, Recipe

DONE = "done.json"


class Notes:
    """What is done in a recipe's folder.

    Args:
        recipe: its folder is made if it is not there.

    Attributes:
        figures: of the stages that are done, by name, as far as they were asked for.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.folder = recipe, recipe.folder
        self.figures: dict[str, Mapping[str, float]] = {}
        self.folder.mkdir(parents=True, exist_ok=True)

    def is_done(self, stage: str) -> bool:
        """Whether a stage's note is there.

        Raises:
            ConfigError: it is of other settings, or of other texts.
        """
        path = self.folder / stage / DONE
        if not path.exists():
            return False
        note = json.loads(path.read_bytes())
        again = (
            "Take another folder, or delete this one and those of the stages after it "
            f"({', '.join(STAGES[STAGES.index(stage) :])})."
        )
        if note["key"] != self.recipe.key(stage):
            raise ConfigError(
                f"{path.parent}: was made with other settings than the recipe's, or after a stage "
                f"that was. {again}"
            )
        source = note.get("source", "")  # which notes of old do not tell
        if source and self.source and source != self.source:
            raise ConfigError(
                f"{path.parent}: was made of other texts ({source}) than there are now "
                f"({self.source}). {again}"
            )
        self.figures[stage] = note["figures"]
        return True

    def mark(self, stage: str, figures: Mapping[str, float]) -> None:
        """Writes down that a stage is done, and what came of it."""
        self.figures[stage] = figures
        note = {"key": self.recipe.key(stage), "source": self.source, "figures": dict(figures)}
        replace_file(self.place(stage) / DONE, json.dumps(note, indent=1).encode())

    def need(self, stage: str) -> Path:
        """The folder of a stage that must have been done.

        Raises:
            ChromaError: it has not been.
        """
        if not self.is_done(stage):
            raise ChromaError(
                f"The stage {stage!r} has not been done in {self.folder}, and what comes after it "
                "needs it: put it into the recipe's stages."
            )
        return self.folder / stage

    def place(self, stage: str) -> Path:
        """The folder of a stage, made if it is not there."""
        folder = self.folder / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def answers(self) -> Answers:
        """Where dialogues come from."""
        options = self.recipe.data_options
        if not options.endpoint:
            return _texts(options.pairs)
        key = os.environ.get(options.endpoint_key_env, "") if options.endpoint_key_env else ""
        questions = _texts(options.questions)
        return ChatEndpoint(options.endpoint, options.endpoint_model, questions, api_key=key)

    @property
    def texts(self) -> Callable[[np.random.Generator, int], list[tuple[str, str]]] | None:
        """Ever new questions and answers of training; None where each would be asked of a model."""
        answers = self.answers
        if isinstance(answers, ChatEndpoint):
            return None
        return lambda rng, turns: [
            (exchange.question, exchange.answer) for exchange in answers.dialogue(rng, False, turns)
        ]

    @cached_property
    def source(self) -> str:
        """What the texts depend on; "" where that cannot be read, and so not be compared."""
        try:
            return self.answers.source
        except ChromaError:
            return ""


def _texts(pairs: str) -> Answers:
    return PairsFile(Path(pairs)) if pairs else Domain()
