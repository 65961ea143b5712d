"""What clients send: the events of the OpenAI Realtime protocol (GA names), checked.

What is not known is let pass, as the protocol grows; what is known and cannot be done here is
refused by its name. Nothing here knows a session or a socket.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_TEXT = 64_000
"""Characters of one text: instructions, a message, what is to be said."""
MAX_ID = 128

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Id = Annotated[str, Field(min_length=1, max_length=MAX_ID)]
Modality = Literal["audio", "text"]
TokenLimit = Annotated[int, Field(ge=1, le=4096)] | Literal["inf"]
ToolChoice = Literal["auto", "none", "required"]
"""There are no tools, so that it makes no difference."""
Metadata = Annotated[
    dict[
        Annotated[str, Field(max_length=64)],
        Annotated[str, Field(max_length=512)],
    ],
    Field(max_length=16),
]


Model = TypeVar("Model", bound=BaseModel)


class ProtocolError(Exception):
    """An event that cannot be done; becomes an `error` event, and the connection goes on.

    Attributes:
        code: the protocol's word for it.
        param: the field that is wrong, or None.
        kind: `invalid_request_error` or `server_error`.
    """

    def __init__(
        self, code: str, message: str, param: str | None = None, kind: str = "invalid_request_error"
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.param, self.kind = code, message, param, kind


class Fields(BaseModel):
    """What is not known is let pass."""

    model_config = ConfigDict(extra="ignore")


# -- items and responses ---------------------------------------------------------------------


class Content(Fields):
    """A part of a message."""

    type: Literal["input_text", "input_audio", "output_text", "output_audio", "text", "audio"]
    text: Text | None = None
    audio: str | None = Field(default=None, max_length=8_000_000)
    transcript: Text | None = None


class TurnLabel(Fields):
    """The client's own number of the turn."""

    turn: int | None = None


class NewItem(Fields):
    """A message that a client puts into the conversation."""

    id: Id | None = None
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system"]
    content: list[Content] = Field(min_length=1, max_length=64)
    chroma: TurnLabel = TurnLabel()


class ItemReference(Fields):
    """A message that the conversation has."""

    type: Literal["item_reference"]
    id: Id


class ResponseExtras(Fields):
    """What the protocol has no word for, under the key `chroma`.

    Attributes:
        turn: the client's own number of the turn; comes back with the reply's events.
        say: text to speak word for word.
        add_instructions: added to the session's, where `instructions` replace them.
        sampling: for this reply.
    """

    turn: int | None = None
    say: Text | None = None
    add_instructions: Text | None = None
    sampling: dict[str, Any] | None = None


class ResponseConfig(Fields):
    """What one reply is to be; what is None is as in the session."""

    conversation: Literal["auto", "none"] | None = "auto"
    instructions: Text | None = None
    output_modalities: list[Modality] | None = Field(default=None, min_length=1, max_length=1)
    max_output_tokens: TokenLimit | None = None
    metadata: Metadata | None = None
    input: list[NewItem | ItemReference] | None = Field(default=None, max_length=256)
    audio: dict[str, dict[str, Any] | None] | None = None
    tools: list[Any] | None = Field(default=None, max_length=0)
    tool_choice: ToolChoice | None = None
    prompt: None = None
    chroma: ResponseExtras = ResponseExtras()


class CutExtras(Fields):
    """A cut by the client's own numbers: so many tokens of the reply of that turn are kept."""

    turn: int
    tokens: int = Field(ge=0)


class TranscribeExtras(Fields):
    """Asks for a transcript of a turn, or withdraws that."""

    turn: int
    transcribe: bool = True


# -- events ----------------------------------------------------------------------------------


class ClientEvent(Fields):
    """What every event has."""

    event_id: str | None = Field(default=None, max_length=512)


class SessionUpdate(ClientEvent):
    """Changes settings, from the next reply on."""

    session: dict[str, Any]


class AudioAppend(ClientEvent):
    """More of what the user says."""

    audio: str


class AudioCommit(ClientEvent):
    """The user's turn has ended."""

    chroma: TurnLabel = TurnLabel()


class AudioClear(ClientEvent):
    """What was appended is taken back."""


class ItemCreate(ClientEvent):
    """Puts a message into the conversation."""

    item: NewItem
    previous_item_id: Id | None = None


class ItemRetrieve(ClientEvent):
    """Asks for a message."""

    item_id: Annotated[str, Field(max_length=MAX_ID)]
    chroma: TranscribeExtras | None = None


class ItemDelete(ClientEvent):
    """Takes a message out of the conversation."""

    item_id: Id


class ItemTruncate(ClientEvent):
    """Says how much of a reply was heard."""

    item_id: Annotated[str, Field(max_length=MAX_ID)]
    content_index: int = 0
    audio_end_ms: int = Field(ge=0, le=2**31)
    chroma: CutExtras | None = None


class ResponseCreate(ClientEvent):
    """Asks for a reply."""

    response: ResponseConfig | None = None


class ResponseCancel(ClientEvent):
    """Stops a reply."""

    response_id: Id | None = None


def parse(text: str) -> dict[str, Any]:
    """The fields of an event.

    Raises:
        ProtocolError: no JSON object.
    """
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        raise ProtocolError("invalid_json", "The message is not JSON; send one event.") from None
    if not isinstance(event, dict):
        raise ProtocolError("invalid_json", "The message is not a JSON object; send one event.")
    return event


def kind_of(fields: dict[str, Any]) -> str:
    """The type of an event.

    Raises:
        ProtocolError: it has none.
    """
    kind = fields.get("type")
    if not isinstance(kind, str):
        raise ProtocolError(
            "missing_required_parameter", "The event has no type: a string.", "type"
        )
    return kind


def validated(model: type[Model], fields: dict[str, Any], owner: str = "") -> Model:
    """The fields as a checked object.

    Raises:
        ProtocolError: the first of what is wrong, by its name.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    except RecursionError:
        raise ProtocolError("invalid_value", "The event is nested too deep.") from None
    param = ".".join(part for part in (owner, *map(str, first["loc"])) if part)
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    reason = first["msg"]
    if first["type"] in ("none_required", "too_long") and param.endswith(
        ("tools", "prompt", "noise_reduction")
    ):
        code, reason = "unsupported_parameter", "it is not supported here; leave it out"
    raise ProtocolError(code, f"{param or 'the event'}: {reason}.", param or None)
