"""One reply on the engine's side: what it needs to begin, what it has said, when it ends.

It takes its row's share of each step and turns it into events. It knows nothing of batches: the
tensors it is handed are its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from chroma_plugin.audio import FRAME_MS, FRAME_SAMPLES, Samples
from chroma_plugin.config import EngineConfig
from chroma_plugin.conversation import ReplyRequest
from chroma_plugin.engine.clock import PartClock
from chroma_plugin.engine.dialogue import Entry
from chroma_plugin.engine.outlet import Outlet
from chroma_plugin.engine.runner import ReadyVoice
from chroma_plugin.engine.scheduler import URGENT_S, Slot
from chroma_plugin.errors import ChromaError
from chroma_plugin.model.config import ChromaConfig
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
        sizes: says what an end is.
        config: the limits.
        voice: set once the voice is ready.
        hidden: the thinker's state after the prompt; set once the prompt is read.
        started_s: when it got its row.
        first_audio_s: when its first audio left.
        parts: milliseconds spent on it, by part.
        reading: the clocks of its prompt's pieces, read in the end.
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
    sizes: ChromaConfig
    config: EngineConfig
    outlet: Outlet = field(default_factory=Outlet)
    voice: ReadyVoice | None = None
    hidden: Tensor | None = None
    started_s: float = 0.0
    first_audio_s: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    reading: list[PartClock] = field(default_factory=list)
    _spoken: list[str] = field(default_factory=list)
    _unvoiced: list[bool] = field(default_factory=list)  # of each: had the text ended by then
    _last_codes: list[int] | None = None
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
        sizes: ChromaConfig,
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
            sizes=sizes,
            config=config,
        )

    @property
    def ready(self) -> bool:
        """It could begin."""
        return self.voice is not None and self.hidden is not None

    def most_tokens(self) -> int:
        """How many positions its text can take in the thinker.

        A token costs two frames, and four positions of the backbone, whichever runs out first.
        """
        if self.say is not None:
            return len(self.say) + 1
        return min(self.max_frames // 2, self.config.backbone_positions // 4) + 2

    def spend(self, part: str, ms: float) -> None:
        """Adds time to one of its parts."""
        self.parts[part] = self.parts.get(part, 0.0) + ms

    def take_token(self, slot: Slot, token: int) -> None:
        """Takes the text token of its newest pair."""
        if token == self.sizes.im_end:
            slot.texting = False
            return
        self.entry.tokens.append(token)
        text, tokens = self.text.push(token)
        if text:
            self._spoken.append(text)
            start_ms = self.text_clock.place(text, slot.frames * FRAME_MS)
            self.emit(TextDelta(text, start_ms, tokens))

    def take_codes(self, slot: Slot, codes: list[int]) -> EndReason | None:
        """Takes the K codes of its newest frame.

        Returns:
            Why it has ended; None if it goes on. A frame that ends the speech has no sound.
        """
        if self.sizes.is_end_of_speech(codes):
            return self._stopped(EndReason.END_OF_SPEECH)
        slot.frames += 1
        self._unvoiced.append(not slot.texting)
        return self._limit(slot, codes)

    def take_audio(self, slot: Slot, audio: Samples, now_s: float, *, cut: bool) -> None:
        """Takes the sound of the frames whose codes it took last.

        Args:
            slot: its row.
            audio: float32 `[1920 * n]`; what lies beyond its own frames means nothing.
            now_s: the time.
            cut: the speech did not end by itself: its last 5 ms are faded.
        """
        frames = audio[: len(self._unvoiced) * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
        for i, (frame, text_ended) in enumerate(zip(frames, self._unvoiced, strict=True)):
            chunk = self.outlet.push(
                frame.copy(),
                text_ended=text_ended,
                hurry=slot.in_hand_s(now_s) < URGENT_S,
                last=cut and i + 1 == len(frames),
            )
            if chunk is not None:
                self._send(slot, chunk, now_s)
        self._unvoiced.clear()

    def finish(self, slot: Slot, reason: EndReason, now_s: float) -> None:
        """Sends what is left, and the last event."""
        chunk = self.outlet.finish()
        if chunk is not None:
            self._send(slot, chunk, now_s)
        for clock in self.reading:
            self.spend("prefill", clock.read()["prefill"])
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

    def _limit(self, slot: Slot, codes: list[int]) -> EndReason | None:
        config = self.config
        self._repeats = self._repeats + 1 if codes == self._last_codes else 1
        self._last_codes = codes
        if slot.frames >= self.max_frames:
            return EndReason.MAX_SECONDS
        if slot.position + 3 > config.backbone_positions:
            return EndReason.POSITIONS
        if self._repeats >= config.repeat_stop_frames:
            return self._stopped(EndReason.REPEATED)
        return None

    def _stopped(self, reason: EndReason) -> EndReason:
        """Why it has ended, when the model stopped by itself: it may do so in mid-text."""
        unread = self.say is not None and len(self.entry.tokens) < len(self.say)
        return EndReason.UNFINISHED if unread else reason
