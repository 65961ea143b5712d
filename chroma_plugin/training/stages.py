"""The stages of a recipe, from data to a checkpoint folder that an engine loads.

Every stage leaves its result in a folder of its own, with a note of the settings that it depends
on. A stage whose note is there is not run again; one that was stopped goes on where it was. The
released model takes the same way, with its own thinker and codec.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from chroma_plugin.audio import Samples, replace_file
from chroma_plugin.errors import ConfigError
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.codec import CodecConfig
from chroma_plugin.model.config import ChromaConfig
from chroma_plugin.model.listener import LogMel
from chroma_plugin.model.prompt import ChatPrompt, feature_extractor
from chroma_plugin.model.weights import find_checkpoint, load_checkpoint
from chroma_plugin.training.bank import Bank, further_questions, make_bank, vocabulary_texts
from chroma_plugin.training.codec import make_corpus, train_codec
from chroma_plugin.training.codec.judge import copy_of, whole_frames
from chroma_plugin.training.codes import encode_folder
from chroma_plugin.training.data import build
from chroma_plugin.training.ear import Ear, examine
from chroma_plugin.training.lessons import SYSTEM, answering
from chroma_plugin.training.loop import LoopPlan, train
from chroma_plugin.training.notes import Notes
from chroma_plugin.training.reasoner import Reasoned, key_of, load_reasoned, reason, save_reasoned
from chroma_plugin.training.recipe import STAGES, Recipe
from chroma_plugin.training.records import Records
from chroma_plugin.training.replies import Replies, saying, texts_of
from chroma_plugin.training.shards import ranks, shard, wait, whole
from chroma_plugin.training.speaking import SpeakingPlan, SpeakingTask, SpeechModule
from chroma_plugin.training.speech import CommandSpeaker, EspeakSpeaker, Speaker
from chroma_plugin.training.thinker import ThinkerModule, ThinkerTask
from chroma_plugin.training.tiny import (
    make_model,
    make_tiny,
    ready_to_learn,
    save_checkpoint,
    sharpen,
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Result:
    """How far a run came.

    Attributes:
        folder: the checkpoint, if it was made.
        stopped: the stage in which a signal ended it; "" if none did.
        figures: by stage.
        missed: what the examination missed of the bar in the recipe's `[export]`, a line each.
    """

    folder: Path
    stopped: str
    figures: Mapping[str, Mapping[str, float]]
    missed: tuple[str, ...] = ()


def train_recipe(recipe: Recipe, say: Say = print) -> Result:
    """Runs the stages of a recipe that are not done yet.

    Args:
        recipe: what to do.
        say: gets a line of progress at a time.

    Raises:
        ConfigError: a stage was done with other settings or texts, or several processes are to do
            what only one can.
        ChromaError: a stage that is left out has not been done, or one cannot be done here.
    """
    rank, count = ranks()
    if count > 1 and not set(recipe.stages) <= {"speech", "depth"}:
        raise ConfigError(
            f"{count} processes can do the stages speech and depth together; do the others in one."
        )
    if rank:
        say = _nobody
    run = _Run(recipe, say)
    for stage in STAGES:
        if stage not in recipe.stages:
            continue
        if run.is_done(stage):
            say(f"[{stage}] is done")
            continue
        start = time.monotonic()
        say(f"[{stage}]")
        figures = getattr(run, f"_{stage}")()
        if figures is None:
            say(f"[{stage}] stopped; the same command goes on from here")
            return Result(recipe.folder / "checkpoint", stage, run.figures)
        if rank == 0:
            run.mark(stage, figures)
        wait()
        say(f"[{stage}] done in {(time.monotonic() - start) / 60:.1f} min")
    missed = recipe.export.missed(run.figures["export"]) if "export" in recipe.stages else ()
    return Result(recipe.folder / "checkpoint", "", run.figures, missed)


class _Run(Notes):
    """One recipe in its folder; a method for each stage, which returns None if it was stopped."""

    def __init__(self, recipe: Recipe, say: Say) -> None:
        super().__init__(recipe)
        self.say = say

    # -- the model on its way ----------------------------------------------------------------

    @cached_property
    def start(self) -> Path:
        """Every file of the checkpoint but its weights."""
        if self.recipe.base:
            return find_checkpoint(self.recipe.base)
        folder, taken = self.folder / "start", self.recipe.thinker_options.take
        if (folder / "config.json").exists():
            return folder
        if taken:
            _copy_files(find_checkpoint(taken), folder)
        else:
            make_tiny(folder, self.recipe.sizes, vocabulary_texts(self.recipe.seed))
        return folder

    def model(self, *stages: str) -> ChromaModel:
        """The model with what these stages have learnt."""
        if self.recipe.base:
            cuda = self.recipe.speech_loop.device != "cpu"
            model = load_checkpoint(self.start, "cpu", torch.bfloat16 if cuda else torch.float32)
            if not self.recipe.speech.lora:  # learning in bfloat16, small updates are lost
                model.backbone.float()
                model.depth.float()
            stages = tuple(stage for stage in stages if stage in ("speech", "depth"))
        else:
            raw = json.loads((self.start / "config.json").read_bytes())
            model = ready_to_learn(make_model(raw, self.recipe.seed))
        for stage in stages:
            load_model(_part(model, stage), self.need(stage) / "model.safetensors")
        model.codec.finalize()
        return model

    def keep(self, model: ChromaModel, stage: str) -> None:
        """Writes what a stage has learnt."""
        part = _part(model, stage)
        save_model(part, str(self.place(stage) / "model.safetensors"))

    @cached_property
    def prompt(self) -> ChatPrompt:
        config = ChromaConfig.from_folder(self.start)
        return ChatPrompt.from_checkpoint(self.start, config.audio_token)

    @cached_property
    def mel(self) -> LogMel:
        return LogMel(feature_extractor(self.start))

    def records(self, split: str) -> Records:
        self.need("data")
        return Records(self.folder / "data", split, self.recipe.seed)

    # -- stages ------------------------------------------------------------------------------

    def _data(self) -> Mapping[str, float]:
        recipe = self.recipe
        summary = build(
            recipe.data,
            self.folder / "data",
            lambda made: self.say(str(made)),
            answers=self.answers,
            speaker=_speaker(recipe),
            workers=recipe.data_options.workers,
            threads=recipe.data_options.threads,
        )
        return {"turns": summary.turns, "broken": summary.broken}

    def _codec(self) -> Mapping[str, float] | None:
        options, place, seed = self.recipe.codec_options, self.place("codec"), self.recipe.seed
        if self.recipe.base:
            return {}
        model = self.model()
        if options.take:
            model.codec = load_checkpoint(find_checkpoint(options.take)).codec
            self._check_codec(model)
            self.keep(model, "codec")
            return {}
        speaker = _speaker(self.recipe)
        corpus, held_out = (
            make_corpus(
                place / name, minutes, seed=seed, held_out=held, speaker=speaker, say=self.say
            )
            for name, minutes, held in (
                ("corpus", options.corpus_minutes, False),
                ("heldout", options.held_out_minutes, True),
            )
        )
        plan = replace(self.recipe.codec, config=model.codec.config)
        codec, outcome = train_codec(plan, corpus, held_out, place / "run", say=self.say)
        if outcome.why == "stopped":
            return None
        model.codec.load_state_dict(codec.state_dict())
        self.keep(model, "codec")
        return outcome.evaluation

    def _check_codec(self, model: ChromaModel) -> None:
        raw = json.loads((self.start / "config.json").read_bytes())
        if model.codec.config != CodecConfig.from_dict(raw["codec_config"]):
            raise ConfigError(
                f"{self.recipe.codec_options.take}: its codec has other sizes than the recipe's."
            )

    def _encode(self) -> Mapping[str, float]:
        codec = self.model("codec").codec.to(self.recipe.codec.loop.device)
        options = self.recipe.encode
        made = encode_folder(
            codec,
            self.need("data"),
            self.say,
            variants=options.variants,
            seed=self.recipe.seed,
            batch=options.batch,
        )
        return {"shards": made}

    def _thinker(self) -> Mapping[str, float] | None:
        if self.recipe.base:
            return {}
        recipe, model = self.recipe, self.model()
        if recipe.thinker_options.take:
            taken = load_checkpoint(find_checkpoint(recipe.thinker_options.take))
            model.thinker.load_state_dict(taken.thinker.state_dict())
            self.keep(model, "thinker")
            return {}
        codec = self.model("codec").codec if self.is_done("codec") else None

        def through(samples: Samples) -> Samples:
            return samples if codec is None else copy_of(codec, whole_frames(samples))[0]

        bank, held_out = (self._bank(split, through) for split in ("train", "heldout"))
        module = ThinkerModule(model.thinker, model.config.audio_token)
        task = ThinkerTask(
            module, self.prompt, bank, held_out, recipe.thinker, recipe.seed, self.texts
        )
        outcome = train(task, recipe.thinker_loop, self.place("thinker") / "run", say=self.say)
        if outcome.why == "stopped":
            return None
        self.keep(model.cpu(), "thinker")
        return outcome.evaluation

    def _bank(self, split: str, through: Callable[[Samples], Samples]) -> Bank:
        path, key = self.place("thinker") / f"{split}.npy", self.recipe.key("thinker")
        bank = Bank.load(path, key)
        if bank is None:
            recipe, options = self.recipe, self.recipe.thinker_options
            further = further_questions(
                options.questions if split == "train" else 0,
                self.answers,
                _speaker(recipe),
                self.mel,
                seed=recipe.seed,
                turns=recipe.data.turns,
                workers=recipe.data_options.workers * recipe.data_options.threads,
                say=self.say,
            )
            bank = make_bank(
                self.records(split),
                self.mel,
                seed=recipe.seed,
                through=through,
                copies=options.copies,
                further=further,
                say=self.say,
            )
            if ranks()[0] == 0:
                bank.save(path, key)
                bank = Bank.load(path, key) or bank  # from the disk: the memory is free again
        self.say(f"{split}: {bank.minutes:.0f} minutes of clips")
        return bank

    def _speech(self) -> Mapping[str, float] | None:
        model = self.model("thinker", "codec")
        return self._speak(model, "speech", self.recipe.speech, self.recipe.speech_loop)

    def _depth(self) -> Mapping[str, float] | None:
        model = self.model("thinker", "codec", "speech")
        return self._speak(model, "depth", self.recipe.depth, self.recipe.depth_loop)

    def _speak(
        self, model: ChromaModel, stage: str, plan: SpeakingPlan, loop: LoopPlan
    ) -> Mapping[str, float] | None:
        self.need("encode")
        rank, count = ranks()
        known, held_out = (self._replies(split, model) for split in ("train", "heldout"))
        module = SpeechModule(model, plan)
        if count > 1:
            loop = replace(loop, device=f"cuda:{rank}" if loop.device != "cpu" else "cpu")
            shard(module.to(loop.device), bfloat16=loop.device != "cpu")
        task = SpeakingTask(
            module,
            model.config,
            known.draw,
            held_out.first(self.recipe.speech_options.held_out),
            seed=self.recipe.seed + STAGES.index(stage),
            rank=rank,
            ranks=count,
        )
        run = "run" if count == 1 else f"run-{rank}-of-{count}"
        outcome = train(task, loop, self.place(stage) / run, say=self.say)
        if outcome.why == "stopped":
            return None
        if count > 1:
            learnt = whole(module)
            before = ("speech",) if stage == "depth" else ()
            model = self.model("thinker", "codec", *before)
            module = SpeechModule(model, plan)
            if rank == 0:
                module.load_state_dict(learnt)
        module.finish()
        if rank == 0:
            self.keep(model.cpu(), stage)
        return outcome.evaluation

    def _replies(self, split: str, model: ChromaModel) -> Replies:
        """Draws of a split, reasoned once by the frozen thinker."""
        records, options = self.records(split), self.recipe.speech_options
        bank = self._bank(split, lambda samples: samples)
        texts = texts_of(records)
        path = self.place("speech") / f"{split}-reasoned.npy"
        key = f"{key_of(model.thinker)} {self.recipe.key('thinker')}"
        count = len(records.dialogues)  # what the bank holds beside them has no reply to learn
        reasoned = load_reasoned(path, key)
        if reasoned is None:
            device = self.recipe.speech_loop.device
            module = ThinkerModule(model.thinker, model.config.audio_token).eval().to(device)
            token = model.config.audio_token
            lessons = [answering(self.prompt, token, SYSTEM[0], d) for d in bank.dialogues[:count]]
            lessons += [saying(self.prompt, text) for text in texts]
            reasoned = reason(module, lessons, say=self.say)
            model.cpu()
            if ranks()[0] == 0:
                save_reasoned(path, reasoned, key)
        said: dict[str, Reasoned] = {
            text: row[0] for text, row in zip(texts, reasoned[count:], strict=True)
        }
        return Replies(
            records, self.prompt, reasoned[:count], said, options.said, options.references
        )

    def _export(self) -> Mapping[str, float]:
        last = "depth" if self.is_done("depth") else "speech"
        model = self.model("thinker", "codec", last).eval()
        folder, options = self.folder / "checkpoint", self.recipe.export
        _copy_files(self.start, folder)
        raw = json.loads((folder / "config.json").read_bytes())
        raw.pop("chroma_plugin_weights", None)
        text = json.dumps(raw, indent=1) + "\n"
        replace_file(folder / "config.json", text.encode())
        sharpen(model, options.temperature)
        codec_dtype = "float32" if self.recipe.base else options.codec_dtype
        save_checkpoint(model, folder, getattr(torch, options.dtype), getattr(torch, codec_dtype))
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        self.say(f"{folder}: {size:.1f} MB")
        if not options.examined:
            return {"megabytes": round(size, 1)}
        ear = Ear(load_checkpoint(folder), self.prompt, self.mel)
        records = self.records("heldout")
        asked = [records[i] for i in records.dialogues[: options.examined]]
        found = examine(ear, asked, say=self.say)
        figures = {k: v for k, v in asdict(found).items() if isinstance(v, float)}
        words = "  ".join(f"{name} {value:.0%}" for name, value in figures.items())
        self.say(f"{len(asked)} held-out questions: {words}")
        return figures | {"megabytes": round(size, 1)}


def _nobody(line: str) -> None:
    """Tells nothing."""


def _part(model: ChromaModel, stage: str) -> nn.Module:
    """What a stage changes in the model."""
    if stage in ("speech", "depth"):
        return nn.ModuleDict({"backbone": model.backbone, "depth": model.depth})
    return {"codec": model.codec, "thinker": model.thinker}[stage]


def _speaker(recipe: Recipe) -> Speaker[Any]:
    options = recipe.data_options
    if options.speaker == "espeak":
        return EspeakSpeaker()
    return CommandSpeaker(options.speaker, options.voices, options.held_out_voices)


def _copy_files(source: Path, folder: Path) -> None:
    """Config, tokenizer and features; no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix in (".json", ".txt", ".jinja") and not file.name.endswith(".index.json"):
            shutil.copyfile(file, folder / file.name)
