"""The bodies of HTTP requests and answers, as their OpenAPI description has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from chroma_plugin.server.protocol import MAX_ID, MAX_TEXT
from chroma_plugin.voice_consent import Consent
from chroma_plugin.voice_store import VoiceRecord


class State(BaseModel):
    """How the server is."""

    status: str


class SessionState(BaseModel):
    """A connection that talks."""

    id: str
    seconds: float
    state: Literal["opening", "waiting", "hearing", "speaking"]
    replies: int
    interruptions: int
    first_audio_ms: float | None


class PoolState(BaseModel):
    """Conversations: places, those that are open, and what the engine says of itself."""

    status: str
    slots: int
    used: int
    free: int
    engine: dict[str, Any]
    sessions: list[SessionState]


class Model(BaseModel):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "chroma-plugin"


class Models(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorBody(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """An answer that is none."""

    error: ErrorBody


class VoiceBody(BaseModel):
    """A voice."""

    id: str
    object: Literal["audio.voice"] = "audio.voice"
    type: Literal["audio_sample"] = "audio_sample"
    name: str
    created_at: int
    consent: str | None
    seconds: float

    @classmethod
    def of(cls, record: VoiceRecord) -> VoiceBody:
        """What a client is told of a voice; neither its transcript nor who agreed."""
        return cls(
            id=record.name,
            name=record.name,
            created_at=int(record.when),
            consent=record.consent.id,
            seconds=record.seconds,
        )


class Voices(BaseModel):
    """All voices: their names, and what is known of those that were enrolled."""

    object: Literal["list"] = "list"
    voices: list[str]
    data: list[VoiceBody]


class ConsentBody(BaseModel):
    """A consent."""

    id: str
    object: Literal["audio.voice_consent"] = "audio.voice_consent"
    name: str
    language: str
    created_at: int

    @classmethod
    def of(cls, consent: Consent) -> ConsentBody:
        return cls(
            id=consent.id,
            name=consent.who,
            language=consent.language,
            created_at=int(consent.when),
        )


class Consents(BaseModel):
    """Some of them, and whether there are more."""

    object: Literal["list"] = "list"
    data: list[ConsentBody]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, consents: Sequence[Consent], *, has_more: bool) -> Consents:
        data = [ConsentBody.of(consent) for consent in consents]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return cls(data=data, first_id=first, last_id=last, has_more=has_more)


class Deleted(BaseModel):
    """That something is gone."""

    id: str
    object: str
    deleted: Literal[True] = True


class VoiceChoice(BaseModel):
    """A voice by its id."""

    id: Annotated[str, Field(min_length=1, max_length=MAX_ID)]


class SpeechRequest(BaseModel):
    """What is to be said, in OpenAI's form of text to speech."""

    model: str = Field(default="chroma", max_length=MAX_ID)
    input: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"[^\s\x00-\x1f]")]
    voice: Annotated[str, Field(min_length=1, max_length=MAX_ID)] | VoiceChoice | None = None
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] = "mp3"
    instructions: str | None = Field(default=None, max_length=MAX_TEXT)
    speed: float = Field(default=1.0, ge=1.0, le=1.0)
    stream_format: Literal["audio", "sse"] = "audio"

    @property
    def voice_name(self) -> str | None:
        return self.voice.id if isinstance(self.voice, VoiceChoice) else self.voice
