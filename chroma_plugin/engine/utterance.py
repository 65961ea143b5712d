"""One reply on the engine's side: what it needs to begin, what it has said, when it ends.

It takes its row's share of each step and turns it into events. It knows nothing of batches: the
tensors it is handed are its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from chroma_plugin.audio import FRAME_MS
from chroma_plugin.config import EngineConfig
from chroma_plugin.conversation import ReplyRequest
from chroma_plugin.engine.dialogue import Entry
from chroma_plugin.engine.outlet import Outlet
from chroma_plugin.engine.runner import ReadyVoice
from chroma_plugin.engine.scheduler import URGENT_S, Slot
from chroma_plugin.errors import ChromaError
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.prompt import PromptFormat, TextStream
from chroma_plugin.reply import (
    AudioChunk,
    EndReason,
    ReplyEvent,
    TextClock,
    TextDelta,
    Timings,
    TurnDone,
)

Emit = Callable[[ReplyEvent | ChromaError], None]


@dataclass(slots=True, eq=False)
class Utterance:
    """A reply on its way, from the moment it is asked for.

    Attributes:
        request: what was asked.
        emit: hands an event to the session's event loop.
        entry: its message in the dialogue.
        aside: the instruction for this reply alone.
        say: tokens to speak word for word.
        max_frames: the cap on its length.
        asked_s: when it was asked for.
        voice: set once the voice is ready.
        hidden: the thinker's state after the prompt; set once the prompt is read.
        started_s: when it got its row.
        first_audio_s: when its first audio left.
        parts: milliseconds spent on it, by part.
    """

    request: ReplyRequest
    emit: Emit
    entry: Entry
    aside: Entry | None
    say: list[int] | None
    max_frames: int
    asked_s: float
    text: TextStream
    text_clock: TextClock
    outlet: Outlet = field(default_factory=Outlet)
    voice: ReadyVoice | None = None
    hidden: Tensor | None = None
    started_s: float = 0.0
    first_audio_s: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    _spoken: list[str] = field(default_factory=list)
    _last_codes: Tensor | None = None
    _repeats: int = 0

    @classmethod
    def new(
        cls,
        request: ReplyRequest,
        emit: Emit,
        entries: tuple[Entry, Entry | None],
        say: list[int] | None,
        asked_s: float,
        prompt: PromptFormat,
        config: EngineConfig,
    ) -> Utterance:
        """A reply that nothing has been made of."""
        most_s = min(request.max_reply_s or config.max_reply_s, config.max_reply_s)
        return cls(
            request=request,
            emit=emit,
            entry=entries[0],
            aside=entries[1],
            say=say,
            max_frames=max(round(most_s * 1000 / FRAME_MS), 1),
            asked_s=asked_s,
            text=TextStream(prompt),
            text_clock=TextClock(request.voice.chars_per_second),
        )

    @property
    def ready(self) -> bool:
        """It could begin."""
        return self.voice is not None and self.hidden is not None

    def most_tokens(self, config: EngineConfig) -> int:
        """How many positions its text can take in the thinker.

        A token costs two frames, and four positions of the backbone, whichever runs out first.
        """
        if self.say is not None:
            return len(self.say) + 1
        return min(self.max_frames // 2, config.backbone_positions // 4) + 2

    def spend(self, part: str, ms: float) -> None:
        """Adds time to one of its parts."""
        self.parts[part] = self.parts.get(part, 0.0) + ms

    def take_token(self, slot: Slot, token: int, model: ChromaModel) -> None:
        """Takes the text token of its newest pair."""
        if token == model.config.im_end:
            slot.texting = False
            return
        self.entry.tokens.append(token)
        text, tokens = self.text.push(token)
        if text:
            self._spoken.append(text)
            start_ms = self.text_clock.place(text, slot.frames * FRAME_MS)
            self.emit(TextDelta(text, start_ms, tokens))

    def take_frame(
        self,
        slot: Slot,
        codes: Tensor,
        audio: Tensor,
        now_s: float,
        model: ChromaModel,
        config: EngineConfig,
    ) -> EndReason | None:
        """Takes its newest frame.

        Args:
            slot: its row.
            codes: int64 `[K]`.
            audio: float32 `[1920]`.
            now_s: the time.
            model: says what an end is.
            config: the limits.

        Returns:
            Why it has ended; None if it goes on.
        """
        if model.is_end_of_speech(codes):
            return EndReason.END_OF_SPEECH
        slot.frames += 1
        reason = self._limit(slot, codes, config)
        chunk = self.outlet.push(
            audio.numpy(),
            text_ended=not slot.texting,
            hurry=slot.in_hand_s(now_s) < URGENT_S,
            last=reason is not None,
        )
        if chunk is not None:
            self._send(slot, chunk, now_s)
        return reason

    def finish(self, slot: Slot, reason: EndReason, now_s: float) -> None:
        """Sends what is left, and the last event."""
        chunk = self.outlet.finish()
        if chunk is not None:
            self._send(slot, chunk, now_s)
        if not slot.frames:  # nothing was spoken, so nothing was said
            self.entry.tokens.clear()
            self._spoken.clear()
        self.emit(
            TurnDone(
                reason=reason,
                text="".join(self._spoken),
                audio_ms=self.outlet.out_ms,
                tokens=len(self.entry.tokens),
                frames=slot.frames,
                timings=Timings(
                    queued_ms=(self.started_s - self.asked_s) * 1000,
                    first_audio_ms=max(self.first_audio_s - self.asked_s, 0.0) * 1000,
                    total_ms=(now_s - self.asked_s) * 1000,
                    **{f"{part}_ms": ms for part, ms in self.parts.items()},
                ),
            )
        )

    def _send(self, slot: Slot, chunk: AudioChunk, now_s: float) -> None:
        slot.sent(chunk.duration_ms / 1000, now_s)
        self.first_audio_s = self.first_audio_s or now_s
        self.emit(chunk)

    def _limit(self, slot: Slot, codes: Tensor, config: EngineConfig) -> EndReason | None:
        same = self._last_codes is not None and torch.equal(codes, self._last_codes)
        self._repeats = self._repeats + 1 if same else 1
        self._last_codes = codes
        if slot.frames >= self.max_frames:
            return EndReason.MAX_SECONDS
        if slot.position + 3 > config.backbone_positions:
            return EndReason.POSITIONS
        if self._repeats >= config.repeat_stop_frames:
            return EndReason.REPEATED
        return None
