"""`RealtimeModel`: Chroma as the `llm` of a LiveKit `AgentSession`."""

from __future__ import annotations

import weakref

from livekit.agents import llm, utils
from livekit.agents.types import NOT_GIVEN, NotGivenOr

from chroma_plugin.config import SamplingParams
from chroma_plugin.errors import ConfigError
from chroma_plugin.livekit.backend import Backend
from chroma_plugin.livekit.local_server import LocalServer
from chroma_plugin.livekit.session import RealtimeSession
from chroma_plugin.livekit.transcripts import Transcriber
from chroma_plugin.session import SpeechEngine
from chroma_plugin.voice import Voice

REPLY_TIMEOUT_S = 10.0
"""So long a reply may take to begin, or to go on."""


class RealtimeModel(llm.RealtimeModel):
    """Speech in, speech out in a cloned voice: stands for STT, LLM and TTS together.

    Turns come from the framework: its VAD and its turn detector, which are on by default.

    Example::

        voice = Voice.from_file("ada.flac", "What she says in it, word for word.")
        session = AgentSession(llm=chroma.RealtimeModel(engine="ws://127.0.0.1:8000", voice=voice))
    """

    def __init__(
        self,
        *,
        engine: SpeechEngine | LocalServer | str | None = None,
        voice: Voice | str | None = None,
        sampling: SamplingParams | None = None,
        transcribe: bool | Transcriber = False,
        max_reply_s: float | None = None,
        reply_timeout_s: float = REPLY_TIMEOUT_S,
        api_key: str | None = None,
        voice_consent: str = "",
    ) -> None:
        """Makes the model; the engine is started, or reached, by the first session.

        Args:
            engine: one in this process (shared, never closed by the model), the address of a
                server, or a `LocalServer`. None: $CHROMA_ENGINE_URL, or else a `LocalServer` that
                speaks with the model inside this package.
            voice: whose voice replies are spoken in: a `Voice`, or the name of one that the server
                knows; the packaged one if None.
            sampling: how codes are drawn; the released defaults if None.
            transcribe: writes down what the user says: True lets the engine do it; an async
                function of float32 samples at 16 kHz that returns text does it itself.
            max_reply_s: a cap on the length of replies, below the engine's.
            reply_timeout_s: a reply that has not begun after so long, or stops for so long, fails.
            api_key: of the server.
            voice_consent: who agreed, and how, that a `Voice` is sent to the server and used.

        Raises:
            ConfigError: the options do not go together, or are out of range.
        """
        if not reply_timeout_s > 0:
            raise ConfigError(f"reply_timeout_s is {reply_timeout_s!r}; give seconds, more than 0.")
        super().__init__(
            capabilities=llm.RealtimeCapabilities(
                message_truncation=True,
                turn_detection=False,
                user_transcription=bool(transcribe),
                auto_tool_reply_generation=False,
                audio_output=True,
                manual_function_calls=False,
                mutable_chat_context=True,
                mutable_instructions=True,
                supports_say=True,
            )
        )
        self.voice, self.sampling = voice, sampling or SamplingParams()
        self.transcribe = transcribe
        self.max_reply_s, self.reply_timeout_s = max_reply_s, reply_timeout_s
        self._backend = Backend(
            engine,
            api_key=api_key,
            voice=voice if isinstance(voice, str) else None,
            voice_consent=voice_consent,
        )
        self._sessions: weakref.WeakSet[RealtimeSession] = weakref.WeakSet()

    @property
    def model(self) -> str:
        """What it is called in metrics."""
        return "chroma"

    @property
    def provider(self) -> str:
        """Where its engine is."""
        return self._backend.provider

    async def engine(self) -> SpeechEngine:
        """The engine, started; see `Backend.engine`."""
        return await self._backend.engine()

    def session(self, *, turn_detection_disabled: bool = False) -> RealtimeSession:
        """A new conversation. Turns are never detected here, so there is nothing to disable."""
        session = RealtimeSession(self)
        self._sessions.add(session)
        return session

    def update_options(
        self,
        *,
        voice: NotGivenOr[Voice] = NOT_GIVEN,
        sampling: NotGivenOr[SamplingParams] = NOT_GIVEN,
    ) -> None:
        """Changes all conversations of this model from their next replies on, and those to come."""
        if utils.is_given(voice):
            self.voice = voice
        if utils.is_given(sampling):
            self.sampling = sampling
        for session in self._sessions:
            session.update_options(voice=voice, sampling=sampling)

    async def aclose(self) -> None:
        """Ends every conversation, and the connections to a server."""
        for session in list(self._sessions):
            await session.aclose()
        await self._backend.aclose()
