"""What a recipe says of a stage beside its plan: where things come from, and what is kept of them.

Knows no TOML. Fields that are not in `repr` do not take part in the keys of `Recipe.key`, by which
folders that were made before such a field was there stay good.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from chroma_plugin.errors import ConfigError


@dataclass(frozen=True, slots=True)
class DataOptions:
    """How the records are made.

    Attributes:
        pairs: a file of dialogues as `PairsFile` reads it; empty: the small world.
        endpoint: an OpenAI-compatible address whose model answers, as `ChatEndpoint` takes it.
        endpoint_model: its model.
        endpoint_key_env: the environment variable that holds its key; empty: it needs none.
        questions: a file as `pairs` whose questions it is asked; empty: those of the small world.
        speaker: `espeak`, or a command as `CommandSpeaker` takes it.
        voices, held_out_voices: what `{voice}` may be in that command.
        workers: processes.
        threads: dialogues that each of them speaks at a time.
    """

    pairs: str = ""
    speaker: str = "espeak"
    voices: tuple[str, ...] = ("default",)
    held_out_voices: tuple[str, ...] = ()
    workers: int = field(default=1, repr=False)  # change nothing in what is made
    threads: int = field(default=2, repr=False)
    endpoint: str = field(default="", repr=False)
    endpoint_model: str = field(default="", repr=False)
    endpoint_key_env: str = field(default="", repr=False)
    questions: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if bool(self.endpoint) != bool(self.endpoint_model):
            raise ConfigError("endpoint and endpoint_model belong together: address and name.")
        if self.endpoint and self.pairs:
            raise ConfigError(
                "pairs holds answers and the endpoint makes them; name a file of questions by "
                "questions, or leave one of the two out."
            )
        if not self.endpoint and (self.questions or self.endpoint_key_env):
            given = "questions" if self.questions else "endpoint_key_env"
            raise ConfigError(f"{given} is of use with an endpoint only, and there is none.")


@dataclass(frozen=True, slots=True)
class CodecOptions:
    """What the codec learns from.

    Attributes:
        corpus_minutes: speech, of voices and texts of its own.
        held_out_minutes: likewise, to be judged by.
        take: a checkpoint folder whose codec is taken as it is; nothing is trained then.
    """

    corpus_minutes: float = 120.0
    held_out_minutes: float = 4.0
    take: str = ""


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How codes are made.

    Attributes:
        variants: how often each clip is encoded, begun at another place within a frame.
        batch: clips encoded at a time.
    """

    variants: int = 4
    batch: int = 16


@dataclass(frozen=True, slots=True)
class ThinkerOptions:
    """Where the thinker comes from, and what it hears beside the questions of the records.

    Attributes:
        take: a checkpoint folder whose thinker and tokenizer are taken as they are; nothing is
            trained then.
        questions: further dialogues, of which only the questions are spoken; 0.3 MB each.
        copies: share of the replies that it hears as the codec gives them back: as its own ear
            will hear them.
    """

    take: str = ""
    questions: int = 0
    copies: float = 0.5

    def __post_init__(self) -> None:
        if self.questions < 0:
            raise ConfigError(f"questions is {self.questions}; it must be 0 or more.")
        if not 0 <= self.copies <= 1:
            raise ConfigError(f"copies is {self.copies}; it must be a share, 0 to 1.")


@dataclass(frozen=True, slots=True)
class SpeechOptions:
    """What replies there are to learn from.

    Attributes:
        said: share of the answers that are spoken word for word, without a question before.
        references: share of replies whose text is that of another reference clip.
        held_out: records of an evaluation.
    """

    said: float = 0.1
    references: float = 0.15
    held_out: int = 120


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What is shipped.

    Attributes:
        dtype: of thinker, backbone and depth decoder.
        codec_dtype: of a codec trained here; one that was there before is kept in float32.
        temperature: of the codes as they were learnt, at which the checkpoint draws when it is
            asked for 1, the released default. A small model is surer of its best codes than of
            the rest, so it speaks clearer below 1, and its users should not have to know.
        examined: held-out questions that the finished checkpoint is asked.
        least_right, least_understood, least_ended: the bar: shares of these replies that the
            examination must find, or the run has failed.
    """

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    codec_dtype: Literal["float32", "float16"] = "float16"
    temperature: float = 1.0
    examined: int = 24
    least_right: float = field(default=0.0, repr=False)
    least_understood: float = field(default=0.0, repr=False)
    least_ended: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature is {self.temperature}; it must be above 0, such as 0.7, or 1 for "
                "codes that are drawn as they were learnt."
            )
        for name, least in self.bar.items():
            if not 0 <= least <= 1:
                raise ConfigError(f"least_{name} is {least}; it must be a share, 0 to 1.")
            if least and not self.examined:
                raise ConfigError(f"least_{name} needs an examination; examined is 0.")

    @property
    def bar(self) -> dict[str, float]:
        """The least share of each figure of the examination."""
        names = ("right", "understood", "ended")
        return {name: getattr(self, f"least_{name}") for name in names}

    def missed(self, figures: Mapping[str, float]) -> tuple[str, ...]:
        """What of the bar an examination misses, a line each; nothing if there is no bar."""
        return tuple(
            f"{name} is {figures.get(name, 0.0):.2f}; it must be {least:.2f} or more"
            for name, least in self.bar.items()
            if figures.get(name, 0.0) < least
        )
