"""One reply as the framework takes it: a message with a stream of text and a stream of audio.

Knows when it was interrupted and how far its audio may lead; not what was asked, nor who hears it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal

from livekit import rtc
from livekit.agents import llm, metrics, utils
from livekit.agents.metrics.base import Metadata
from livekit.agents.types import TimedString

from chroma_plugin.audio import OUTPUT_RATE_HZ
from chroma_plugin.errors import EngineError
from chroma_plugin.livekit.feed import Feed
from chroma_plugin.livekit.record import Item
from chroma_plugin.reply import AudioChunk, ReplyEvent, ReplyStream, TextDelta, TurnDone

LEAD_S = 2.0
"""So far ahead of its playback audio is handed out. A room takes all that it is given, so what was
handed out and not heard is what an interruption throws away."""

HEARD_PER_MS = 25 / 1000
"""Positions that a millisecond of the user's speech takes in the thinker."""

Modality = Literal["text", "audio"]


class Answer:
    """A reply on its way.

    Args:
        stream: where it comes from.
        asked_at: when it was asked for, as `time.time`.
        stall_s: a reply of which nothing comes for so long is given up.
        on_taken: is told when the framework takes the first piece of it.

    Attributes:
        item: what it is in the record.
        response_id: its name in metrics.
        done: how it ended, if it ended by itself.
        first_audio_at: when the engine gave the first audio.
    """

    def __init__(
        self,
        stream: ReplyStream,
        asked_at: float,
        stall_s: float,
        on_taken: Callable[[Answer], None],
    ) -> None:
        message_id = utils.shortuuid("chroma_item_")
        self.item = Item(llm.ChatMessage(id=message_id, role="assistant", content=[]))
        self.item.turn = stream.turn
        self.response_id = utils.shortuuid("chroma_reply_")
        self.asked_at, self.created_at = asked_at, time.time()
        self.done: TurnDone | None = None
        self.first_audio_at: float | None = None
        self.cut = False
        self._stream, self._stall_s = stream, stall_s
        self._on_taken: Callable[[Answer], None] | None = on_taken
        self._text: Feed[str] = Feed(self._taken)
        self._audio: Feed[rtc.AudioFrame] = Feed(self._taken)
        self._messages: Feed[llm.MessageGeneration] = Feed()
        self._calls: Feed[llm.FunctionCall] = Feed()
        self._calls.close()
        self._heeded = asyncio.Event()  # somebody reads, or the reply is cut
        for feed in (self._text, self._audio):
            feed.watch(self._heeded)

    @property
    def over(self) -> bool:
        """Nothing of it is still to come."""
        return self._messages.closed

    def created(self) -> llm.GenerationCreatedEvent:
        """The event that hands it to the framework."""
        modalities: asyncio.Future[list[Modality]] = asyncio.get_running_loop().create_future()
        modalities.set_result(["audio", "text"])
        self._messages.put(
            llm.MessageGeneration(
                message_id=self.item.chat.id,
                text_stream=self._text,
                audio_stream=self._audio,
                modalities=modalities,
            )
        )
        return llm.GenerationCreatedEvent(
            message_stream=self._messages,
            function_stream=self._calls,
            user_initiated=True,
            response_id=self.response_id,
        )

    async def run(self, first: ReplyEvent) -> None:
        """Hands out what comes, until the end.

        Raises:
            ChromaError: the reply failed in its middle; what came of it was handed out.
        """
        try:
            event: ReplyEvent | None = first
            while event is not None and not self.cut:
                await self._put(event)
                event = None if isinstance(event, TurnDone) else await self._next()
            if isinstance(event, TurnDone):  # it was cut, and this says how much had been made
                self.done = event
        finally:
            self._close(drop=self.cut)

    async def _next(self) -> ReplyEvent | None:
        try:
            async with asyncio.timeout(self._stall_s):
                return await anext(self._stream, None)
        except TimeoutError:
            raise EngineError(
                f"The reply stopped: nothing came of it for {self._stall_s:g} s. See whether the "
                "engine still runs."
            ) from None

    async def _put(self, event: ReplyEvent) -> None:
        match event:
            case TextDelta(text=text, start_ms=start_ms):
                self._text.put(TimedString(text, start_time=start_ms / 1000))
            case AudioChunk():
                if self.first_audio_at is None:
                    self.first_audio_at = time.time()
                await self._room(event.start_ms / 1000)
                self._audio.put(_frame(event.pcm))
            case TurnDone():
                self.done = event

    async def _room(self, start_s: float) -> None:
        """Waits until the audio from there on is due to be handed out."""
        loop = asyncio.get_running_loop()
        while not self.cut:
            began = self._audio.read_since
            if began is None and self._text.read_since is not None:
                return  # only the text is read
            played_s = 0.0 if began is None else loop.time() - began
            if start_s <= played_s + LEAD_S:
                return
            self._heeded.clear()
            wait_s = None if began is None else start_s - LEAD_S - played_s
            try:
                async with asyncio.timeout(wait_s):
                    await self._heeded.wait()
            except TimeoutError:
                continue

    def interrupt(self) -> None:
        """Ends every stream at once; idempotent."""
        if not self.over:
            self.cut = self.item.cut = True
            self._close(drop=True)

    def _close(self, *, drop: bool) -> None:
        self._text.close(drop=drop)
        self._audio.close(drop=drop)
        self._messages.close()

    def _taken(self) -> None:
        if self._on_taken is not None:
            told, self._on_taken = self._on_taken, None
            told(self)

    def metrics(
        self, label: str, metadata: Metadata, heard_ms: float
    ) -> metrics.RealtimeModelMetrics:
        """What it took.

        Args:
            label: whose metrics they are.
            metadata: the model's names.
            heard_ms: what the user had said since the reply before.
        """
        text_tokens, frames = (self.done.tokens, self.done.frames) if self.done else (0, 0)
        heard, made = round(heard_ms * HEARD_PER_MS), text_tokens + frames
        seconds = time.time() - self.asked_at
        first_s = -1.0 if self.first_audio_at is None else self.first_audio_at - self.asked_at
        return metrics.RealtimeModelMetrics(
            label=label,
            request_id=self.response_id,
            timestamp=self.created_at,
            duration=seconds,
            ttft=first_s,
            cancelled=self.cut or (self.done is None),
            input_tokens=heard,
            output_tokens=made,
            total_tokens=heard + made,
            tokens_per_second=made / seconds if seconds > 0 else 0.0,
            input_token_details=metrics.RealtimeModelMetrics.InputTokenDetails(audio_tokens=heard),
            output_token_details=metrics.RealtimeModelMetrics.OutputTokenDetails(
                text_tokens=text_tokens, audio_tokens=frames
            ),
            metadata=metadata,
        )


def _frame(pcm: bytes) -> rtc.AudioFrame:
    return rtc.AudioFrame(
        data=pcm,
        sample_rate=OUTPUT_RATE_HZ,
        num_channels=1,
        samples_per_channel=len(pcm) // 2,
    )
