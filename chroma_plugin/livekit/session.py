"""`RealtimeSession`: what LiveKit's framework asks of a realtime model, told to a `Session`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterable
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from livekit import rtc
from livekit.agents import llm, utils
from livekit.agents.metrics.base import Metadata
from livekit.agents.types import NOT_GIVEN, NotGivenOr

from chroma_plugin.config import DEFAULT_INSTRUCTIONS, SamplingParams
from chroma_plugin.conversation import Message
from chroma_plugin.errors import (
    AudioError,
    ChromaError,
    EngineBusy,
    EngineClosed,
    EngineFailed,
    SessionClosed,
)
from chroma_plugin.livekit.answer import Answer
from chroma_plugin.livekit.asking import Asking, Promise
from chroma_plugin.livekit.hearing import Hearing
from chroma_plugin.livekit.line import Line
from chroma_plugin.livekit.record import Item
from chroma_plugin.livekit.transcripts import Transcripts
from chroma_plugin.session import Session
from chroma_plugin.voice import Voice

if TYPE_CHECKING:
    from chroma_plugin.livekit.model import RealtimeModel

log = logging.getLogger(__name__)

OPEN_LIMIT_S = 15.0
"""An engine that takes longer to open a session has no room."""


class RealtimeSession(llm.RealtimeSession[Literal["chroma_reply_done"]]):
    """One conversation of an `AgentSession`; made by `RealtimeModel.session`.

    Besides the framework's events it emits ``chroma_reply_done(done: TurnDone)`` when a reply has
    been made or was cut, with its text, its length and where the time went.
    """

    def __init__(self, model: RealtimeModel) -> None:
        super().__init__(model)
        self._model = model
        self._voice, self._sampling = model.voice, model.sampling
        self._agent_instructions = ""
        self._hearing = Hearing()
        self._line = Line(self._open_session, self._instructions, self._turn_told)
        self._transcripts = Transcripts(model.transcribe, self._written)
        self._asking = Asking(
            self._line,
            model.reply_timeout_s,
            on_created=lambda answer, created: self.emit("generation_created", created),
            on_taken=self._taken,
            on_over=self._over,
            report=self._report,
        )
        self._heard_ms = 0.0  # said by the user since the last reply
        self._tasks: set[asyncio.Task[None]] = set()
        self._warned: set[str] = set()
        self._closed = False
        self._refresh_soon()

    # -- what the framework reads ----------------------------------------------------------------

    @property
    def chat_ctx(self) -> llm.ChatContext:
        """The conversation as the model knows it; a copy."""
        return self._line.record.context

    @property
    def tools(self) -> llm.ToolContext:
        """None: the model calls no tools."""
        return llm.ToolContext.empty()

    # -- what is changed -------------------------------------------------------------------------

    async def update_instructions(self, instructions: str) -> None:
        """Replaces the system prompt, from the next reply on; an empty one is the model's own."""
        self._agent_instructions = instructions
        self._apply_settings()

    async def update_chat_ctx(self, chat_ctx: llm.ChatContext) -> None:
        """Makes the conversation what the context says; see `Record.update`."""
        gone, rewritten = self._line.record.update(chat_ctx)
        self._line.changed(gone, rewritten)
        self._refresh_soon()

    async def update_tools(self, tools: list[llm.Tool]) -> None:
        """Takes none: warns once if there are any."""
        if tools:
            self._warn_once("Chroma calls no tools; those of the agent are ignored.")

    def update_options(
        self,
        *,
        tool_choice: NotGivenOr[llm.ToolChoice | None] = NOT_GIVEN,
        voice: NotGivenOr[Voice] = NOT_GIVEN,
        sampling: NotGivenOr[SamplingParams] = NOT_GIVEN,
    ) -> None:
        """Changes this conversation from its next reply on.

        Args:
            tool_choice: ignored; the model calls no tools.
            voice: whose voice replies are spoken in.
            sampling: how codes are drawn.
        """
        if utils.is_given(voice):
            self._voice = voice
        if utils.is_given(sampling):
            self._sampling = sampling
        self._apply_settings()

    def _instructions(self) -> str:
        return self._agent_instructions or DEFAULT_INSTRUCTIONS

    def _apply_settings(self) -> None:
        if self._line.session is not None:
            with suppress(SessionClosed):
                self._line.session.update(voice=self._own_voice, sampling=self._sampling)
        self._line.instruct()

    @property
    def _own_voice(self) -> Voice | None:
        return self._voice if isinstance(self._voice, Voice) else None

    # -- what the user does ----------------------------------------------------------------------

    def push_audio(self, frame: rtc.AudioFrame) -> None:
        """Hears a frame of any rate; silence is cut short."""
        if self._closed:
            return
        try:
            self._line.hear(self._hearing.push(frame))
        except AudioError as error:
            self._warn_once(f"audio is dropped: {error}")
            return
        if self._hearing.noise_only:
            self.clear_audio()

    def push_video(self, frame: rtc.VideoFrame) -> None:
        """Ignored: the model has no eyes. Warns once."""
        self._warn_once("Chroma sees nothing; video is ignored.")

    def commit_audio(self) -> None:
        """Makes what was heard a message of the user's; without a word in it, nothing."""
        if self._closed:
            return
        self._line.hear(self._hearing.end_turn())
        item = Item(llm.ChatMessage(id=utils.shortuuid("chroma_item_"), role="user", content=[]))
        if self._line.commit(item):
            self._heard_ms += item.audio_ms
            self._added(item)

    def clear_audio(self) -> None:
        """Takes back what was heard since the last commit."""
        self._hearing.forget()
        self._line.forget()

    def start_user_activity(self) -> None:
        """Nothing to do: what the user says is read while it comes in."""

    def _turn_told(self, item: Item) -> None:
        if self._line.session is not None:
            self._transcripts.begin(item, self._line.session)

    def _written(self, item: Item) -> None:
        began = item.chat.created_at - item.audio_ms / 1000
        self.emit(
            "input_audio_transcription_completed",
            llm.InputTranscriptionCompleted(
                item_id=item.chat.id, transcript=item.text, is_final=True, turn_started_at=began
            ),
        )

    # -- what is answered ------------------------------------------------------------------------

    def generate_reply(
        self,
        *,
        instructions: NotGivenOr[str] = NOT_GIVEN,
        tool_choice: NotGivenOr[llm.ToolChoice] = NOT_GIVEN,
        tools: NotGivenOr[list[llm.Tool]] = NOT_GIVEN,
    ) -> Promise:
        """Answers the conversation as it stands, or greets.

        Args:
            instructions: for this one reply, besides the session's.
            tool_choice: ignored; the model calls no tools.
            tools: ignored as well; warns once.

        Returns:
            The reply when it begins; a `RealtimeError` if it cannot, or not soon enough.
        """
        if utils.is_given(tools) and tools:
            self._warn_once("Chroma calls no tools; those of the reply are ignored.")
        return self._ask(None, instructions if utils.is_given(instructions) else None)

    def say(self, text: str | AsyncIterable[str]) -> Promise:
        """Speaks the text word for word in the voice; it becomes part of the conversation."""
        return self._ask(text, None)

    def _ask(self, say: str | AsyncIterable[str] | None, added: str | None) -> Promise:
        if self._closed:
            promise: Promise = asyncio.get_running_loop().create_future()
            promise.set_exception(llm.RealtimeError("The session was closed."))
            return promise
        return self._asking.ask(say, added)

    def interrupt(self) -> None:
        """Stops the reply; every stream of it ends at once. What the user said stays."""
        self._asking.interrupt()

    def truncate(
        self,
        *,
        message_id: str,
        modalities: list[Literal["text", "audio"]],
        audio_end_ms: int,
        audio_transcript: NotGivenOr[str] = NOT_GIVEN,
    ) -> None:
        """Leaves of a reply what was heard of it.

        Args:
            message_id: which one; one that is not known is nobody's.
            modalities: what was played; of a reply that was only read all text was.
            audio_end_ms: where the playback stopped; 0 takes the reply out.
            audio_transcript: the text until there, if it is known.
        """
        item = self._line.record.find(message_id)
        if item is None:
            return
        text = audio_transcript if utils.is_given(audio_transcript) else None
        heard_ms = float(audio_end_ms) if "audio" in modalities or text is None else float("inf")
        self._line.truncate(item, heard_ms, text or None)

    def _taken(self, answer: Answer) -> None:
        self._added(answer.item)

    def _added(self, item: Item) -> None:
        """Tells that an item was put at the end: None has the framework put it there, too."""
        self.emit("remote_item_added", llm.RemoteItemAddedEvent(None, item.chat.model_copy()))

    def _over(self, answer: Answer) -> None:
        if not answer.cut:
            answer.item.write(self._line.spoken(answer.item))
            self._line.follow()
        elif not answer.item.text:
            answer.item.write(self._line.spoken(answer.item))
        if not self._line.in_step:
            self._refresh_soon()
        heard_ms, self._heard_ms = self._heard_ms, 0.0
        names = Metadata(model_name=self._model.model, model_provider=self._model.provider)
        self.emit("metrics_collected", answer.metrics(self._model.label, names, heard_ms))
        if answer.done is not None:
            self.emit("chroma_reply_done", answer.done)

    # -- the engine ------------------------------------------------------------------------------

    async def _open_session(self, history: list[Message], instructions: str) -> Session:
        engine = await self._model.engine()
        try:
            async with asyncio.timeout(OPEN_LIMIT_S):
                return await engine.open_session(
                    voice=self._own_voice,
                    instructions=instructions,
                    sampling=self._sampling,
                    history=history,
                    max_reply_s=self._model.max_reply_s,
                )
        except TimeoutError:
            raise EngineBusy(
                f"The engine has opened no session within {OPEN_LIMIT_S:g} s. See whether it still "
                "runs; the next reply tries again."
            ) from None

    def _refresh_soon(self) -> None:
        """Has a session opened, if one is needed, before somebody waits for it."""
        if not self._closed:
            task = asyncio.get_running_loop().create_task(self._refresh())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _refresh(self) -> None:
        if self._line.speaking:  # another session would cut the reply off; `_over` comes back
            return
        try:
            await self._line.ready()
        except ChromaError as error:
            self._tell_error(error, recoverable=isinstance(error, EngineBusy))

    def _report(self, error: ChromaError) -> None:
        """A reply failed. Whether the engine is dead is found out by asking it for a session."""
        if isinstance(error, EngineFailed | EngineClosed | SessionClosed):
            self._line.lose()
            self._refresh_soon()
        self._tell_error(error, recoverable=True)

    def _tell_error(self, error: ChromaError, *, recoverable: bool) -> None:
        if self._closed:
            return
        self.emit(
            "error",
            llm.RealtimeModelError(
                timestamp=time.time(),
                label=self._model.label,
                error=error,
                recoverable=recoverable,
            ),
        )

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            log.warning("%s", message)

    async def aclose(self) -> None:
        """Ends the conversation; calling it again is harmless."""
        if self._closed:
            return
        self._closed = True
        await self._asking.aclose()
        await self._transcripts.aclose()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._line.aclose()
