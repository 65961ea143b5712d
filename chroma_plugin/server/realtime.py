"""One client's conversation in the OpenAI Realtime protocol: each client event, and what is done.

`HANDLERS`, at the end, is the table of all client events; what the server sends stands in
`events.py`. Nothing here knows a socket: events come as text and go to a function.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Literal

import numpy as np

from chroma_plugin.audio import INPUT_RATE_HZ
from chroma_plugin.config import SamplingParams
from chroma_plugin.conversation import Message
from chroma_plugin.errors import ChromaError
from chroma_plugin.reply import ReplyStream
from chroma_plugin.server import events, protocol
from chroma_plugin.server.dialogue import Dialogue
from chroma_plugin.server.ear import KEPT_S, Ear, EarEvent, Idle, Lull
from chroma_plugin.server.items import Item, audio_bytes, item_of
from chroma_plugin.server.limits import Bucket
from chroma_plugin.server.logs import about
from chroma_plugin.server.out_of_band import OutOfBand
from chroma_plugin.server.planning import context_of, input_tokens, plan_of
from chroma_plugin.server.protocol import ProtocolError
from chroma_plugin.server.response import CancelReason, Response
from chroma_plugin.server.session_config import SemanticVad, SessionConfig
from chroma_plugin.server.surroundings import Surroundings
from chroma_plugin.server.timeline import Timeline, now_s
from chroma_plugin.server.turns import Speech, SpeechPaused, SpeechStarted
from chroma_plugin.server.writing import Writing
from chroma_plugin.session import MIN_TURN_MS, Session

log = logging.getLogger(__name__)

STOP_LIMIT_S = 5.0
"""A reply that was cancelled tells its end within that, or is not waited for."""


class Realtime:
    """One conversation, from `session.created` to the end of the connection.

    Args:
        surroundings: what the server gives it.
        send: takes each event.
        max_reply_s: a cap on its replies, below the engine's.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        send: Callable[[events.Event], None],
        *,
        max_reply_s: float | None = None,
    ) -> None:
        self.id = events.new_id("sess")
        self.config = SessionConfig()
        self._around, self._send = surroundings, send
        self._max_reply_s = max_reply_s
        self._voice = surroundings.voicing.default
        self._voice_name = self._voice.name
        self._sampling = SamplingParams()
        self._ear = Ear(surroundings.new_vad)
        self._audio = Bucket(surroundings.max_audio_rate, 60.0 * surroundings.max_audio_rate)
        self._turn_item: Item | None = None  # the turn that VAD hears
        self._timeline = Timeline()  # of the turn that no reply was asked for yet
        self._heard_s = now_s()  # when the newest piece of sound came
        self._active: Response | None = None
        self._tasks = set[asyncio.Task[None]]()
        self._task: asyncio.Task[None] | None = None  # the active response's
        self._greeted = False

    async def start(self) -> None:
        """Opens the session behind it and greets the client.

        Raises:
            ChromaError: the engine has no room, or is dead.
        """
        session = await self._open([])
        self._dialogue = Dialogue(self._open, session, self._around.max_turn_s)
        self._writing = Writing(self._dialogue, self._send)
        self._out_of_band = OutOfBand(self._open)
        await self._configure_ear()
        self._greeted = True
        self._send(events.session_created(self._as_event()))

    def state(self) -> Literal["opening", "waiting", "hearing", "speaking"]:
        """What goes on in it; it hears if its turn detection says so."""
        if self._active is not None:
            return "speaking"
        if self._ear.in_turn:
            return "hearing"
        return "waiting" if self._greeted else "opening"

    async def handle(self, text: str) -> None:
        """Does what an event asks for; what cannot be done becomes an `error` event."""
        event_id: str | None = None
        try:
            fields = protocol.parse(text)
            given_id = fields.get("event_id")
            event_id = given_id[:512] if isinstance(given_id, str) else None
            kind = protocol.kind_of(fields)
            if kind not in HANDLERS:
                raise ProtocolError(
                    "invalid_value",
                    f"Events of type {kind[:60]!r} are not known. Those that are: "
                    f"{', '.join(HANDLERS)}.",
                    "type",
                )
            model, do = HANDLERS[kind]
            await do(self, protocol.validated(model, fields))
        except ProtocolError as error:
            self._complain(error, event_id)
        except ChromaError as error:
            self._send(events.failure(error, event_id))

    async def aclose(self) -> None:
        """Ends the conversation and all that works for it."""
        for task in (tasks := [*self._tasks, *self._writing.tasks]):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._out_of_band.aclose()
        await self._dialogue.aclose()

    # -- client events: session --------------------------------------------------------------

    async def session_update(self, event: protocol.SessionUpdate) -> None:
        config = self.config.updated(event.session)
        sampling = SamplingParams.from_dict(config.chroma.sampling)
        name = config.audio.output.voice_name
        voice = self._voice
        if config.chroma.voice is not None:
            voice, name = self._around.voicing.inline(config.chroma.voice), self._voice_name
        elif "voice" in ((event.session.get("audio") or {}).get("output") or {}):
            voice = await self._around.voicing.find(name, "session.audio.output.voice")
        self._voice, self._voice_name = voice, name or voice.name
        self.config, self._sampling = config, sampling
        await self._configure_ear()
        self._send(events.session_updated(self._as_event()))

    # -- client events: what the user says ---------------------------------------------------

    async def audio_append(self, event: protocol.AudioAppend) -> None:
        data = audio_bytes(event.audio, "audio")
        if not self._audio.take(len(data) / self.config.input_wire.bytes_per_second):
            raise ProtocolError(
                "rate_limit_exceeded",
                "Audio comes faster than it can be spoken; this piece was dropped. "
                "Append it as it is recorded.",
                "audio",
            )
        self._heard_s = now_s()
        wire = self.config.input_wire
        step = wire.bytes_per_second  # a minute at once would stall everybody else
        if wire.encoding == "audio/pcm" and len(data) % 2:
            step = len(data)  # half a sample: nothing of it is used
        for start in range(0, len(data), step):
            for turn_event in self._ear.push(data[start : start + step]):
                await self._hear(turn_event)
            await asyncio.sleep(0)

    async def audio_commit(self, event: protocol.AudioCommit) -> None:
        for turn_event in self._ear.finish():
            await self._hear(turn_event)
        item, self._turn_item = self._turn_item or Item("user"), None
        item.label = event.chroma.turn
        self._commit(item)

    async def audio_clear(self, event: protocol.AudioClear) -> None:
        self._ear.forget()
        self._dialogue.forget()
        self._turn_item = None
        self._send(events.audio_cleared())

    async def _hear(self, event: EarEvent) -> None:
        turns = self.config.audio.input.turn_detection
        if isinstance(event, Speech):
            self._dialogue.hear(event.samples)
        elif isinstance(event, SpeechPaused):
            if await self._around.judge.complete(event.samples):
                self._ear.end_turn()
        elif isinstance(event, Lull):
            self._dialogue.forget_all_but(KEPT_S)
        elif isinstance(event, Idle):
            if self._active is None:
                await self._end_silence(event)
        elif isinstance(event, SpeechStarted):
            self._turn_item = Item("user")
            self._send(events.speech_started(self._turn_item.id, event.start_ms))
            if turns is not None and turns.interrupt_response:
                await self._stop("turn_detected")
        else:
            item, self._turn_item = self._turn_item or Item("user"), None
            self._timeline = Timeline()
            self._timeline.mark("speech_end", self._heard_s - event.silence_ms / 1000)
            self._send(events.speech_stopped(item.id, event.end_ms))
            await self._end_turn(item, answer=turns is not None and turns.create_response)

    async def _end_silence(self, idle: Idle) -> None:
        """The user says nothing: Chroma is asked to go on, with the silence as the user's turn."""
        item = Item("user")
        self._send(events.timeout_triggered(item.id, idle.start_ms, idle.end_ms))
        least = np.zeros(round(MIN_TURN_MS * INPUT_RATE_HZ / 1000), np.float32)
        self._dialogue.hear(np.concatenate([least, idle.samples]))
        await self._end_turn(item, answer=True)

    async def _end_turn(self, item: Item, *, answer: bool) -> None:
        """Commits a turn that the server found; what fails ends nothing else."""
        try:
            self._commit(item)
            if answer:
                await self._respond(protocol.ResponseConfig())
        except ProtocolError as error:  # what is left of the piece is still to be heard
            self._complain(error, None)
        except ChromaError as error:
            self._send(events.failure(error))

    def _commit(self, item: Item) -> None:
        previous = self._dialogue.commit(item)
        if self._timeline.at("commit") is not None:  # and nobody asked for a reply to that one
            self._timeline = Timeline()
        self._timeline.mark("commit")
        self._timeline.turn, self._timeline.user_audio_ms = item.id, item.audio_ms
        self._send(events.audio_committed(item.id, previous))
        self._send(events.item_added(item.as_event(), previous))
        self._send(events.item_done(item.as_event(), previous))
        if self.config.audio.input.transcription is not None:
            self._writing.begin(item)

    # -- client events: the conversation -----------------------------------------------------

    async def item_create(self, event: protocol.ItemCreate) -> None:
        item = self._new_item(event.item)
        previous = self._dialogue.add(item, event.previous_item_id)
        self._send(events.item_added(item.as_event(), previous))
        self._send(events.item_done(item.as_event(), previous))

    async def item_retrieve(self, event: protocol.ItemRetrieve) -> None:
        if event.chroma is None:
            item = self._dialogue.items.get(event.item_id, code="item_retrieve_invalid_item_id")
            self._send(events.item_retrieved(item.as_event()))
        elif event.chroma.transcribe:
            asked = self._dialogue.items.labelled("user", event.chroma.turn)
            if (
                asked is not None and asked.untold and self._active is None
            ):  # else it is told when the reply is over
                with suppress(ChromaError):
                    await self._dialogue.ready()
            self._writing.begin_labelled(event.chroma.turn)
        else:
            self._writing.cancel_labelled(event.chroma.turn)

    async def item_delete(self, event: protocol.ItemDelete) -> None:
        if self._active is not None and self._active.item.id == event.item_id:
            await self._stop("client_cancelled")
        self._dialogue.delete(event.item_id)
        self._send(events.item_deleted(event.item_id))

    async def item_truncate(self, event: protocol.ItemTruncate) -> None:
        """Never fails: clients take an error here for the end of the conversation."""
        try:
            if event.chroma is not None:
                item = self._dialogue.items.labelled("assistant", event.chroma.turn)
            else:
                item = self._dialogue.items.get(event.item_id)
        except ProtocolError:
            item = None
        if item is not None and item.role == "assistant":
            if self._active is not None and self._active.item is item:
                await self._stop("client_cancelled")
            if event.chroma is not None:
                self._dialogue.keep(item, event.chroma.tokens)
            else:
                self._dialogue.truncate(item, float(event.audio_end_ms))
        self._send(events.item_truncated(event.item_id, event.content_index, event.audio_end_ms))

    def _new_item(self, new: protocol.NewItem) -> Item:
        return item_of(new, self.config.input_wire, self._around.max_turn_s)

    # -- client events: replies --------------------------------------------------------------

    async def response_create(self, event: protocol.ResponseCreate) -> None:
        await self._respond(event.response or protocol.ResponseConfig())

    async def response_cancel(self, event: protocol.ResponseCancel) -> None:
        if event.response_id is not None and self._out_of_band.cancel(event.response_id):
            return
        active = self._active
        if active is None or event.response_id not in (None, active.id):
            raise ProtocolError(
                "response_cancel_not_active", "Cancellation failed: no active response found"
            )
        await self._stop("client_cancelled")

    async def _respond(self, wanted: protocol.ResponseConfig) -> None:
        apart, asked_s = wanted.conversation == "none", now_s()
        if not apart and self._active is not None:
            raise ProtocolError(
                "conversation_already_has_active_response",
                f"Conversation already has an active response in progress: {self._active.id}. "
                "Wait until the response is finished before creating a new one.",
            )
        if not apart and wanted.input is not None:
            raise ProtocolError(
                "unsupported_parameter",
                "response.input is taken with conversation 'none' only.",
                "response.input",
            )
        voice, name = self._voice, self._voice_name
        asked = ((wanted.audio or {}).get("output") or {}).get("voice")
        if asked is not None:
            name = str(asked.get("id") if isinstance(asked, dict) else asked)
            voice = await self._around.voicing.find(name, "response.audio.output.voice")
        sampling = self._sampling
        if wanted.chroma.sampling is not None:
            sampling = SamplingParams.from_dict(wanted.chroma.sampling)
        items = [] if apart else list(self._dialogue.items)
        plan = plan_of(wanted, self.config, name, input_tokens(items))
        instructions = wanted.instructions or self.config.instructions
        added = wanted.chroma.add_instructions
        if apart:
            session = await self._out_of_band.open(
                context_of(wanted, self._dialogue.items, self._new_item)
            )
            timeline = Timeline()
            timeline.mark("asked", asked_s)
            response = Response(
                plan, self._send, lambda item: None, session.cancel, timeline=timeline
            )
            session.update(voice=voice, sampling=sampling)
            observe = self._around.observe
            await self._out_of_band.begin(
                response, session, instructions, added, wanted.chroma.say, observe
            )
            return
        await self._dialogue.ready()
        self._writing.follow()
        session = self._dialogue.session
        session.update(voice=voice, sampling=sampling)
        stream = self._dialogue.respond(
            instructions=instructions, added=added, say=wanted.chroma.say
        )
        timeline, self._timeline = self._timeline, Timeline()
        timeline.mark("asked", asked_s)
        response = Response(
            plan, self._send, self._dialogue.items.add, session.cancel, timeline=timeline
        )
        response.announce()
        self._active = response
        self._task = self._spawn(self._run(response, stream))

    async def _run(self, response: Response, stream: ReplyStream) -> None:
        heard_ms = self._ear.heard_ms
        try:
            with about(turn=response.timeline.turn, response=response.id):
                await response.run(stream)
            if response.outcome.cancelled_by is None:
                self._ear.quiet_from(heard_ms + response.item.audio_ms)
        finally:
            self._active = None
            self._around.observe(response.outcome)
        self._dialogue.follow()
        self._writing.follow()

    async def _stop(self, why: CancelReason) -> None:
        """Cancels the reply, if there is one, and waits until its end was told."""
        if self._active is not None and self._task is not None:
            self._active.cancel(why)
            await asyncio.wait([self._task], timeout=STOP_LIMIT_S)

    # -- what stands behind it ---------------------------------------------------------------

    async def _open(self, history: list[Message]) -> Session:
        return await self._around.engine.open_session(
            voice=self._voice,
            instructions=self.config.instructions,
            sampling=self._sampling,
            history=history,
            max_reply_s=self._max_reply_s,
        )

    async def _configure_ear(self) -> None:
        turns = self.config.audio.input.turn_detection
        judged = isinstance(turns, SemanticVad) and await self._around.judge.ready()
        self._ear.configure(self.config.input_wire, turns, judged=judged)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _complain(self, error: ProtocolError, event_id: str | None) -> None:
        self._send(
            events.error(
                error.code, error.message, kind=error.kind, param=error.param, event_id=event_id
            )
        )

    def _as_event(self) -> events.Event:
        session = self.config.model_dump(exclude={"prompt", "chroma"})
        session["audio"]["output"]["voice"] = self._voice_name
        del session["audio"]["input"]["noise_reduction"]
        return {"id": self.id, "object": "realtime.session", "model": self._around.model} | session


Handler = Callable[[Realtime, Any], Awaitable[None]]

HANDLERS: dict[str, tuple[type[protocol.ClientEvent], Handler]] = {
    "session.update": (protocol.SessionUpdate, Realtime.session_update),
    "input_audio_buffer.append": (protocol.AudioAppend, Realtime.audio_append),
    "input_audio_buffer.commit": (protocol.AudioCommit, Realtime.audio_commit),
    "input_audio_buffer.clear": (protocol.AudioClear, Realtime.audio_clear),
    "conversation.item.create": (protocol.ItemCreate, Realtime.item_create),
    "conversation.item.retrieve": (protocol.ItemRetrieve, Realtime.item_retrieve),
    "conversation.item.delete": (protocol.ItemDelete, Realtime.item_delete),
    "conversation.item.truncate": (protocol.ItemTruncate, Realtime.item_truncate),
    "response.create": (protocol.ResponseCreate, Realtime.response_create),
    "response.cancel": (protocol.ResponseCancel, Realtime.response_cancel),
}
"""Every client event that is served: what it must hold, and what does it."""
