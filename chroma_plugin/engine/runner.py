"""The steps of the model over a batch of rows: static buffers, fixed shapes, masks instead of
branches.

Row i of every buffer belongs to slot i of the scheduler. A row's result never depends on its
neighbours; rows that do not act write to a scratch position that nothing reads. The runner knows
nothing of turns, queues or time, apart from measuring its own parts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from chroma_plugin.config import EngineConfig, SamplingParams
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.config import CODEBOOKS
from chroma_plugin.model.layers import KVCache
from chroma_plugin.model.prompt import PromptFormat, VoicePrompt
from chroma_plugin.model.sampling import RowSampling, frame_noise, pick_codes
from chroma_plugin.voice import Voice

SPAN_STEP = 256
"""Attention reads the caches up to a multiple of this, so that few shapes occur."""
MAX_SAID = 4096
"""Tokens of the longest text that can be spoken word for word."""


@dataclass(frozen=True, slots=True)
class ReadyVoice:
    """A voice, ready to start replies: its prompt and the backbone's cache of it."""

    prompt: VoicePrompt
    prefix: KVCache

    @property
    def positions(self) -> int:
        return len(self.prompt.embeds)

    @property
    def nbytes(self) -> int:
        return self.prefix.nbytes + self.prompt.embeds.nbytes + self.prompt.codes.nbytes


@dataclass(slots=True)
class StepResult:
    """What one step made, on the host.

    Attributes:
        codes: int64 `[B, K]`.
        tokens: int64 `[B]`: the text token of each row's newest pair.
        audio: float32 `[B, 1920]`.
    """

    codes: Tensor
    tokens: Tensor
    audio: Tensor


@dataclass(slots=True)
class Rows:
    """What the device knows of every row; see `Runner.start`."""

    active: Tensor  # bool: a reply speaks here and makes frames now
    texting: Tensor  # bool: its text goes on
    fresh: Tensor  # bool: its first pair has not been given, nor any frame made
    hidden: Tensor  # [R, hidden]: the thinker's state for the next pair
    token: Tensor  # int64: the newest text token
    codes: Tensor  # int64 [R, K]: the newest frame
    position: Tensor  # int64: the next backbone position
    thinker_row: Tensor  # int64: the conversation's row in the thinker's cache
    thinker_position: Tensor  # int64: where the newest token goes
    said: Tensor  # int64 [R, MAX_SAID]: tokens to speak word for word
    said_next: Tensor  # int64: the next of them; -1 where the thinker chooses
    sampling: RowSampling

    @classmethod
    def empty(cls, rows: int, hidden: Tensor) -> Rows:
        device = hidden.device
        no = torch.zeros(rows, dtype=torch.bool, device=device)
        zero = torch.zeros(rows, dtype=torch.int64, device=device)
        return cls(
            active=no.clone(),
            texting=no.clone(),
            fresh=no.clone(),
            hidden=hidden.new_zeros(rows, hidden.shape[-1]),
            token=zero.clone(),
            codes=zero[:, None].repeat(1, CODEBOOKS),
            position=zero.clone(),
            thinker_row=zero.clone(),
            thinker_position=zero.clone(),
            said=zero[:, None].repeat(1, MAX_SAID),
            said_next=zero.clone(),
            sampling=RowSampling.greedy(rows, device),
        )


