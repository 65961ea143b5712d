"""A recipe: what `chroma-plugin train` is told by a TOML file, checked before anything is done.

Every table is named after a stage; its keys are the fields of that stage's plan and of `LoopPlan`.
`[profile.NAME]` holds the same tables, whose keys then take the place of those above.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from chroma_plugin.errors import ConfigError
from chroma_plugin.training.codec import CodecPlan
from chroma_plugin.training.data import DataPlan
from chroma_plugin.training.loop import LoopPlan
from chroma_plugin.training.options import (
    CodecOptions,
    DataOptions,
    EncodeOptions,
    ExportOptions,
    SpeechOptions,
    ThinkerOptions,
)
from chroma_plugin.training.speaking import SpeakingPlan
from chroma_plugin.training.thinker import ThinkerPlan
from chroma_plugin.training.tiny import SMALLEST, TRAINABLE, TinySizes

T = TypeVar("T")

STAGES = ("data", "codec", "encode", "thinker", "speech", "depth", "export")
"""In the order in which they run: `speech` is stage one, `depth` stage two."""
PACKAGED_RECIPE = Path(__file__).parent / "tiny.toml"
SIZES = {"trainable": TRAINABLE, "smallest": SMALLEST}
NOT_IN_A_FILE = {"loop", "config", "weights", "resolutions", "seed", "device"}
"""Fields that follow from others, or that nobody should set by hand."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that a run is told.

    Attributes:
        folder: where all of it goes.
        base: a checkpoint to go on from, as `--model` names one: its codec and its thinker stay as
            they are, and only its speech is trained. Empty: a small one is made from nothing.
        seed: of everything.
        device: auto, cpu, cuda or cuda:N.
        stages: which of `STAGES` to run; what the others would make must be there.
    """

    folder: Path = Path("runs/tiny")
    base: str = ""
    seed: int = 0
    device: str = "auto"
    stages: tuple[str, ...] = STAGES
    sizes: TinySizes = TRAINABLE
    data: DataPlan = field(default_factory=DataPlan)
    data_options: DataOptions = field(default_factory=DataOptions)
    codec: CodecPlan = field(default_factory=CodecPlan)
    codec_options: CodecOptions = field(default_factory=CodecOptions)
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    thinker: ThinkerPlan = field(default_factory=ThinkerPlan)
    thinker_loop: LoopPlan = field(default_factory=lambda: LoopPlan(minutes=15))
    thinker_options: ThinkerOptions = field(default_factory=ThinkerOptions)
    speech: SpeakingPlan = field(default_factory=SpeakingPlan)
    speech_loop: LoopPlan = field(default_factory=lambda: LoopPlan(minutes=60))
    speech_options: SpeechOptions = field(default_factory=SpeechOptions)
    depth: SpeakingPlan = field(default_factory=lambda: SpeakingPlan(stage="depth"))
    depth_loop: LoopPlan = field(default_factory=lambda: LoopPlan(minutes=10))
    export: ExportOptions = field(default_factory=ExportOptions)

    def key(self, stage: str) -> str:
        """A hash of all that a stage's result depends on: its own settings and those of every
        stage before it. How long and on what device is not among them."""
        parts: list[Any] = [self.base, self.seed, self.sizes]
        for name in STAGES[: STAGES.index(stage) + 1]:
            parts += [getattr(self, name), getattr(self, f"{name}_options", None)]
        parts = [
            dataclasses.replace(p, loop=LOOP) if isinstance(p, CodecPlan) else p for p in parts
        ]
        asked = self.data_options
        if asked.endpoint:  # which `repr` leaves out, as `options` says
            parts.append((asked.endpoint, asked.endpoint_model, asked.questions))
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


LOOP = LoopPlan(steps=1, autocast=False)
BASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # stage: what differs from the defaults of LoopPlan; and from those of the stage's plan
    "codec": ({"minutes": 90.0, "weight_decay": 1e-4, "clip": 2.0, "autocast": False}, {}),
    "thinker": ({"minutes": 15.0, "lr": 1.2e-3, "betas": (0.9, 0.98), "weight_decay": 0.02}, {}),
    "speech": ({"minutes": 60.0, "lr": 1.5e-3, "betas": (0.9, 0.97), "weight_decay": 0.03}, {}),
    "depth": (
        {"minutes": 10.0, "lr": 5e-4, "betas": (0.9, 0.97), "weight_decay": 0.03},
        {"stage": "depth", "depth_share": 1.0},
    ),
}


def changed(
    recipe: Recipe, folder: Path | None = None, stages: Sequence[str] | None = None
) -> Recipe:
    """The recipe in another folder, or with some of its stages only, where they are given.

    Raises:
        ConfigError: there is no such stage.
    """
    folder, wanted = folder or recipe.folder, tuple(stages or recipe.stages)
    _check_stages(wanted, "--stage")
    return dataclasses.replace(recipe, folder=folder, stages=wanted)


def read_recipe(path: Path, profile: str | None = None) -> Recipe:
    """Reads a TOML file.

    Args:
        path: the file.
        profile: of its profiles, if one is to be used.

    Raises:
        ConfigError: no such file or profile, no TOML, an unknown table or key, or a value that is
            out of range; names the key.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; name the TOML file of a recipe.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: is not readable as TOML ({error}).") from error
    profiles = raw.pop("profile", {})
    if profile is not None:
        if not isinstance(profiles, dict) or profile not in profiles:
            known = ", ".join(profiles) or "none"
            raise ConfigError(f"{path}: has no profile {profile!r}; its profiles are: {known}.")
        raw = _merged(raw, profiles[profile])
    return recipe_of(raw, str(path))


