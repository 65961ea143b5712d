"""The settings of one connection, as `session.update` changes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from chroma_plugin.config import DEFAULT_INSTRUCTIONS
from chroma_plugin.server.formats import WireFormat
from chroma_plugin.server.protocol import (
    MAX_ID,
    Fields,
    Id,
    Modality,
    Text,
    TokenLimit,
    ToolChoice,
    validated,
)


class Pcm(Fields):
    """PCM16, little endian, mono."""

    type: Literal["audio/pcm"]
    rate: Literal[24000] = 24000

    @property
    def wire(self) -> WireFormat:
        return WireFormat("audio/pcm", self.rate)


class G711(Fields):
    """mu-law (pcmu) or A-law (pcma) at 8 kHz."""

    type: Literal["audio/pcmu", "audio/pcma"]

    @property
    def wire(self) -> WireFormat:
        return WireFormat(self.type, 8000)


AudioFormat = Annotated[Pcm | G711, Field(discriminator="type")]


class ServerVad(Fields):
    """Turns by the sound alone."""

    type: Literal["server_vad"]
    threshold: float = Field(default=0.5, ge=0.0, le=1.0)
    prefix_padding_ms: int = Field(default=300, ge=0, le=5000)
    silence_duration_ms: int = Field(default=500, ge=32, le=10_000)
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: int | None = Field(default=None, ge=5000, le=30_000)

    def silence_ms(self, judged: bool) -> int:
        """A turn ends after so much of it, whoever judges pauses."""
        return self.silence_duration_ms


class SemanticVad(Fields):
    """Turns that end where somebody has finished; the eagerness says after which silence at the
    latest."""

    type: Literal["semantic_vad"]
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: bool = True

    @property
    def threshold(self) -> float:
        return 0.5

    @property
    def prefix_padding_ms(self) -> int:
        return 300

    @property
    def idle_timeout_ms(self) -> None:
        return None

    def silence_ms(self, judged: bool) -> int:
        """A turn ends after so much of it: as in the protocol if somebody judges shorter pauses,
        else a time in which people do not mind to wait."""
        longest = {"low": 8000, "medium": 4000, "auto": 4000, "high": 2000}
        alone = {"low": 1200, "medium": 700, "auto": 700, "high": 400}
        return (longest if judged else alone)[self.eagerness]


TurnDetection = Annotated[ServerVad | SemanticVad, Field(discriminator="type")]


class Transcription(Fields):
    """That what the user says is written down; any model's name will do, there is one."""

    model: str = Field(default="chroma", max_length=MAX_ID)
    language: str | None = Field(default=None, max_length=32)
    prompt: Text | None = None


class AudioInput(Fields):
    """How the user is heard."""

    format: AudioFormat = Pcm(type="audio/pcm")
    transcription: Transcription | None = None
    noise_reduction: None = None
    turn_detection: TurnDetection | None = ServerVad(type="server_vad")


class VoiceId(Fields):
    """A voice by its id, the protocol's longer form."""

    id: Id


class AudioOutput(Fields):
    """How Chroma is heard."""

    format: AudioFormat = Pcm(type="audio/pcm")
    voice: Id | VoiceId | None = None
    speed: float = Field(default=1.0, ge=1.0, le=1.0)

    @property
    def voice_name(self) -> str | None:
        return self.voice.id if isinstance(self.voice, VoiceId) else self.voice


class Audio(Fields):
    """Both directions."""

    input: AudioInput = AudioInput()
    output: AudioOutput = AudioOutput()


class InlineVoice(Fields):
    """A voice that comes with the connection and goes with it; for `RemoteEngine`."""

    name: str = Field(default="inline", max_length=MAX_ID)
    transcript: Text
    pcm: str = Field(max_length=3_000_000)
    consent: str = Field(default="", max_length=2000)


class SessionExtras(Fields):
    """What the protocol has no word for, under the key `chroma`."""

    sampling: dict[str, Any] = Field(default_factory=dict)
    input_rate_hz: Literal[16000, 24000] = 24000
    voice: InlineVoice | None = Field(default=None, exclude=True)


class SessionConfig(Fields):
    """The settings of one connection; `updated` makes the next ones."""

    type: Literal["realtime"] = "realtime"
    instructions: Text = DEFAULT_INSTRUCTIONS
    output_modalities: list[Modality] = Field(default=["audio"], min_length=1, max_length=1)
    audio: Audio = Audio()
    max_output_tokens: TokenLimit = "inf"
    tools: list[Any] = Field(default=[], max_length=0)
    tool_choice: ToolChoice = "auto"
    prompt: None = None
    chroma: SessionExtras = SessionExtras()

    def updated(self, patch: dict[str, Any]) -> SessionConfig:
        """These settings with some of them changed; null resets or switches off.

        Raises:
            ProtocolError: a setting is unknown to this server, out of range or of another kind.
        """
        merged = _merged(self.model_dump(), patch, ("audio", "input", "output", "chroma"))
        return validated(SessionConfig, merged, "session")

    @property
    def input_wire(self) -> WireFormat:
        wire = self.audio.input.format.wire
        if wire.encoding == "audio/pcm":
            return WireFormat("audio/pcm", self.chroma.input_rate_hz)
        return wire


_RESET_BY_NULL = (
    "voice",
    "format",
    "instructions",
    "max_output_tokens",
    "tools",
    "tool_choice",
    "speed",
)


def _merged(old: dict[str, Any], patch: dict[str, Any], deep: tuple[str, ...]) -> dict[str, Any]:
    merged = dict(old)
    for name, value in patch.items():
        if name in deep and isinstance(value, dict):
            merged[name] = _merged(old.get(name) or {}, value, deep)
        elif value is None and name in _RESET_BY_NULL:
            merged.pop(name, None)
        elif value is None and name in deep:
            continue
        elif isinstance(value, dict):
            merged[name] = {field: given for field, given in value.items() if given is not None}
        else:
            merged[name] = value
    return merged
