"""The frames of a reply, and what is measured while they are pushed.

When a reply may begin, and when it must end, is the service's to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from pipecat.frames.frames import (
    Frame,
    LLMAssistantPushAggregationFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
)
from pipecat.metrics.metrics import LLMTokenUsage
from pipecat.services.llm_service import LLMService
from pipecat.utils.text.base_text_aggregator import TextType

from chroma_plugin.audio import OUTPUT_RATE_HZ
from chroma_plugin.errors import EngineBusy
from chroma_plugin.pipecat.response import Response
from chroma_plugin.reply import AudioChunk, ReplyEvent, ReplyStream, TextDelta, TurnDone

STALL_S = 60.0
"""An engine that gives nothing for so long will not."""
MS_PER_POSITION = 40.0
"""The model hears 25 positions a second."""


class Speech:
    """Pushes replies downstream.

    Args:
        service: whose replies they are; it pushes the frames and keeps the metrics.
    """

    def __init__(self, service: LLMService) -> None:
        self._service = service

    async def open(self, response: Response) -> None:
        """Tells that a reply begins."""
        await self._service.start_ttfb_metrics(start_time=response.asked_at)
        await self._service.start_processing_metrics(start_time=response.asked_at)
        if response.say is None:  # words to say are a speaker's work, not a language model's
            await self._push(response, LLMFullResponseStartFrame())
        await self._push(response, TTSStartedFrame(append_to_context=response.kept))

    async def push(self, response: Response) -> None:
        """Pushes a reply's text and audio as they come.

        Raises:
            ChromaError: the reply could not be made.
        """
        async for event in _alive(response.stream):
            match event:
                case TextDelta(text=text):
                    await self._service.stop_ttfb_metrics()
                    await self._push_text(response, text)
                case AudioChunk(pcm=pcm):
                    await self._service.stop_ttfb_metrics()
                    response.audio_pushed()
                    audio = TTSAudioRawFrame(pcm, OUTPUT_RATE_HZ, 1)
                    await self._push(response, audio)
                    await self._service.process_ttfa_metrics(audio)
                case TurnDone():
                    response.done = event
                    await self._count(event)

    async def stop(self, response: Response) -> None:
        """Tells that no more audio of it comes, and how it ended."""
        await self._service.stop_processing_metrics()
        if response.done is not None:
            await self._service._call_event_handler("on_reply_done", response.done)
        await self._push(response, TTSStoppedFrame())

    async def close(self, response: Response) -> None:
        """Tells that nothing more of it comes: the aggregator writes it down."""
        if response.say is None:
            await self._push(response, LLMFullResponseEndFrame())
        elif response.kept:
            await self._push(response, LLMAssistantPushAggregationFrame())

    async def cut(self, response: Response) -> None:
        """Ends a reply that was cancelled in the middle of `push`."""
        async for event in response.stream:  # what is left of it is its end
            if isinstance(event, TurnDone):
                response.done = event
                await self._count(event)
        await self.stop(response)

    async def _push_text(self, response: Response, text: str) -> None:
        if response.say is None:
            written = LLMTextFrame(text)
            written.append_to_context = False  # the spoken one is, as far as it is heard
            await self._push(response, written)
        spoken = TTSTextFrame(text, text_type=TextType.WORD)
        spoken.includes_inter_frame_spaces = True
        spoken.append_to_context = response.kept
        await self._push(response, spoken)

    async def _push(self, response: Response, frame: Frame) -> None:
        frame.interruptible = response.interruptible
        await self._service.push_frame(frame)

    async def _count(self, done: TurnDone) -> None:
        heard = round(done.user_audio_ms / MS_PER_POSITION)
        made = done.tokens + done.frames
        await self._service.start_llm_usage_metrics(
            LLMTokenUsage(
                prompt_tokens=heard,
                completion_tokens=made,
                total_tokens=heard + made,
                input_audio_tokens=heard,
                output_audio_tokens=done.frames,
            )
        )


async def _alive(stream: ReplyStream) -> AsyncIterator[ReplyEvent]:
    """The stream's events.

    Raises:
        EngineBusy: none came for `STALL_S`.
    """
    while True:
        try:
            async with asyncio.timeout(STALL_S):
                event = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise EngineBusy(
                f"The engine has made nothing for {STALL_S:g} s; this reply is given up. "
                "`chroma-plugin doctor` says what the machine can do."
            ) from None
        yield event
