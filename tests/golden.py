"""Reads folders of golden results: a small checkpoint, a conversation, and what the official
implementation made of it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import WhisperFeatureExtractor

from chroma_plugin.audio import FRAME_MS, Samples
from chroma_plugin.config import EngineConfig
from chroma_plugin.engine.parts import Parts
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.listener import Listener, LogMel
from chroma_plugin.model.weights import load_checkpoint
from chroma_plugin.voice import Voice


def folders() -> list[Path]:
    """The folders in tests/assets/golden and those named in CHROMA_GOLDEN_DIRS.

    A name is a golden folder or a folder of golden folders; one that is neither is an error.
    """
    roots = [Path(__file__).parent / "assets" / "golden"]
    roots += [Path(name) for name in os.environ.get("CHROMA_GOLDEN_DIRS", "").split(":") if name]
    found = []
    for root in roots:
        inside = [root] if (root / "expected.safetensors").is_file() else []
        inside += sorted(p.parent for p in root.glob("*/expected.safetensors"))
        if not inside:
            raise FileNotFoundError(f"{root}: named in CHROMA_GOLDEN_DIRS, holds no golden results")
        found += inside
    return found


@dataclass(frozen=True)
class Golden:
    """One folder.

    Attributes:
        ids: the thinker's input, every position of audio as the audio token.
        audio: the user's turns, float32 at 16 kHz.
        transcript: the voice prompt's token ids.
        clip: the reference clip, float32 at 24 kHz.
        expected: what came out, by name.
    """

    folder: Path
    model: ChromaModel
    ids: list[int]
    audio: list[Samples]
    transcript: list[int]
    clip: Samples
    expected: dict[str, Tensor]

    @property
    def frames(self) -> int:
        return self.expected["codes"].shape[1]

    @property
    def seconds(self) -> float:
        return self.frames * FRAME_MS / 1000

    def embeds(self, piece: int | None = None) -> Tensor:
        """The thinker's input, the audio heard in pieces of so many samples or at once."""
        embeds = self.model.embed_tokens(self.ids).clone()
        heard = []
        for samples in self.audio:
            listener = Listener(mel(), self.model.thinker.audio_tower)
            for start in range(0, len(samples), piece or len(samples)):
                listener.push(samples[start : start + (piece or len(samples))])
                listener.update()
            listener.update(final=True)
            heard.append(listener.embeds)
        places = torch.tensor(self.ids) == self.model.config.audio_token
        embeds[places] = torch.cat(heard)
        return embeds

    def pieces(self) -> list[list[int]]:
        """The token ids around the user's turns: one list more than there are turns."""
        out: list[list[int]] = [[]]
        audio = self.model.config.audio_token
        for before, token in zip([-1, *self.ids], self.ids, strict=False):
            if token != audio:
                out[-1].append(token)
            elif before != audio:
                out.append([])
        return out

    def voice(self) -> Voice:
        """The reference clip; its transcript is spelt as ids, which `GoldenPrompt` reads back."""
        return Voice("golden", " ".join(map(str, self.transcript)), self.clip)

    def parts(self) -> Parts:
        """What an engine loads."""
        return Parts(self.model, GoldenPrompt(self.pieces()), mel())

    def config(self, **changes: object) -> EngineConfig:
        """Room for this conversation."""
        settings = {
            "thinker_positions": 1024,
            "backbone_positions": 1024,
            "max_sessions": 8,
            "run_ahead_s": math.inf,
        }
        return EngineConfig(**(settings | changes))  # type: ignore[arg-type]


class GoldenPrompt:
    """Spells a golden conversation: its own ids around the audio, numbers for text."""

    def __init__(self, pieces: list[list[int]]) -> None:
        first, self.middle, last = pieces[0], pieces[1:-1], pieces[-1]
        self.first = first[:-1]  # the last one opens the audio
        self.audio_before, self.audio_after = first[-1:], last[:1]
        self.reply_open, self.reply_close = last[1:], []

    def system(self, text: str) -> list[int]:
        return self.first

    def user(self, text: str) -> list[int]:
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        return [int(word) if word.isdigit() else 1 for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f" {i}" for i in ids)


@cache
def mel() -> LogMel:
    return LogMel(WhisperFeatureExtractor(feature_size=128))


@cache
def load(folder: Path) -> Golden:
    """Reads a folder."""
    inputs = load_file(folder / "inputs.safetensors")
    spoken = sorted(
        (k for k in inputs if k.startswith("user_audio_16k")),
        key=lambda k: int(k.rpartition(".")[2]) if "." in k else 0,
    )
    return Golden(
        folder=folder,
        model=load_checkpoint(folder),
        ids=inputs["thinker_input_ids"][0].tolist(),
        audio=[inputs[k].flatten().numpy() for k in spoken],
        transcript=inputs["prompt_text_ids"][0].tolist(),
        clip=inputs["prompt_audio"].flatten().numpy(),
        expected=load_file(folder / "expected.safetensors"),
    )


def assert_close(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Within 1e-3 of the largest value."""
    assert ours.shape == theirs.shape, f"{what}: {list(ours.shape)} against {list(theirs.shape)}"
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    assert error < 1e-3, f"{what}: off by {error:.2e} of the largest value"
