"""From what a client asks of a reply, and its session's settings, to the plan of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from chroma_plugin.conversation import Message
from chroma_plugin.server.items import Item, Items
from chroma_plugin.server.protocol import ItemReference, NewItem, ResponseConfig, validated
from chroma_plugin.server.response import AUDIO_TOKENS_PER_SECOND, CHARS_PER_TOKEN, Plan
from chroma_plugin.server.session_config import Audio, SessionConfig


def plan_of(
    wanted: ResponseConfig, config: SessionConfig, voice: str, read: tuple[int, int]
) -> Plan:
    """The plan of a reply.

    Args:
        wanted: what was asked for; what is None is as in the session.
        config: the session's settings.
        voice: the name of its voice.
        read: tokens that it is read from: of sound, and of text.

    Raises:
        ProtocolError: its audio settings are none.
    """
    output = config.audio.output
    if wanted.audio is not None:
        fields = {"output": output.model_dump() | (wanted.audio.get("output") or {})}
        output = validated(Audio, fields, "response.audio").output
    limit = wanted.max_output_tokens or config.max_output_tokens
    return Plan(
        modality=(wanted.output_modalities or config.output_modalities)[0],
        wire=output.format.wire,
        voice=voice,
        max_tokens=None if limit == "inf" else limit,
        metadata=wanted.metadata,
        label=wanted.chroma.turn,
        out_of_band=wanted.conversation == "none",
        input_tokens=read,
    )


def context_of(
    wanted: ResponseConfig, items: Items, new_item: Callable[[NewItem], Item]
) -> list[Message]:
    """What an out-of-band reply is an answer to.

    Args:
        wanted: what was asked for; without an `input` it is the conversation.
        items: the conversation.
        new_item: makes messages of what came with the request.

    Raises:
        ProtocolError: it refers to an item that is not there, or one of its own cannot be used.
    """
    chosen = list(items)
    if wanted.input is not None:
        chosen = [
            items.get(part.id, "response.input")
            if isinstance(part, ItemReference)
            else new_item(part)
            for part in wanted.input
        ]
    return [message for message in (item.message for item in chosen) if message is not None]


def input_tokens(items: Iterable[Item]) -> tuple[int, int]:
    """What items take in the thinker, about: tokens of sound, and of text."""
    sound = text = 0.0
    for item in items:
        if item.role == "user" and item.spoken:
            sound += item.audio_ms / 1000 * AUDIO_TOKENS_PER_SECOND
        else:
            text += len(item.text or "") / CHARS_PER_TOKEN
    return round(sound), round(text)
