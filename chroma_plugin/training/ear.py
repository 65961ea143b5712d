"""The tiny ear: a thinker trained here writes down what it hears, and so judges what is spoken.

It uses the plain loop alone: what it says holds for the model, whatever serves it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chroma_plugin.audio import INPUT_RATE_HZ, OUTPUT_RATE_HZ, Samples, resample
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.layers import KVCache
from chroma_plugin.model.listener import Listener, LogMel
from chroma_plugin.model.prompt import ChatPrompt, PromptFormat, feature_extractor
from chroma_plugin.model.weights import find_checkpoint, load_checkpoint
from chroma_plugin.training.codec.judge import copy_of, whole_frames
from chroma_plugin.training.lessons import SYSTEM, WRITE_DOWN, words_of
from chroma_plugin.training.records import Record

MAX_TOKENS = 80
MIN_SAMPLES = INPUT_RATE_HZ // 10


class Ear:
    """Writes speech down.

    Args:
        model: one whose thinker was trained to, by `training.thinker`.
        prompt: how messages are spelt.
        mel: the checkpoint's spectrogram.
    """

    def __init__(self, model: ChromaModel, prompt: PromptFormat, mel: LogMel) -> None:
        self.model, self.prompt, self.mel = model, prompt, mel

    @torch.inference_mode()
    def hear(self, samples: Samples) -> Tensor:
        """A whole turn's embeddings, `[positions, hidden]`, by the served listener.

        Args:
            samples: float32 at 16 kHz, 0.1 s or more.
        """
        listener = Listener(self.mel, self.model.thinker.audio_tower)
        listener.push(samples)
        listener.update(final=True)
        return listener.embeds

    @torch.inference_mode()
    def write_down(self, samples: Samples) -> str:
        """What is said in a clip; "" if it is too short to say anything.

        Args:
            samples: float32 mono at 16 kHz.
        """
        if len(samples) < MIN_SAMPLES:
            return ""
        prompt, model = self.prompt, self.model
        before = [*prompt.system(WRITE_DOWN), *prompt.audio_before]
        after = [*prompt.audio_after, *prompt.reply_open]
        x = torch.cat([model.embed_tokens(before), self.hear(samples), model.embed_tokens(after)])
        cache = KVCache.empty(model.config.text, 1, len(x) + MAX_TOKENS, x)
        ids: list[int] = []
        at = 0
        while len(ids) < MAX_TOKENS:
            positions = torch.arange(at, at + len(x), device=x.device)[None]
            states = model.thinker.transformer(x[None], positions, cache, span=at + len(x))
            at += len(x)
            token = int(model.thinker.lm_head(states[0, -1]).argmax())
            if token == model.config.im_end:
                break
            ids.append(token)
            x = model.embed_tokens([token])
        return prompt.decode(ids)

    def write_down_reply(self, samples: Samples) -> str:
        """What is said in a reply, float32 at 24 kHz."""
        return self.write_down(resample(samples, OUTPUT_RATE_HZ, INPUT_RATE_HZ))

    def through_codec(self, samples: Samples) -> Samples:
        """Speech at 24 kHz as the model's codec gives it back, in whole frames."""
        return copy_of(self.model.codec, whole_frames(samples))[0]


def load_ear(model: str | Path) -> Ear:
    """An ear on the CPU, of a checkpoint as `--model` names one.

    Raises:
        CheckpointError: it cannot be found or loaded.
    """
    folder = find_checkpoint(model)
    loaded = load_checkpoint(folder)
    prompt = ChatPrompt.from_checkpoint(folder, loaded.config.audio_token)
    return Ear(loaded, prompt, LogMel(feature_extractor(folder)))


@dataclass(frozen=True, slots=True)
class Replied:
    """What the ear makes of one reply.

    Attributes:
        wanted: the right answer.
        text: what the thinker chose to say.
        written: what the ear understood.
        ended: whether the reply ended by itself.
        audio: the reply, float32 at 24 kHz.
    """

    wanted: str
    text: str
    written: str
    ended: bool
    audio: Samples


@dataclass(frozen=True, slots=True)
class Examination:
    """Shares of replies, 0 to 1.

    Attributes:
        right: the thinker's text is the right answer.
        understood: what the ear writes down is what the thinker chose to say, a word or more.
        ended: they ended by themselves.
    """

    right: float
    understood: float
    ended: float
    replies: tuple[Replied, ...]


def examine(
    ear: Ear,
    records: Sequence[Record],
    max_frames: int = 120,
    say: Callable[[str], None] = lambda _: None,
) -> Examination:
    """Asks the model and listens to its replies, the likeliest code each time.

    Args:
        ear: with the model that is asked.
        records: questions, answers and reference clips; the first reference is the voice.
        max_frames: the cap on a reply.
        say: gets a line for each reply.
    """
    heard: list[Replied] = []
    for record in records:
        heard.append(_asked(ear, record, max_frames))
        one = heard[-1]
        say(f"{one.wanted!r}: says {one.text!r}, heard as {one.written!r}")
    count = max(len(heard), 1)
    return Examination(
        right=sum(words_of(h.text) == words_of(h.wanted) for h in heard) / count,
        understood=sum(words_of(h.written) == words_of(h.text) != "" for h in heard) / count,
        ended=sum(h.ended for h in heard) / count,
        replies=tuple(heard),
    )


def _asked(ear: Ear, record: Record, max_frames: int) -> Replied:
    model, prompt = ear.model, ear.prompt
    pieces = [model.embed_tokens(prompt.system(SYSTEM[0]))]
    for place, turn in enumerate(record.turns):
        last = place == len(record.turns) - 1
        before = [] if place == 0 else prompt.reply_close
        pieces.append(model.embed_tokens([*before, *prompt.audio_before]))
        pieces.append(ear.hear(turn.question.samples()))
        spoken = [] if last else prompt.encode(turn.answer.text)
        pieces.append(model.embed_tokens([*prompt.audio_after, *prompt.reply_open, *spoken]))
    reference = record.references[0]
    voice = model.voice_prompt(
        prompt.encode(reference.text), torch.from_numpy(reference.samples().copy())
    )
    made = model.generate_greedy(torch.cat(pieces), voice.embeds, max_frames)
    audio = np.zeros(0, np.float32)
    if len(made.codes):
        codes = made.codes.T[None].to(model.device)
        audio = model.codec.decode(codes)[0, 0].clamp(-1, 1).cpu().numpy()
    said = [token for token in made.text_ids if token != model.config.im_end]
    return Replied(
        wanted=record.turns[-1].answer.text,
        text=prompt.decode(said),
        written=ear.write_down_reply(audio),
        ended=made.ended,
        audio=audio,
    )
