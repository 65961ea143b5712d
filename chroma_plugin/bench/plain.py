"""The plain loop, timed: one conversation, one thing after the other.

It has the same weights, threads, question and number of frames as the engine beside it. What the
engine keeps from one reply to the next it is given as far as it can use it: the voice's codes and
embeddings are made beforehand, while the passes over its prompt belong to every reply.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from chroma_plugin.audio import FRAME_MS, Samples
from chroma_plugin.config import DEFAULT_INSTRUCTIONS
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
        voice = Voice.default()
        transcript = parts.prompt.encode(voice.transcript)
        prompt = parts.model.voice_prompt(transcript, torch.tensor(voice.samples))
        self._voice: Tensor = prompt.embeds

    def run(self, frames: int) -> PlainRun:
        """Answers once, with at most so many frames, on a thread of its own.

        So does the engine. A pool of torch's threads belongs to the thread that uses it, and on a
        busy machine one that had an unlucky start can be several times slower than the next.
        """
        threads = torch.get_num_threads()

        def work() -> PlainRun:
            torch.set_num_threads(threads)
            return self._run(frames)

        with ThreadPoolExecutor(max_workers=1) as pool:
            return pool.submit(work).result()

    @torch.inference_mode()
    def _run(self, frames: int) -> PlainRun:
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
        made = model.generate_greedy(dialogue, self._voice, frames)
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

    def frame_ms(self, run: PlainRun) -> float:
        """What a further frame costs: a run less its prefills and its first frame."""
        first = self.run(1)
        work_ms = run.generate_ms + run.codec_ms - first.generate_ms - first.codec_ms
        return work_ms / max(run.frames - 1, 1)

    def _now(self) -> float:
        if self._parts.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
