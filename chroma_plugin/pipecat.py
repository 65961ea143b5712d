"""`ChromaRealtimeLLMService`: Chroma as a speech-to-speech service in a Pipecat pipeline.

::

    transport.input() -> user aggregator -> ChromaRealtimeLLMService
        -> transport.output() -> assistant aggregator

It translates frames to a `Session` and its replies to frames. When a turn begins and ends is the
user aggregator's to say, what is in the history the session's, how audio is made the engine's.

Tested with Pipecat 1.14.0.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from enum import Enum, auto
from typing import Any, ClassVar

import numpy as np
from loguru import logger
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    CancelFrame,
    EndFrame,
    Frame,
    InputAudioRawFrame,
    InputTextRawFrame,
    InterruptionFrame,
    LLMContextAssistantTurnFrame,
    LLMContextFrame,
    LLMContextUserTurnFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMServiceMetadataFrame,
    LLMSetToolsFrame,
    LLMTextFrame,
    LLMUpdateSettingsFrame,
    SpeechControlParamsFrame,
    STTMetadataFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.metrics.metrics import LLMTokenUsage
from pipecat.processors.aggregators.llm_context import LLMContext, standard_message_text
from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup
from pipecat.services.llm_service import LLMService
from pipecat.services.settings import LLMSettings
from pipecat.utils.errors import ErrorCategory
from pipecat.utils.text.base_text_aggregator import TextType
from pipecat.utils.tracing.service_decorators import traced_llm
from pipecat.utils.types import NOT_GIVEN, NotGiven, is_given

from chroma_plugin.audio import INPUT_RATE_HZ, OUTPUT_RATE_HZ, Resampler, Samples, pcm_to_float
from chroma_plugin.config import DEFAULT_INSTRUCTIONS, SamplingParams
from chroma_plugin.conversation import Message
from chroma_plugin.errors import (
    AudioError,
    ChromaError,
    ConfigError,
    EngineBusy,
    EngineClosed,
    EngineFailed,
    SessionClosed,
)
from chroma_plugin.reply import AudioChunk, ReplyStream, TextDelta, TurnDone
from chroma_plugin.session import Session, SpeechEngine
from chroma_plugin.voice import Voice

PREROLL_MARGIN_S = 0.3
"""Kept of what came before VAD was sure, beyond the time that VAD takes to be sure."""
VOICE_LIMIT_S = 10.0
"""Kept of a voice that has not become a turn yet."""
NO_VAD_AFTER_S = 5.0
"""So much audio without any sign of a VAD is worth a warning."""
PLAYED_MARGIN_S = 1.0
"""Grace for a transport to say that it has played a reply; without transport nobody says it."""
MS_PER_POSITION = 40.0
"""The model hears 25 positions a second."""

_SAMPLING = tuple(each.name for each in fields(SamplingParams))
_LIVE = {"system_instruction", "voice", *_SAMPLING}
_AT_START = {*_LIVE, "model", "max_reply_s"}


@dataclass
class ChromaRealtimeLLMSettings(LLMSettings):
    """Settings of `ChromaRealtimeLLMService`.

    Of `LLMSettings`, `system_instruction` (also called `instructions`), `temperature`, `top_k`,
    `top_p` and `seed` count, and `model` as the name in metrics; the others are refused.

    Parameters:
        repetition_penalty: see `SamplingParams`.
        voice: whose voice replies are spoken in; None, at the start, is the engine's own.
        max_reply_s: the cap on the length of a reply; None leaves the engine's. Not changed live.
    """

    repetition_penalty: float | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    voice: Voice | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    max_reply_s: float | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)

    _aliases: ClassVar[dict[str, str]] = {"instructions": "system_instruction"}


class _Hearing(Enum):
    """Where the user is."""

    IDLE = auto()  # silent, as far as anyone knows
    VOICE = auto()  # VAD hears a voice, but no turn has begun
    TURN = auto()  # in a turn: audio goes to the session
    SAID = auto()  # the turn is over and waits for its answer


class _Stage(Enum):
    """Where a reply is, on its way to the user's ear."""

    OPEN = auto()  # its frames are being pushed
    PLAYING = auto()  # all are pushed, the transport still plays them
    CUT = auto()  # interrupted; what was heard of it is not known yet
    OVER = auto()  # nothing more comes of it


