"""The steps of the model over a batch of rows: static buffers, fixed shapes, masks instead of
branches.

Row i of every buffer belongs to slot i of the scheduler. A row's result never depends on its
neighbours; rows that do not act write to a scratch position that nothing reads. The runner knows
nothing of turns, queues or time, apart from measuring its own parts.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from chroma_plugin.config import GREEDY, EngineConfig, SamplingParams
from chroma_plugin.engine.clock import PartClock
from chroma_plugin.engine.graphs import DeviceMode, Graphs, Ladder
from chroma_plugin.engine.rows import Rows
from chroma_plugin.engine.tower import StaticTower
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.layers import KVCache
from chroma_plugin.model.memory import TRANSCRIPT_ROWS
from chroma_plugin.model.prompt import PromptFormat, VoicePrompt
from chroma_plugin.model.sampling import frame_noise, pick_codes
from chroma_plugin.voice import Voice

log = logging.getLogger(__name__)

PIECE_POSITIONS = 256
"""Positions of a prompt that are read at once, between two frames."""
SPAN_STEP = 256
"""Attention reads the caches up to a multiple of this, so that few shapes occur."""
SLACK_POSITIONS = 8
"""Room at the end of a cache: the scratch position, and what steps still write that were launched
before it was known that the row has ended."""


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
    """What one step made, on its way to the host; `wait` before anything is read.

    Attributes:
        codes: int64 `[B, K]`.
        tokens: int64 `[B]`: the text token of each row's newest pair.
        audio: float32 `[B, 1920 * n]`: the newest n frames, if the codec made any.
        clock: where the time went.
    """

    codes: Tensor
    tokens: Tensor
    audio: Tensor | None
    clock: PartClock
    _arrived: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Waits for the device: the only place where a step does."""
        if self._arrived is not None:
            self._arrived.synchronize()