def recipe_of(raw: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """The same from parsed TOML; `where` is what messages call it."""
    tables = {"recipe", "sizes", *STAGES}
    _known(raw, tables, f"{where}")
    table = {name: raw.get(name, {}) for name in tables}
    for name, value in table.items():
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {name} is {value!r}; it must be a table, [{name}].")
    root = table["recipe"]
    _known(root, {"folder", "base", "seed", "device", "stages"}, f"{where}: [recipe]")
    seed = _fitted(root.get("seed", 0), int, f"{where}: [recipe] seed")
    device = _fitted(root.get("device", "auto"), str, f"{where}: [recipe] device")
    stages = _fitted(root.get("stages", list(STAGES)), tuple[str, ...], f"{where}: [recipe] stages")
    _check_stages(stages, f"{where}: [recipe] stages")
    common = {"seed": seed, "device": _device(device)}

    def staged(name: str, plan: type[T], options: type[Any] | None) -> tuple[T, LoopPlan, Any]:
        at, (loop_base, plan_base) = f"{where}: [{name}]", BASES[name]
        kinds = [plan, LoopPlan] + ([options] if options else [])
        _known(table[name], set().union(*map(_keys, kinds)), at)
        given = dict(table[name])
        if "steps" in given and "minutes" not in given:
            loop_base = {key: value for key, value in loop_base.items() if key != "minutes"}
        loop = _made(LoopPlan, given, at, loop_base | common)
        chosen = _made(options, given, at, {}) if options else None
        extra = {"loop": loop} if plan is CodecPlan else {}
        return _made(plan, given, at, plan_base | extra), loop, chosen

    sizes = _sizes(table["sizes"], f"{where}: [sizes]")
    for name, kinds in (("data", (DataPlan, DataOptions)), ("encode", (EncodeOptions,)),
                        ("export", (ExportOptions,))):  # fmt: skip
        _known(table[name], set().union(*map(_keys, kinds)), f"{where}: [{name}]")
    codec, _, codec_options = staged("codec", CodecPlan, CodecOptions)
    thinker, thinker_loop, thinker_options = staged("thinker", ThinkerPlan, ThinkerOptions)
    speech, speech_loop, speech_options = staged("speech", SpeakingPlan, SpeechOptions)
    depth, depth_loop, _ = staged("depth", SpeakingPlan, None)
    if depth.numbering != speech.numbering:
        raise ConfigError(
            f"{where}: [depth] numbering is {depth.numbering!r} and [speech]'s "
            f"{speech.numbering!r}; they must be equal."
        )
    return Recipe(
        folder=Path(_fitted(root.get("folder", "runs/tiny"), str, f"{where}: [recipe] folder")),
        base=_fitted(root.get("base", ""), str, f"{where}: [recipe] base"),
        seed=seed,
        device=device,
        stages=stages,
        sizes=sizes,
        data=_made(DataPlan, table["data"], f"{where}: [data]", {"seed": seed}),
        data_options=_made(DataOptions, table["data"], f"{where}: [data]", {}),
        codec=codec,
        codec_options=codec_options,
        encode=_made(EncodeOptions, table["encode"], f"{where}: [encode]", {}),
        thinker=thinker,
        thinker_loop=thinker_loop,
        thinker_options=thinker_options,
        speech=speech,
        speech_loop=speech_loop,
        speech_options=speech_options,
        depth=depth,
        depth_loop=depth_loop,
        export=_made(ExportOptions, table["export"], f"{where}: [export]", {}),
    )


def _check_stages(stages: Sequence[str], where: str) -> None:
    for stage in stages:
        if stage not in STAGES:
            raise ConfigError(f"{where} has {stage!r}; the stages are {', '.join(STAGES)}.")


# -- from tables to dataclasses ------------------------------------------------------------------


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device is {name!r}, but torch sees no CUDA device; use cpu or auto.")
    return name


def _sizes(table: dict[str, Any], where: str) -> TinySizes:
    _known(table, {"preset"}, where)
    preset = table.get("preset", "trainable")
    if preset not in SIZES:
        raise ConfigError(f"{where}: preset is {preset!r}; use {' or '.join(SIZES)}.")
    return SIZES[preset]


def _keys(kind: type[Any]) -> set[str]:
    return {f.name for f in dataclasses.fields(kind)} - NOT_IN_A_FILE


def _known(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"do you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}."
            raise ConfigError(f"{where}: {key} is unknown; {hint}")


def _made(kind: type[T], table: Mapping[str, Any], where: str, base: dict[str, Any]) -> T:
    """An instance: what the table says, else `base`, else the defaults."""
    hints = typing.get_type_hints(kind)
    values = {k: v for k, v in base.items() if k in hints}
    for key in _keys(kind) & table.keys():
        values[key] = _fitted(table[key], hints[key], f"{where} {key}")
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _fitted(value: Any, hint: Any, where: str) -> Any:
    """The value as its hint wants it: lists become tuples, whole numbers floats."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _fitted(value, next(kind for kind in inner if kind is not type(None)), where)
    if origin is Literal:
        if value not in inner:
            raise ConfigError(f"{where} is {value!r}; use {' or '.join(map(repr, inner))}.")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} is {value!r}; it must be a list.")
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) != len(value):
            raise ConfigError(f"{where} is {value!r}; it must be a list of {len(kinds)}.")
        return tuple(_fitted(v, kind, where) for v, kind in zip(value, kinds, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise ConfigError(f"{where} is {value!r}; it must be {words.get(hint, hint)}.")
    return value


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        both = isinstance(inner, dict) and isinstance(value, dict)
        merged[key] = _merged(inner, value) if both and inner is not None else value
    return merged
