"""The plain loop, timed: one conversation, one thing after the other.

It has the same weights, threads, question and number of frames as the engine beside it. What the
engine keeps from one reply to the next it is given as far as it can use it: the voice's codes and
embeddings are made beforehand, while the passes over its prompt belong to every reply.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from chroma_plugin.audio import FRAME_MS, Samples
from chroma_plugin.bench.hearing import on_engine_thread
from chroma_plugin.config import DEFAULT_INSTRUCTIONS
from chroma_plugin.engine.engine import Engine
from chroma_plugin.engine.parts import Parts
from chroma_plugin.model.listener import Listener
from chroma_plugin.voice import Voice


@dataclass(frozen=True, slots=True)
class PlainRun:
    """One reply of the plain loop.

    Attributes:
        listen_ms: mel features and audio tower.
        generate_ms: `generate_greedy`: prefill and frames.
        codec_ms: the codec, over the whole reply at once.
        frames: frames made.
    """

    listen_ms: float
    generate_ms: float
    codec_ms: float
    frames: int

    @property
    def total_s(self) -> float:
        return (self.listen_ms + self.generate_ms + self.codec_ms) / 1000

    @property
    def audio_s(self) -> float:
        return self.frames * FRAME_MS / 1000

    @property
    def rtf(self) -> float:
        return self.total_s / self.audio_s


class PlainLoop:
    """Runs it.

    Args:
        parts: the weights that the engine has too.
        question: float32 at 16 kHz.
    """

    def __init__(self, parts: Parts, question: Samples) -> None:
        self._parts, self._question = parts, question
        self._voice: Tensor | None = None

    async def runs(self, engine: Engine, frames: int, times: int = 1) -> list[PlainRun]:
        """Answers so often with at most so many frames, on the engine's own thread.

        Every thread that computes with torch on a CPU keeps helpers of its own, and once all of
        them together are more than there are cores, they sleep instead of waiting for each other:
        the thread that comes second then takes twice as long. So both sides share one.
        """

        def work() -> list[PlainRun]:
            if self._voice is None:
                self._voice = self._prepare()
                self._run(2, self._voice)  # what is made on first use
            return [self._run(frames, self._voice) for _ in range(times)]

        return await on_engine_thread(engine, work)

    async def frame_ms(self, engine: Engine, run: PlainRun) -> float:
        """What a further frame costs: a run less its prefills and its first frame."""
        (first,) = await self.runs(engine, 1)
        work_ms = run.generate_ms + run.codec_ms - first.generate_ms - first.codec_ms
        return work_ms / max(run.frames - 1, 1)

    def _prepare(self) -> Tensor:
        voice = Voice.default()
        transcript = self._parts.prompt.encode(voice.transcript)
        samples = torch.tensor(voice.samples)
        return self._parts.model.voice_prompt(transcript, samples).embeds

    @torch.inference_mode()
    def _run(self, frames: int, voice: Tensor) -> PlainRun:
        model, prompt = self._parts.model, self._parts.prompt
        begin = self._now()
        listener = Listener(self._parts.mel, model.thinker.audio_tower)
        listener.push(self._question)
        listener.update(final=True)
        before = [*prompt.system(DEFAULT_INSTRUCTIONS), *prompt.audio_before]
        after = [*prompt.audio_after, *prompt.reply_open]
        dialogue = torch.cat(
            [model.embed_tokens(before), listener.embeds, model.embed_tokens(after)]
        )
        listened = self._now()
        made = model.generate_greedy(dialogue, voice, frames)
        generated = self._now()
        if len(made.codes):
            model.codec.decode(made.codes.T[None]).cpu()
        decoded = self._now()
        return PlainRun(
            listen_ms=(listened - begin) * 1000,
            generate_ms=(generated - listened) * 1000,
            codec_ms=(decoded - generated) * 1000,
            frames=len(made.codes),
        )

    def _now(self) -> float:
        if self._parts.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