class Runner:
    """The model with its buffers.

    Args:
        model: on its device.
        prompt: to spell transcripts.
        config: how many rows and positions.
        mode: how steps run; None is what suits the device.
    """

    def __init__(
        self,
        model: ChromaModel,
        prompt: PromptFormat,
        config: EngineConfig,
        mode: DeviceMode | None = None,
    ) -> None:
        self.model, self.prompt, self.config = model, prompt, config
        self.mode = mode or DeviceMode.of(model.device, graphs=config.cuda_graphs)
        self.graphs = Graphs(self.mode.record)
        weight = model.backbone.codebook0_head.weight
        rows = config.max_replies
        sizes = model.config
        thinker_rows = config.thinker_cache_rows + TRANSCRIPT_ROWS  # the last ones are those
        self.thinker_cache = KVCache.empty(
            sizes.text, thinker_rows, _room(config.thinker_positions), weight
        )
        self.backbone_cache = KVCache.empty(
            sizes.backbone, rows, _room(config.backbone_positions), weight
        )
        with torch.inference_mode():
            self.depth_steps = model.depth.new_steps(rows, config.depth_positions)
        self.decode_state = model.codec.new_decode_state(rows)
        hidden = model.thinker.embedding.weight[:1]
        self.rows = Rows.empty(rows, self.mode.codec_frames, hidden, sizes.eos_code)
        for row in range(rows):
            self.rows.sampling.set_row(row, GREEDY, 0)
        self.code0_logits = weight.new_zeros(rows, weight.shape[0], dtype=torch.float32)
        self._cuda = model.device.type == "cuda"
        self._apart = config.time_parts or self.mode.record is None  # backbone and depth decoder
        self.undecoded = 0  # frames that wait for the codec, the same number for all active rows
        self._active: list[int] = []
        self._draws = [self.mode.few_shapes] * rows  # rows that take more than an argmax
        # a piece of a prompt on its way into a thinker cache
        self._piece = weight.new_zeros(PIECE_POSITIONS, sizes.text.hidden_size)
        self._piece_at = torch.zeros(PIECE_POSITIONS, dtype=torch.int64, device=model.device)
        self._piece_row = torch.zeros(1, dtype=torch.int64, device=model.device)
        self._piece_last = torch.zeros(1, dtype=torch.int64, device=model.device)
        self.tower = StaticTower(model.thinker.audio_tower, self.graphs, self.mode)
        self._spans, self._thinker_spans = (
            Ladder.doubling(SPAN_STEP, cache.positions)
            if self.mode.few_shapes
            else Ladder.even(SPAN_STEP, cache.positions)
            for cache in (self.backbone_cache, self.thinker_cache)
        )
        self._pieces = (
            Ladder((PIECE_POSITIONS // 4, PIECE_POSITIONS))
            if self.mode.few_shapes
            else Ladder(tuple(range(1, PIECE_POSITIONS + 1)))
        )

    @property
    def active(self) -> list[int]:
        """The rows that make frames, as they were set; empty after a row was started or stopped."""
        return self._active

    def new_clock(self) -> PartClock:
        """A clock for parts that run on this device."""
        return PartClock(self._cuda)

    # -- between steps -----------------------------------------------------------------------

    @torch.inference_mode()
    def prepare_voice(self, voice: Voice, codes: Tensor | None = None) -> ReadyVoice:
        """Encodes a voice, unless its codes are known, and runs the backbone over its prompt, once
        for all of its replies."""
        prompt = self.model.voice_prompt(
            self.prompt.encode(voice.transcript), torch.tensor(voice.samples), codes
        )
        length = len(prompt.embeds)
        prefix = KVCache.empty(self.model.config.backbone, 1, length, prompt.embeds)
        positions = torch.arange(length, device=self.model.device)[None]
        self.model.backbone.transformer(prompt.embeds[None], positions, prefix)
        return ReadyVoice(prompt, prefix)

    @torch.inference_mode()
    def prefill(self, thinker_row: int, embeds: Tensor, start: int) -> Tensor:
        """Reads a piece of a prompt into a conversation's thinker cache.

        Args:
            thinker_row: its row there.
            embeds: `[n, hidden]`, n at most `PIECE_POSITIONS`.
            start: the position of the first.

        Returns:
            The thinker's last state, `[hidden]`.
        """
        n = len(embeds)
        size = self._pieces.fit(n)
        self._piece[:n] = embeds
        self._piece_at.fill_(self.thinker_cache.positions - 1)  # what fills the piece up
        self._piece_at[:n] = torch.arange(start, start + n, device=embeds.device)
        self._piece_row.fill_(thinker_row)
        self._piece_last.fill_(n - 1)
        last: Tensor = self.graphs.run(self.read, size, self._thinker_spans.fit(start + n))
        return last.clone()

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
        assert not self.undecoded, "the codec is to catch up before a reply begins"
        rows, length = self.rows, voice.positions
        self.backbone_cache.copy_prefix(voice.prefix, 0, row, length)
        self.decode_state.reset(row)
        self._active = []
        for flags in (rows.active, rows.texting, rows.fresh):
            flags[row].fill_(True)  # `flags[row] = True` would wait for the step that is under way
        rows.hidden[row] = hidden
        rows.position[row].fill_(length)
        rows.thinker_row[row].fill_(thinker_row)
        rows.thinker_position[row].fill_(thinker_position)
        rows.said_next[row].fill_(-1 if say is None else 0)
        if say is not None:
            ids = torch.tensor([*say, self.model.config.im_end])
            rows.said[row, : len(ids)] = ids.to(rows.said.device)
        self._draws[row] = self.mode.few_shapes or not sampling.is_argmax
        rows.sampling.set_row(row, sampling, seed)

    @torch.inference_mode()
    def stop(self, row: int) -> None:
        """Takes a reply off its row."""
        self._active, self._draws[row] = [], self.mode.few_shapes
        self.rows.active[row].fill_(False)

    @torch.inference_mode()
    def set_active(self, rows: list[int]) -> None:
        """Says which rows make frames from now on; the others keep their state."""
        mask = torch.zeros(self.config.max_replies, dtype=torch.bool, pin_memory=self._cuda)
        mask[rows] = True
        self.rows.active.copy_(mask, non_blocking=True)
        self._active = rows

    @torch.inference_mode()
    def capture(self) -> None:
        """Captures every step in every shape that can occur, if the mode captures at all."""
        begin = time.monotonic()
        if self.mode.record is not None:
            self.graphs.capture(self.tower.hear)
            for size in self._pieces.sizes:
                for span in self._thinker_spans.sizes:
                    self.graphs.capture(self.read, size, span)
            for batch in Ladder.doubling(1, self.config.max_replies).sizes:
                self.graphs.capture(self.decode, batch, 1)
                for span in self._thinker_spans.sizes:
                    self.graphs.capture(self.think, batch, span)
                self._capture_frame(batch)
            log.info("captured %d graphs in %.1f s", len(self.graphs), time.monotonic() - begin)

    def _capture_frame(self, batch: int) -> None:
        if self._apart:
            self.graphs.capture(self.pick_frame, batch, 0)
        for span in self._spans.sizes:
            for pair in (True, False):
                if self._apart:
                    self.graphs.capture(self.read_inputs, batch, span, pair)
                else:
                    self.graphs.capture(self.make_frame, batch, span, pair, 0)

    # -- one frame ---------------------------------------------------------------------------

    @torch.inference_mode()
    def step(
        self, batch: int, *, think: bool, thinker_span: int, span: int, decode: bool = True
    ) -> StepResult:
        """Makes the next frame of rows 0 to `batch` - 1.

        Args:
            batch: rows to cover.
            think: it is an even step and some row's text goes on: a pair is given.
            thinker_span: positions of the thinker's cache in use.
            span: positions of the backbone's cache in use after this step.
            decode: the codec makes this frame and those that wait; otherwise this one waits too.
        """
        clock, run = self.new_clock(), self.graphs.run
        span, waiting = self._spans.fit(span), self.undecoded
        if think:
            with clock.part("thinker"):
                run(self.think, batch, self._thinker_spans.fit(thinker_span))
        if self._apart:
            with clock.part("backbone"):
                run(self.read_inputs, batch, span, think)
            with clock.part("depth"):
                codes = run(self.pick_frame, batch, waiting)
        else:
            with clock.part("frame"):
                codes = run(self.make_frame, batch, span, think, waiting)
        codes = self._to_host(codes)  # at once: the codec's graph may write on the same scratch
        self.undecoded += 1
        audio = self.decode_rest(batch, clock) if decode else None
        result = StepResult(codes, self._to_host(self.rows.token[:batch]), audio, clock)
        if self._cuda:
            result._arrived = torch.cuda.Event()
            result._arrived.record()
        return result

    @torch.inference_mode()
    def decode_rest(self, batch: int, clock: PartClock) -> Tensor:
        """The audio of the waiting frames, float32 `[batch, 1920 * n]`, on its way to the host."""
        with clock.part("codec"):
            audio = self.graphs.run(self.decode, batch, self.undecoded)
        self.undecoded = 0
        return self._to_host(audio)

    def read(self, size: int, span: int) -> Tensor:
        """The thinker reads the first `size` places of the piece; its last state, `[hidden]`."""
        out = self.model.thinker.transformer(
            self._piece[None, :size],
            self._piece_at[None, :size],
            self.thinker_cache,
            rows=self._piece_row,
            span=span,
        )
        return out[0].index_select(0, self._piece_last)[0]

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

    def make_frame(self, batch: int, span: int, pair: bool, waiting: int) -> Tensor:
        """A whole frame, codes int64 `[batch, K]`: one graph where there are graphs."""
        self.read_inputs(batch, span, pair)
        return self.pick_frame(batch, waiting)

    def read_inputs(self, batch: int, span: int, pair: bool) -> None:
        """The backbone reads the newest frame and, on an even step, the text pair.

        Args:
            batch: rows to cover.
            span: positions of its cache to look at.
            pair: it is an even step: rows whose text goes on are given their pair.
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
        rows.state[:batch] = out.gather(1, last[:, None, None].expand(-1, 1, out.shape[-1]))[:, 0]

    def pick_frame(self, batch: int, waiting: int) -> Tensor:
        """Code 0, the seven passes of the depth decoder, and the draws.

        Args:
            batch: rows to cover.
            waiting: frames that wait for the codec before this one.

        Returns:
            Codes int64 `[batch, K]`.
        """
        rows, model = self.rows, self.model
        sampling, state = rows.sampling.first(batch), rows.state[:batch]
        size = model.config.codebook_size
        logits = model.backbone.codebook0_head(state)
        self.code0_logits[:batch] = logits
        noise = frame_noise(sampling, size) if any(self._draws[:batch]) else None

        def pick(scores: Tensor, codebook: int) -> Tensor:
            if noise is None:  # every row is greedy
                return scores.argmax(dim=-1)
            return pick_codes(scores, codebook, sampling, size, noise)

        codes = model.depth.frame(state, pick(logits, 0), self.depth_steps, pick)
        active = rows.active[:batch]
        rows.codes[:batch] = torch.where(active[:, None], codes, rows.codes[:batch])
        rows.undecoded[:batch, :, waiting] = codes
        sampling.advance(codes[:, 0], active)
        return codes

    def decode(self, batch: int, frames: int) -> Tensor:
        """The codec over the frames that wait: float32 `[batch, 1920 * frames]`."""
        codes, active = self.rows.undecoded[:batch, :, :frames], self.rows.active[:batch]
        return self.model.codec.decode_step(codes, self.decode_state, active)[:, 0]

    def _to_host(self, tensor: Tensor) -> Tensor:
        """A copy in the host's memory; on CUDA pinned, and not there before `StepResult.wait`."""
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._cuda)
        return host.copy_(tensor, non_blocking=True)


def _room(positions: int) -> int:
    return -(-(positions + SLACK_POSITIONS) // 64) * 64