@dataclass(slots=True)
class _Response:
    """The newest reply, and how far it is."""

    stream: ReplyStream
    asked_at: float
    stage: _Stage = _Stage.OPEN
    task: asyncio.Task[None] | None = None
    done: TurnDone | None = None
    first_audio_at: float | None = None  # handed to the transport
    audible_at: float | None = None  # begun by the transport
    heard_ms: float = 0.0  # when it was interrupted, by the clock
    played: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def audible(self) -> bool:
        return self.stage in (_Stage.OPEN, _Stage.PLAYING)

    @property
    def played_ms(self) -> float:
        return (time.monotonic() - self.audible_at) * 1000 if self.audible_at else 0.0


class _Ear:
    """A transport's audio as 16 kHz mono, and the last of it from before the turn."""

    def __init__(self) -> None:
        self.keep_s = 0.2 + PREROLL_MARGIN_S
        self._resampler: Resampler | None = None
        self._rate_hz = 0
        self._kept: deque[Samples] = deque()
        self._kept_samples = 0

    def hear(self, frame: InputAudioRawFrame) -> Samples:
        if self._resampler is None or frame.sample_rate != self._rate_hz:
            self._resampler = Resampler(frame.sample_rate, INPUT_RATE_HZ)
            self._rate_hz = frame.sample_rate
        samples, channels = pcm_to_float(frame.audio), frame.num_channels
        if channels > 1:
            whole = samples[: len(samples) // channels * channels]
            samples = whole.reshape(-1, channels).mean(axis=1, dtype=np.float32)
        return self._resampler.push(samples)

    def keep(self, samples: Samples, seconds: float) -> None:
        """Remembers the samples and forgets what is older than the given time."""
        self._kept.append(samples)
        self._kept_samples += len(samples)
        while self._kept_samples - len(self._kept[0]) >= seconds * INPUT_RATE_HZ:
            self._kept_samples -= len(self._kept.popleft())

    def take(self) -> Samples:
        """What was kept, oldest first; nothing is kept any more."""
        kept = np.concatenate([*self._kept, np.zeros(0, np.float32)])
        self._kept.clear()
        self._kept_samples = 0
        return kept


class ChromaRealtimeLLMService(LLMService):
    """Speech in, speech out in a cloned voice: stands for STT, LLM and TTS together.

    Turns come from local VAD: give the user aggregator a `vad_analyzer`. Besides the events of
    `LLMService` it has ``on_reply_done(service, done: TurnDone)``, called when a reply has been
    made or was cut, with its text, length and timings.

    Example::

        engine = Engine(EngineConfig(model="FlashLabs/Chroma-4B"))  # one for all conversations
        await engine.start()
        chroma = ChromaRealtimeLLMService(engine=engine, voice=voice, context=context)
    """

    Settings = ChromaRealtimeLLMSettings
    _settings: ChromaRealtimeLLMSettings

    def __init__(
        self,
        *,
        engine: SpeechEngine,
        voice: Voice | None = None,
        context: LLMContext | None = None,
        settings: ChromaRealtimeLLMSettings | None = None,
        **kwargs: Any,
    ) -> None:
        """Makes the service; the session is opened when the pipeline is set up.

        Args:
            engine: a started engine; shared, never closed by the service.
            voice: whose voice replies are spoken in; the same as `settings.voice`.
            context: the context of the aggregators. What it holds is the beginning of the
                conversation; without it, its text is known from the first `LLMContextFrame` on.
            settings: see `ChromaRealtimeLLMSettings`.
            **kwargs: for `LLMService`.

        Raises:
            ConfigError: a setting is unknown, not supported or out of range.
        """
        stored = self.Settings(
            model="chroma",
            system_instruction=None,
            **{name: getattr(SamplingParams(), name) for name in _SAMPLING},
            max_tokens=None,
            frequency_penalty=None,
            presence_penalty=None,
            filter_incomplete_user_turns=False,
            user_turn_completion_config=None,
            use_provider_thinking_default=False,
            voice=voice,
            max_reply_s=None,
        )
        if settings is not None:
            if refused := sorted(settings.given_fields().keys() - _AT_START):
                raise ConfigError(
                    f"Settings not supported by Chroma: {', '.join(refused)}. Those that are: "
                    f"{', '.join(sorted(_AT_START))}."
                )
            stored.apply_update(settings)
        _sampling(stored)
        super().__init__(settings=stored, **kwargs)
        self._engine = engine
        self._session: Session | None = None
        self._context = context or LLMContext()
        self._known: dict[int, Any] = {}  # messages of the context that the session has, by id
        self._transcript: str | None = None  # written to the context; its context frame follows
        self._ear = _Ear()
        self._hearing = _Hearing.IDLE
        self._run_wanted = False
        self._response: _Response | None = None
        self._vad_seen = False
        self._unguarded_s = 0.0
        self._warned: set[str] = set()
        self._register_event_handler("on_reply_done")

    def can_generate_metrics(self) -> bool:
        """True: TTFB, TTFA, processing time and usage."""
        return True

    @property
    def accepts_intermediate_function_call_results(self) -> bool:
        """False: the model calls no tools."""
        return False

    def service_metadata_frame(self) -> LLMServiceMetadataFrame:
        """Tells the aggregators that turns are answered from audio."""
        return LLMServiceMetadataFrame(service_name=self.name, is_realtime_service=True)

    async def broadcast_service_metadata(self) -> None:
        """Adds that no transcript is worth waiting for before the user's message is written."""
        await super().broadcast_service_metadata()  # type: ignore[no-untyped-call]
        await self.broadcast_frame(STTMetadataFrame, service_name=self.name, ttfs_p99_latency=0.0)

    # -- life -----------------------------------------------------------------------------------

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Opens the session. What goes wrong here is a permanent error of the service."""
        await super().setup(setup)
        messages = self._context.get_messages()
        told = [m for m in messages if _role(m) in ("user", "assistant")]
        self._known = {id(message): message for message in told}
        self._session = await self._engine.open_session(
            voice=self._settings.voice or None,
            instructions=self._instructions(),
            sampling=_sampling(self._settings),
            history=[Message(_role(m), standard_message_text(m)) for m in told],
            max_reply_s=self._settings.max_reply_s or None,
        )

    async def stop(self, frame: EndFrame) -> None:
        """Lets the reply that is being made, and one still asked for, come to their end."""
        await super().stop(frame)
        while (response := self._response) and (response.stage is _Stage.OPEN or self._wanted):
            if response.task is None or response.task.done():
                break
            await asyncio.wait([response.task])

    async def cancel(self, frame: CancelFrame) -> None:
        """Stops speaking at once."""
        await super().cancel(frame)
        await self._abort()

    async def cleanup(self) -> None:
        """Closes the session; the engine stays. Calling it again is harmless."""
        await super().cleanup()  # type: ignore[no-untyped-call]
        await self._abort()
        if self._session is not None:
            session, self._session = self._session, None
            await session.aclose()

    async def _abort(self) -> None:
        self._run_wanted, self._hearing = False, _Hearing.IDLE
        if self._response is not None:
            await self._silence(self._response, _Stage.OVER)

    # -- frames in ------------------------------------------------------------------------------

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Takes what concerns the conversation and passes on what others need too."""
        if isinstance(frame, InterruptionFrame):
            # the base would report the wait as if it had ended
            await self.cancel_ttfb_metrics()  # type: ignore[no-untyped-call]
        await super().process_frame(frame, direction)
        match frame:
            case InterruptionFrame():
                await self._interrupt(frame, direction)
                return
            case LLMContextFrame(context=context):
                await self._take_context(context)
                return
            case InputTextRawFrame(text=text):  # further on it would pass for the assistant's
                self._context.add_message({"role": "user", "content": text})
                await self._run()
                return
            case LLMUpdateSettingsFrame(service=service) if service not in (None, self):
                return  # the base has passed it on
            case InputAudioRawFrame():
                await self._hear(frame)
            case SpeechControlParamsFrame(vad_params=params) if params is not None:
                self._vad_seen = True
                self._ear.keep_s = params.start_secs + PREROLL_MARGIN_S
            case VADUserStartedSpeakingFrame(start_secs=start_s):
                self._vad_seen = True
                self._ear.keep_s = start_s + PREROLL_MARGIN_S
                if self._hearing is _Hearing.IDLE:
                    self._hearing = _Hearing.VOICE
            case VADUserStoppedSpeakingFrame() if self._hearing is _Hearing.VOICE:
                self._hearing = _Hearing.IDLE  # a noise
            case UserStartedSpeakingFrame():
                self._vad_seen = True
                self._hearing = _Hearing.TURN
                await self._push_audio(self._ear.take())
            case UserStoppedSpeakingFrame() if self._hearing is _Hearing.TURN:
                self._hearing = _Hearing.SAID
                await self.push_frame(frame, direction)  # ahead of what it sets off
                await self._answer()
                return
            case BotStartedSpeakingFrame() if self._response:
                self._response.audible_at = self._response.audible_at or time.monotonic()
                self._response.played.clear()
            case BotStoppedSpeakingFrame() if self._response:
                self._response.played.set()
            case LLMContextUserTurnFrame(text=text):
                self._transcript = text
                self._skip_transcript(self._context)
            case LLMContextAssistantTurnFrame(text=text):
                self._settle(text)
            case LLMSetToolsFrame(tools=tools):
                self._warn_of_tools(tools)
        await self.push_frame(frame, direction)

    async def _hear(self, frame: InputAudioRawFrame) -> None:
        try:
            samples = self._ear.hear(frame)
        except AudioError as error:
            logger.debug(f"{self}: audio dropped: {error}")
            return
        if self._hearing is _Hearing.TURN:
            await self._push_audio(samples)
        else:
            voice = self._hearing is _Hearing.VOICE
            self._ear.keep(samples, VOICE_LIMIT_S if voice else self._ear.keep_s)
        if not self._vad_seen:
            self._unguarded_s += len(samples) / INPUT_RATE_HZ
            if self._unguarded_s >= NO_VAD_AFTER_S:
                self._warn_once(
                    "audio flows but nothing tells when the user speaks, so nothing will be "
                    "answered. Set vad_analyzer=SileroVADAnalyzer() in LLMUserAggregatorParams."
                )

    async def _push_audio(self, samples: Samples) -> None:
        if self._session is not None:
            try:
                self._session.push_audio(samples)
            except ChromaError as error:
                self._hearing = _Hearing.IDLE  # the turn is lost; once is often enough to say so
                await self._report(error)

    async def _take_context(self, context: LLMContext) -> None:
        self._context = context
        self._warn_of_tools(context.tools)
        if self._transcript is None:
            await self._run()
        else:  # the frame that follows LLMContextUserTurnFrame: bookkeeping, answered long since
            self._skip_transcript(context)
            self._transcript = None

    def _skip_transcript(self, context: LLMContext) -> None:
        """Marks what the user said in a turn, so that it does not pass for typed text."""
        for message in reversed(context.get_messages()):
            if _role(message) == "user" and standard_message_text(message) == self._transcript:
                self._known[id(message)] = message
                return

    def _warn_of_tools(self, tools: Any) -> None:
        if is_given(tools) and (not isinstance(tools, Sequence) or tools):
            self._warn_once("Chroma calls no tools; those in the context are ignored.")

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(f"{self}: {message}")

    # -- asking ---------------------------------------------------------------------------------

    @property
    def _wanted(self) -> bool:
        return self._run_wanted or self._hearing is _Hearing.SAID

    async def _run(self) -> None:
        self._run_wanted = True
        await self._answer()

    async def _answer(self) -> None:
        """Asks for the reply that is wanted, unless the user or another reply still speaks.

        Then it is called again: at the end of the turn, or when that reply has been played.
        """
        if self._session is None or not self._wanted or self._hearing is _Hearing.TURN:
            return
        if self._response is not None and self._response.audible:
            return
        asked_at = time.time()
        try:
            stream = self._ask(self._session)
        except ChromaError as error:
            await self._report(error)
            return
        if stream is not None:
            self._response = _Response(stream, asked_at)
            self._response.task = self.create_task(self._speak(self._response))

    def _ask(self, session: Session) -> ReplyStream | None:
        spoken, self._hearing = self._hearing is _Hearing.SAID, _Hearing.IDLE
        run, self._run_wanted = self._run_wanted, False
        self._settle()
        typed, hints = self._take_news()
        session.update(
            instructions=self._instructions(),
            voice=self._settings.voice or None,
            sampling=_sampling(self._settings),
        )
        for text in typed:
            session.add_user_text(text)
        instructions = "\n\n".join(hints) or None
        if spoken:
            try:
                return session.commit_turn(instructions=instructions)
            except AudioError as error:
                logger.debug(f"{self}: turn ignored: {error}")
        return session.respond(instructions=instructions) if run or typed or not spoken else None

    def _instructions(self) -> str:
        system = _system_message(self._context)
        stated = self._settings.system_instruction or (system and standard_message_text(system))
        return stated or DEFAULT_INSTRUCTIONS

    def _take_news(self) -> tuple[list[str], list[str]]:
        """What the user typed since the last reply, and what the developer wants of the next."""
        messages = self._context.get_messages()
        new = [message for message in messages if id(message) not in self._known]
        self._known = {id(message): message for message in messages}
        system = _system_message(self._context)
        typed = [standard_message_text(m) for m in new if _role(m) == "user"]
        hints = [
            standard_message_text(m)
            for m in new
            if _role(m) in ("developer", "system") and m is not system
        ]
        return [t for t in typed if t.strip()], [h for h in hints if h.strip()]

    # -- frames out -----------------------------------------------------------------------------

    async def _speak(self, response: _Response) -> None:
        await self.start_ttfb_metrics(start_time=response.asked_at)
        await self.start_processing_metrics(start_time=response.asked_at)
        await self.push_frame(LLMFullResponseStartFrame())
        await self.push_frame(TTSStartedFrame())
        try:
            await self._process_context(self._context, response)
        except ChromaError as error:
            await self._report(error)
        except Exception as error:
            await self.push_error(f"The reply failed: {error}", exception=error)
        await self._close(response)
        if response.first_audio_at:
            response.stage = _Stage.PLAYING
            ends_at = response.first_audio_at + response.stream.delivered_ms / 1000
            with suppress(TimeoutError):
                async with asyncio.timeout(max(ends_at - time.monotonic(), 0) + PLAYED_MARGIN_S):
                    await response.played.wait()
        response.stage = _Stage.OVER
        await self._answer()

    @traced_llm
    async def _process_context(self, context: LLMContext, response: _Response) -> None:
        """Pushes a reply's text and audio as they come; what is traced is the reply's text."""
        async for event in response.stream:
            match event:
                case TextDelta(text=text):
                    await self.stop_ttfb_metrics()
                    written = LLMTextFrame(text)
                    written.append_to_context = False  # the spoken one is, as far as it is heard
                    await self.push_frame(written)
                    spoken = TTSTextFrame(text, text_type=TextType.WORD)
                    spoken.includes_inter_frame_spaces = True
                    await self.push_frame(spoken)
                case AudioChunk(pcm=pcm):
                    await self.stop_ttfb_metrics()
                    response.first_audio_at = response.first_audio_at or time.monotonic()
                    audio = TTSAudioRawFrame(pcm, OUTPUT_RATE_HZ, 1)
                    await self.push_frame(audio)
                    await self.process_ttfa_metrics(audio)
                case TurnDone():
                    response.done = event

    async def _close(self, response: _Response) -> None:
        await self.stop_processing_metrics()
        if done := response.done:
            heard = round(done.user_audio_ms / MS_PER_POSITION)
            made = done.tokens + done.frames
            await self.start_llm_usage_metrics(
                LLMTokenUsage(
                    prompt_tokens=heard,
                    completion_tokens=made,
                    total_tokens=heard + made,
                    input_audio_tokens=heard,
                    output_audio_tokens=done.frames,
                )
            )
            await self._call_event_handler("on_reply_done", done)
        await self.push_frame(TTSStoppedFrame())
        await self.push_frame(LLMFullResponseEndFrame())

    async def _interrupt(self, frame: InterruptionFrame, direction: FrameDirection) -> None:
        """Stops the reply before the frame is passed on: nothing of it follows the frame."""
        self._transcript = None
        if self._hearing is not _Hearing.TURN:
            self._run_wanted = False  # as with any frame that waits in a queue
        response, closing = self._response, False
        if response is not None and response.audible:
            closing = response.stage is _Stage.OPEN
            response.heard_ms = response.played_ms
            await self._silence(response, _Stage.CUT)
        await self.push_frame(frame, direction)
        if response is not None and closing:
            async for event in response.stream:  # what is left of it is its end
                response.done = event if isinstance(event, TurnDone) else response.done
            await self._close(response)
        await self._answer()

    async def _silence(self, response: _Response, stage: _Stage) -> None:
        response.stage = stage
        if self._session is not None:
            self._session.cancel()
        if response.task is not None:
            await self.cancel_task(response.task)

    def _settle(self, text: str | None = None) -> None:
        """Cuts an interrupted reply in the history to what was heard of it.

        Args:
            text: what the assistant aggregator wrote down; None leaves it to the clock.
        """
        response = self._response
        if self._session is None or response is None or response.stage is not _Stage.CUT:
            return
        response.stage = _Stage.OVER
        with suppress(SessionClosed):
            self._session.truncate(response.heard_ms, text=text)

    async def _report(self, error: ChromaError) -> None:
        busy = isinstance(error, EngineBusy)
        await self.push_error(
            str(error),
            exception=error,
            category=ErrorCategory.RATE_LIMIT if busy else None,
            force_treat_as_permanent=isinstance(error, EngineFailed | EngineClosed | SessionClosed),
        )

    async def _update_settings(  # type: ignore[override]
        self, delta: LLMSettings
    ) -> dict[str, Any]:
        """Stores what can change; the next reply is asked for with it."""
        given = delta.given_fields()
        if refused := sorted(given.keys() - _LIVE):
            logger.warning(
                f"{self}: settings that cannot be changed: {', '.join(refused)}; "
                f"those that can: {', '.join(sorted(_LIVE))}"
            )
        wanted = self.Settings(**{name: given[name] for name in given.keys() & _LIVE})
        try:
            _sampling(self._settings, wanted)
        except ConfigError as error:
            logger.warning(f"{self}: settings not changed: {error}")
            return {}
        return await super()._update_settings(wanted)


def _sampling(*settings: ChromaRealtimeLLMSettings) -> SamplingParams:
    """How codes are drawn by these settings, later ones first; checks the voice as well."""
    values: dict[str, Any] = {}
    for each in settings:
        values |= each.given_fields()
    if not isinstance(values.get("voice"), Voice | None):
        raise ConfigError(f"voice is {values['voice']!r}; use Voice.from_file(...).")
    return SamplingParams(**{k: values[k] for k in _SAMPLING if values.get(k) is not None})


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def _system_message(context: LLMContext) -> Any:
    """The message that holds the context's instructions, if it begins with one."""
    first = next(iter(context.get_messages()), None)
    return first if _role(first) == "system" else None
