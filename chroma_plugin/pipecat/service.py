"""`ChromaRealtimeLLMService`: it translates frames to a `Session` and its replies to frames.

When a turn begins and ends is the user aggregator's to say, what is in the history the session's,
how audio is made the engine's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loguru import logger
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    CancelFrame,
    ClientConnectedFrame,
    EndFrame,
    Frame,
    InputAudioRawFrame,
    InputTextRawFrame,
    InterruptionFrame,
    LLMContextAssistantTurnFrame,
    LLMContextFrame,
    LLMContextUserTurnFrame,
    LLMServiceMetadataFrame,
    LLMSetToolsFrame,
    LLMUpdateSettingsFrame,
    SpeechControlParamsFrame,
    STTMetadataFrame,
    TTSSpeakFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup
from pipecat.services.llm_service import LLMService
from pipecat.services.settings import LLMSettings
from pipecat.utils.errors import ErrorCategory
from pipecat.utils.tracing.service_decorators import traced_llm
from pipecat.utils.types import is_given

from chroma_plugin.audio import Samples
from chroma_plugin.config import DEFAULT_INSTRUCTIONS
from chroma_plugin.errors import (
    AudioError,
    ChromaError,
    EngineBusy,
    EngineClosed,
    EngineFailed,
    SessionClosed,
)
from chroma_plugin.pipecat.agenda import Say, Wish
from chroma_plugin.pipecat.answering import Answering
from chroma_plugin.pipecat.context import ContextReader
from chroma_plugin.pipecat.hearing import Hearing, Phase
from chroma_plugin.pipecat.line import Line
from chroma_plugin.pipecat.response import Response
from chroma_plugin.pipecat.settings import ChromaRealtimeLLMSettings, checked, complete
from chroma_plugin.pipecat.transcripts import Transcriber
from chroma_plugin.session import SpeechEngine
from chroma_plugin.voice import Voice

NO_VAD_AFTER_S = 5.0
"""So much audio without any sign of a VAD is worth a warning."""


class ChromaRealtimeLLMService(LLMService):
    """Speech in, speech out in a cloned voice: stands for STT, LLM and TTS together.

    Turns come from local VAD: give the user aggregator a `vad_analyzer`. Besides the events of
    `LLMService` it has ``on_reply_done(service, done: TurnDone)``, called when a reply has been
    made or was cut, with its text, length and timings, and ``on_user_transcript(service, text)``,
    called when what the user said in a turn has been written down by `transcribe`.

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
        transcribe: bool | Transcriber = False,
        **kwargs: Any,
    ) -> None:
        """Makes the service; the session is opened when the pipeline is set up.

        Args:
            engine: a started engine; shared, never closed by the service.
            voice: whose voice replies are spoken in; the same as `settings.voice`.
            context: the context of the aggregators. What it holds is the beginning of the
                conversation; without it, its text is known from the first `LLMContextFrame` on.
            settings: see `ChromaRealtimeLLMSettings`.
            transcribe: writes what the user says into the context: True lets the engine do it; an
                async function of float32 samples at 16 kHz that returns text does it itself.
            **kwargs: for `LLMService`.

        Raises:
            ConfigError: a setting is unknown, not supported or out of range.
        """
        super().__init__(settings=complete(settings, voice), **kwargs)
        self._reader = ContextReader(context)
        self._hearing = Hearing()
        self._line = Line(engine, self._settings, self._instructions, self._reader.begin)
        self._answering = Answering(
            self,
            self._line,
            self._reader,
            self._hearing,
            transcribe,
            self._push_reply,
            self._report,
        )
        self._greeted = False
        self._warned: set[str] = set()
        self._register_event_handler("on_reply_done")
        self._register_event_handler("on_user_transcript")

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
        await self._line.open()

    async def stop(self, frame: EndFrame) -> None:
        """Lets the reply that is being made, and those still asked for, come to their end."""
        await super().stop(frame)
        await self._answering.finish()

    async def cancel(self, frame: CancelFrame) -> None:
        """Stops speaking at once."""
        await super().cancel(frame)
        self._hearing.turn_ended()
        await self._answering.abort()

    async def cleanup(self) -> None:
        """Closes the session; the engine stays. Calling it again is harmless."""
        await super().cleanup()  # type: ignore[no-untyped-call]
        await self._answering.abort()
        await self._answering.transcripts.close()
        await self._line.hang_up()

    # -- frames in ------------------------------------------------------------------------------

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Takes what concerns the conversation and passes on what others need too."""
        if isinstance(frame, InterruptionFrame):
            # the base would report the wait as if it had ended
            await self.cancel_ttfb_metrics()  # type: ignore[no-untyped-call]
        await super().process_frame(frame, direction)
        match frame:
            case InterruptionFrame():
                await self._answering.interrupt(frame, direction)
                return
            case LLMContextFrame(context=context):
                self._warn_of_tools(context.tools)
                if self._reader.is_request(context):
                    await self._answering.want(Wish.RUN)
                return
            case InputTextRawFrame(text=text):  # further on it would pass for the assistant's
                self._reader.type(text)
                await self._answering.want(Wish.RUN)
                return
            case TTSSpeakFrame(text=text):
                if text.strip():
                    await self._answering.want(
                        Say(text, frame.append_to_context, frame.interruptible)
                    )
                return
            case LLMUpdateSettingsFrame(service=service) if service not in (None, self):
                return  # the base has passed it on
            case InputAudioRawFrame():
                await self._hear(frame)
            case SpeechControlParamsFrame(vad_params=params) if params is not None:
                self._hearing.vad_starts_in(params.start_secs)
            case VADUserStartedSpeakingFrame(start_secs=start_s):
                self._hearing.vad_starts_in(start_s)
                self._hearing.voice_started()
            case VADUserStoppedSpeakingFrame():
                self._hearing.voice_stopped()
            case UserStartedSpeakingFrame():
                await self._begin_turn()
            case UserStoppedSpeakingFrame() if self._hearing.phase is Phase.TURN:
                self._hearing.turn_ended()
                await self.push_frame(frame, direction)  # ahead of what it sets off
                await self._answering.want(Wish.ANSWER)
                return
            case BotStartedSpeakingFrame() if response := self._answering.response:
                response.bot_started()
            case BotStoppedSpeakingFrame() if response := self._answering.response:
                response.bot_stopped()
            case LLMContextUserTurnFrame(text=text):
                if self._reader.user_wrote(text):
                    self._give_way("a speech-to-text service")
            case LLMContextAssistantTurnFrame(text=text):
                self._reader.assistant_wrote(text)
                self._answering.settle(text)
            case STTMetadataFrame(service_name=name) if name != self.name:
                self._give_way(name)
                if direction is FrameDirection.DOWNSTREAM:  # it knows better how long to wait
                    wait_s = frame.ttfs_p99_latency
                    known = STTMetadataFrame(service_name=name, ttfs_p99_latency=wait_s)
                    await self.push_frame(known, FrameDirection.UPSTREAM)
            case LLMSetToolsFrame(tools=tools):
                self._warn_of_tools(tools)
            case ClientConnectedFrame():
                await self.push_frame(frame, direction)
                await self._greet()
                return
        await self.push_frame(frame, direction)

    async def _hear(self, frame: InputAudioRawFrame) -> None:
        try:
            self._hearing.hear(frame)
        except AudioError as error:
            logger.debug(f"{self}: audio dropped: {error}")
            return
        if self._hearing.phase is Phase.TURN:
            await self._push_audio(self._hearing.take())
        if self._hearing.unguarded_s >= NO_VAD_AFTER_S:
            self._warn_once(
                "audio flows but nothing tells when the user speaks, so nothing will be "
                "answered. Set vad_analyzer=SileroVADAnalyzer() in LLMUserAggregatorParams."
            )

    async def _begin_turn(self) -> None:
        self._answering.turn_begins()
        self._hearing.turn_started()
        await self._push_audio(self._hearing.take())

    async def _push_audio(self, samples: Samples) -> None:
        self._answering.transcripts.hear(samples)
        try:
            self._line.push_audio(samples)
        except ChromaError as error:
            self._hearing.turn_ended()  # the turn is lost; once is often enough to say so
            await self._report(error)

    async def _greet(self) -> None:
        if self._settings.greeting and not self._greeted:
            self._greeted = True
            await self._answering.want(Say(self._settings.greeting))

    def _give_way(self, writer: str) -> None:
        """Somebody else in the pipeline writes down what the user says."""
        if self._answering.transcripts.wanted:
            self._answering.transcripts.give_way()
            self._warn_once(f"{writer} writes down what the user says; `transcribe` is not needed.")

    def _warn_of_tools(self, tools: Any) -> None:
        if is_given(tools) and (not isinstance(tools, Sequence) or tools):
            self._warn_once("Chroma calls no tools; those in the context are ignored.")

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(f"{self}: {message}")

    # -- what is asked of it --------------------------------------------------------------------

    def _instructions(self) -> str:
        stated = self._settings.system_instruction or self._reader.instructions
        return stated or DEFAULT_INSTRUCTIONS

    async def _push_reply(self, response: Response) -> None:
        await self._process_context(self._reader.context or LLMContext(), response)

    @traced_llm
    async def _process_context(self, context: LLMContext, response: Response) -> None:
        """What is traced: the reply's text, its tokens, the context that it was asked for with."""
        await self._answering.speech.push(response)

    async def _report(self, error: ChromaError) -> None:
        lost = isinstance(error, EngineFailed | EngineClosed | SessionClosed)
        if lost:
            await self._line.leave()  # the next turn tries to open another one
        await self.push_error(
            str(error),
            exception=error,
            category=ErrorCategory.RATE_LIMIT if isinstance(error, EngineBusy) else None,
            force_treat_as_permanent=lost,
        )

    async def _update_settings(  # type: ignore[override]
        self, delta: LLMSettings
    ) -> dict[str, Any]:
        """Stores what can change; the next reply is asked for with it."""
        wanted = checked(self._settings, delta, str(self))
        return await super()._update_settings(wanted) if wanted is not None else {}
