"""What clients are sent: the events of the OpenAI Realtime protocol (GA names), one function each.

The functions stand in the order in which a conversation sees them. `event_id` is added where they
are sent. Extra fields are under the key `chroma`, unknown to others and harmless.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from typing import Any

from chroma_plugin.errors import AudioError, ChromaError, ConfigError, EngineBusy, VoiceError

Event = dict[str, Any]


def new_id(prefix: str) -> str:
    """An id that nobody can guess: `item_...`, `resp_...`, `event_...`, `sess_...`."""
    return f"{prefix}_{secrets.token_hex(10)}"


def event(kind: str, **fields: Any) -> Event:
    """An event of that type; a field that is called `chroma` and empty is left out."""
    if not fields.get("chroma"):
        fields.pop("chroma", None)
    return {"type": kind, "event_id": new_id("event"), **fields}


# -- session ---------------------------------------------------------------------------------


def session_created(session: Event) -> Event:
    return event("session.created", session=session)


def session_updated(session: Event) -> Event:
    return event("session.updated", session=session)


def error(
    code: str,
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    event_id: str | None = None,
    chroma: Mapping[str, Any] | None = None,
) -> Event:
    about = {
        "type": kind,
        "code": code,
        "message": message,
        "param": param,
        "event_id": event_id,
    }
    return event("error", error=about, chroma=chroma)


def failure(reason: ChromaError, event_id: str | None = None) -> Event:
    """What a client is told when the engine, or a setting, is the reason."""
    theirs = isinstance(reason, AudioError | ConfigError | VoiceError)
    code = "invalid_value" if theirs else "server_error"
    if isinstance(reason, EngineBusy):
        code = "server_overloaded"
    return error(
        code,
        str(reason),
        kind="invalid_request_error" if theirs else "server_error",
        event_id=event_id,
        chroma={"error": type(reason).__name__},
    )


# -- what the user says ----------------------------------------------------------------------


def speech_started(item_id: str, start_ms: float) -> Event:
    return event(
        "input_audio_buffer.speech_started", item_id=item_id, audio_start_ms=round(start_ms)
    )


def speech_stopped(item_id: str, end_ms: float) -> Event:
    return event("input_audio_buffer.speech_stopped", item_id=item_id, audio_end_ms=round(end_ms))


def timeout_triggered(item_id: str, start_ms: float, end_ms: float) -> Event:
    return event(
        "input_audio_buffer.timeout_triggered",
        item_id=item_id,
        audio_start_ms=round(start_ms),
        audio_end_ms=round(end_ms),
    )


def audio_committed(item_id: str, previous: str | None) -> Event:
    return event("input_audio_buffer.committed", item_id=item_id, previous_item_id=previous)


def audio_cleared() -> Event:
    return event("input_audio_buffer.cleared")


def transcript_delta(item_id: str, text: str) -> Event:
    kind = "conversation.item.input_audio_transcription.delta"
    return event(kind, item_id=item_id, content_index=0, delta=text)


def transcript_completed(
    item_id: str, text: str, seconds: float, chroma: Mapping[str, Any] | None = None
) -> Event:
    return event(
        "conversation.item.input_audio_transcription.completed",
        item_id=item_id,
        content_index=0,
        transcript=text,
        usage={"type": "duration", "seconds": round(seconds, 3)},
        chroma=chroma,
    )


def transcript_failed(item_id: str, message: str, chroma: Mapping[str, Any] | None = None) -> Event:
    about = {"type": "transcription_error", "code": "transcription_failed", "message": message}
    return event(
        "conversation.item.input_audio_transcription.failed",
        item_id=item_id,
        content_index=0,
        error=about | {"param": None},
        chroma=chroma,
    )


# -- the conversation ------------------------------------------------------------------------


def item_added(item: Event, previous: str | None) -> Event:
    return event("conversation.item.added", item=item, previous_item_id=previous)


def item_done(item: Event, previous: str | None) -> Event:
    return event("conversation.item.done", item=item, previous_item_id=previous)


def item_retrieved(item: Event) -> Event:
    return event("conversation.item.retrieved", item=item)


def item_deleted(item_id: str) -> Event:
    return event("conversation.item.deleted", item_id=item_id)


def item_truncated(item_id: str, content_index: int, end_ms: int) -> Event:
    return event(
        "conversation.item.truncated",
        item_id=item_id,
        content_index=content_index,
        audio_end_ms=end_ms,
    )


# -- a reply ---------------------------------------------------------------------------------


def response_created(response: Event, chroma: Mapping[str, Any] | None = None) -> Event:
    return event("response.created", response=response, chroma=chroma)


def output_item_added(response_id: str, item: Event) -> Event:
    return event("response.output_item.added", response_id=response_id, output_index=0, item=item)


def content_part_added(response_id: str, item_id: str, part: Event) -> Event:
    return event("response.content_part.added", **_place(response_id, item_id), part=part)


def output_transcript_delta(
    response_id: str, item_id: str, text: str, chroma: Mapping[str, Any]
) -> Event:
    kind = "response.output_audio_transcript.delta"
    return event(kind, **_place(response_id, item_id), delta=text, chroma=chroma)


def output_audio_delta(
    response_id: str, item_id: str, audio: bytes, chroma: Mapping[str, Any]
) -> Event:
    delta = base64.b64encode(audio).decode()
    place = _place(response_id, item_id)
    return event("response.output_audio.delta", **place, delta=delta, chroma=chroma)


def output_text_delta(
    response_id: str, item_id: str, text: str, chroma: Mapping[str, Any]
) -> Event:
    place = _place(response_id, item_id)
    return event("response.output_text.delta", **place, delta=text, chroma=chroma)


def output_audio_done(response_id: str, item_id: str) -> Event:
    return event("response.output_audio.done", **_place(response_id, item_id))


def output_transcript_done(response_id: str, item_id: str, text: str) -> Event:
    kind = "response.output_audio_transcript.done"
    return event(kind, **_place(response_id, item_id), transcript=text)


def output_text_done(response_id: str, item_id: str, text: str) -> Event:
    return event("response.output_text.done", **_place(response_id, item_id), text=text)


def content_part_done(response_id: str, item_id: str, part: Event) -> Event:
    return event("response.content_part.done", **_place(response_id, item_id), part=part)


def output_item_done(response_id: str, item: Event) -> Event:
    return event("response.output_item.done", response_id=response_id, output_index=0, item=item)


def response_done(response: Event, chroma: Mapping[str, Any] | None = None) -> Event:
    return event("response.done", response=response, chroma=chroma)


def _place(response_id: str, item_id: str) -> Event:
    return {
        "response_id": response_id,
        "item_id": item_id,
        "output_index": 0,
        "content_index": 0,
    }