@dataclass(slots=True)
class PartClock:
    """Milliseconds per part of the last step. On CUDA the parts are marked by events and read after
    the step's only wait."""

    cuda: bool
    _marks: list[tuple[str, torch.cuda.Event | float, torch.cuda.Event | float]] = field(
        default_factory=list
    )

    def _now(self) -> torch.cuda.Event | float:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times what is inside."""
        begin = self._now()
        yield
        self._marks.append((name, begin, self._now()))

    def read(self) -> dict[str, float]:
        """The parts since the last reading; the device must have finished them."""
        parts: dict[str, float] = {}
        for name, begin, end in self._marks:
            if isinstance(begin, float) and isinstance(end, float):
                spent = (end - begin) * 1000
            else:
                assert isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
                spent = begin.elapsed_time(end)
            parts[name] = parts.get(name, 0.0) + spent
        self._marks.clear()
        return parts


class Runner:
    """The model with its buffers.

    Args:
        model: on its device.
        prompt: to spell transcripts.
        config: how many rows and positions.
    """

    def __init__(self, model: ChromaModel, prompt: PromptFormat, config: EngineConfig) -> None:
        self.model, self.prompt, self.config = model, prompt, config
        weight = model.backbone.codebook0_head.weight
        rows = config.max_replies
        # one position more than can be used: the scratch position of rows that do not act
        self.thinker_cache = KVCache.empty(
            model.config.text, config.thinker_cache_rows, config.thinker_positions + 1, weight
        )
        self.backbone_cache = KVCache.empty(
            model.config.backbone, rows, config.backbone_positions + 1, weight
        )
        with torch.inference_mode():
            self.depth_steps = model.depth.new_steps(rows, config.depth_positions)
        self.decode_state = model.codec.new_decode_state(rows)
        self.rows = Rows.empty(rows, weight)
        self._active: list[int] = []
        self._draws = [False] * rows  # which rows do not take the likeliest codes
        self.clock = PartClock(model.device.type == "cuda")
        self.code0_logits = weight.new_zeros(rows, weight.shape[0], dtype=torch.float32)

    # -- between steps -----------------------------------------------------------------------

    @torch.inference_mode()
    def prepare_voice(self, voice: Voice) -> ReadyVoice:
        """Encodes a voice and runs the backbone over its prompt, once for all of its replies."""
        prompt = self.model.voice_prompt(
            self.prompt.encode(voice.transcript), torch.tensor(voice.samples)
        )
        length = len(prompt.embeds)
        prefix = KVCache.empty(self.model.config.backbone, 1, length, prompt.embeds)
        positions = torch.arange(length, device=self.model.device)[None]
        self.model.backbone.transformer(prompt.embeds[None], positions, prefix)
        return ReadyVoice(prompt, prefix)

    @torch.inference_mode()
    def prefill(self, thinker_row: int, embeds: Tensor, start: int) -> Tensor:
        """Reads `[n, hidden]` into a conversation's thinker cache; the last state `[hidden]`."""
        device = self.model.device
        positions = torch.arange(start, start + len(embeds), device=device)[None]
        out: Tensor = self.model.thinker.transformer(
            embeds[None],
            positions,
            self.thinker_cache,
            rows=torch.tensor([thinker_row], device=device),
            span=_span(start + len(embeds)),
        )
        return out[0, -1]

    @torch.inference_mode()
    def start(
        self,
        row: int,
        voice: ReadyVoice,
        thinker_row: int,
        thinker_position: int,
        hidden: Tensor,
        sampling: SamplingParams,
        seed: int,
        say: list[int] | None,
    ) -> None:
        """Puts a reply on a row.

        Args:
            row: the row.
            voice: whose prefix it starts from.
            thinker_row: the conversation's row in the thinker's cache.
            thinker_position: where its next token goes.
            hidden: the thinker's last state, `[hidden]`.
            sampling: how its codes are drawn.
            seed: of its noise.
            say: tokens to speak instead of the thinker's choice.
        """
        rows, length = self.rows, voice.positions
        self.backbone_cache.copy_prefix(voice.prefix, 0, row, length)
        self.decode_state.reset(row)
        self._active = []
        rows.active[row] = rows.texting[row] = rows.fresh[row] = True
        rows.hidden[row] = hidden
        rows.position[row] = length
        rows.thinker_row[row] = thinker_row
        rows.thinker_position[row] = thinker_position
        rows.said_next[row] = -1 if say is None else 0
        if say is not None:
            ids = [*say, self.model.config.im_end]
            rows.said[row, : len(ids)] = torch.tensor(ids, device=rows.said.device)
        self._draws[row] = sampling.temperature > 0
        rows.sampling.temperature[row] = sampling.temperature
        rows.sampling.top_k[row] = sampling.top_k
        rows.sampling.top_p[row] = sampling.top_p
        rows.sampling.seed[row] = seed
        rows.sampling.frame[row] = 0

    @torch.inference_mode()
    def stop(self, row: int) -> None:
        """Takes a reply off its row."""
        self._active, self._draws[row] = [], False
        self.rows.active[row] = False

    @torch.inference_mode()
    def set_active(self, rows: list[int]) -> None:
        """Says which rows make frames from now on; the others keep their state."""
        if rows != self._active:
            mask = torch.zeros(self.config.max_replies, dtype=torch.bool)
            mask[rows] = True
            self.rows.active.copy_(mask)
        self._active = rows

    # -- one frame ---------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, batch: int, *, think: bool, thinker_span: int, span: int) -> StepResult:
        """Makes the next frame of rows 0 to `batch` - 1.

        Args:
            batch: rows to cover.
            think: it is an even step and some row's text goes on: a pair is given.
            thinker_span: positions of the thinker's cache in use.
            span: positions of the backbone's cache in use after this step.
        """
        if think:
            with self.clock.part("thinker"):
                self.think(batch, _span(thinker_span))
        with self.clock.part("backbone"):
            state = self.read_inputs(batch, _span(span), pair=think)
        with self.clock.part("depth"):
            codes = self.pick_frame(state)
        with self.clock.part("codec"):
            active = self.rows.active[:batch]
            audio = self.model.codec.decode_step(codes[:, :, None], self.decode_state, active)
        # the step's only wait for the device
        return StepResult(codes.cpu(), self.rows.token[:batch].cpu(), audio[:, 0].cpu())

    def think(self, batch: int, span: int) -> None:
        """The next text token of every row whose text goes on."""
        rows, model = self.rows, self.model
        writing = rows.active[:batch] & rows.texting[:batch]
        reading = writing & ~rows.fresh[:batch]  # a fresh row's state comes from its prefill
        scratch = self.thinker_cache.positions - 1
        positions = rows.thinker_position[:batch].masked_fill(~reading, scratch)
        out = model.thinker.transformer(
            model.thinker.embedding(rows.token[:batch])[:, None],
            positions[:, None],
            self.thinker_cache,
            rows=rows.thinker_row[:batch],
            span=span,
        )[:, 0]
        hidden = torch.where(reading[:, None], out, rows.hidden[:batch])
        chosen = model.thinker.lm_head(hidden).argmax(dim=-1)
        said_next = rows.said_next[:batch]
        given = rows.said[:batch].gather(1, said_next.clamp(min=0)[:, None])[:, 0]
        token = torch.where(said_next >= 0, given, chosen)
        rows.thinker_position[:batch] += reading
        rows.said_next[:batch] += writing & (said_next >= 0)
        rows.hidden[:batch] = torch.where(writing[:, None], hidden, rows.hidden[:batch])
        rows.token[:batch] = torch.where(writing, token, rows.token[:batch])

    def read_inputs(self, batch: int, span: int, *, pair: bool) -> Tensor:
        """The backbone's state after the newest frame and, on an even step, the text pair.

        Returns:
            `[batch, hidden]`.
        """
        rows, model = self.rows, self.model
        active, fresh = rows.active[:batch], rows.fresh[:batch]
        frame = model.backbone.audio_embedding.frame(rows.codes[:batch])
        inputs, given = [frame], [active & ~fresh]
        if pair:
            writing = active & rows.texting[:batch]
            inputs += [rows.hidden[:batch], model.thinker.embedding(rows.token[:batch])]
            given += [writing, writing]
            rows.texting[:batch] &= rows.token[:batch] != model.config.im_end
        counts = torch.stack(given, dim=1).long()  # [B, 1 or 3]
        places = rows.position[:batch, None] + counts.cumsum(dim=1) - 1
        scratch = self.backbone_cache.positions - 1
        out = model.backbone.transformer(
            torch.stack(inputs, dim=1),
            places.masked_fill(counts == 0, scratch),
            self.backbone_cache,
            span=span,
        )
        rows.position[:batch] += counts.sum(dim=1)
        rows.fresh[:batch] &= ~active
        last = (counts * torch.arange(1, len(inputs) + 1, device=counts.device)).argmax(dim=1)
        return out.gather(1, last[:, None, None].expand(-1, 1, out.shape[-1]))[:, 0]

    def pick_frame(self, state: Tensor) -> Tensor:
        """A frame for backbone states `[B, hidden]`: codes `[B, K]`."""
        model, batch = self.model, len(state)
        sampling = self.rows.sampling.first(batch)
        size = model.config.codebook_size
        logits = model.backbone.codebook0_head(state)
        self.code0_logits[:batch] = logits
        noise = frame_noise(sampling, size) if any(self._draws[:batch]) else None

        def pick(scores: Tensor, codebook: int) -> Tensor:
            if noise is None:  # every row is greedy
                return scores.argmax(dim=-1)
            return pick_codes(scores, codebook, sampling, size, noise)

        codes = model.depth.frame(state, pick(logits, 0), self.depth_steps, pick)
        active = self.rows.active[:batch]
        self.rows.codes[:batch] = torch.where(active[:, None], codes, self.rows.codes[:batch])
        sampling.frame += active
        return codes


def _span(positions: int) -> int:
    return -(-positions // SPAN_STEP) * SPAN_STEP
