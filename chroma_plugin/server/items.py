"""The conversation as the client sees it: messages with ids, in order. Knows no `Session`."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Any, Literal

from chroma_plugin.audio import INPUT_RATE_HZ, Samples
from chroma_plugin.conversation import Message, Role
from chroma_plugin.reply import TextDelta, add_up
from chroma_plugin.server.events import new_id
from chroma_plugin.server.formats import WireFormat, decode
from chroma_plugin.server.protocol import NewItem, ProtocolError
from chroma_plugin.session import MIN_TURN_MS

MAX_ITEMS = 2_000
"""Of one conversation; more are refused."""
MAX_HELD_BYTES = 32 << 20
"""Of texts, and of sound that no session has heard yet: eight minutes of it. More is refused."""


@dataclass(eq=False, slots=True)
class Item:
    """One message.

    Attributes:
        role: who said it.
        id: its name in the protocol.
        text: what was said; None for a user's speech that is not written down.
        status: `in_progress`, `completed`, or `incomplete` for what was cut.
        spoken: it has sound; otherwise it was typed.
        audio_ms: how much.
        samples: sound that the session has not heard yet, float32 at 16 kHz.
        turn: the session's number of the turn; 0 if the session knows it as text, or not yet.
        label: the client's own number of the turn, or None.
        pieces: a reply's text as it was handed out, with its place in the sound.
    """

    role: Role
    id: str = field(default_factory=lambda: new_id("item"))
    text: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] = "completed"
    spoken: bool = False
    audio_ms: float = 0.0
    samples: Samples | None = None
    turn: int = 0
    label: int | None = None
    pieces: list[TextDelta] = field(default_factory=list)

    def hear(self, samples: Samples) -> None:
        """Makes it a spoken message that the session has still to hear."""
        self.spoken, self.samples = True, samples
        self.audio_ms = len(samples) * 1000 / INPUT_RATE_HZ

    def cut(self, heard_ms: float) -> None:
        """Leaves of a reply what stands before that place in its sound."""
        if self.pieces:
            self.pieces = [piece for piece in self.pieces if piece.start_ms < heard_ms]
            self.text, _ = add_up(self.pieces)
        elif heard_ms <= 0:
            self.text = ""
        self.audio_ms = min(self.audio_ms, heard_ms)

    @property
    def held_bytes(self) -> int:
        """What it takes here: its text, and its sound until a session has it."""
        return 4 * len(self.text or "") + (0 if self.samples is None else self.samples.nbytes)

    @property
    def untold(self) -> bool:
        """Something said that no session has heard and nobody wrote down: it has to wait."""
        return not self.turn and self.text is None

    @property
    def message(self) -> Message | None:
        """What an engine is told of it when a conversation is opened again."""
        return Message(self.role, self.text, self.audio_ms) if self.text else None

    def as_event(self, *, text_only: bool = False) -> dict[str, Any]:
        """Its form in the protocol."""
        content: list[dict[str, Any]]
        if self.status == "in_progress":
            content = []
        elif self.role == "assistant":
            spoken = self.spoken and not text_only
            kind, name = ("output_audio", "transcript") if spoken else ("output_text", "text")
            content = [{"type": kind, name: self.text or ""}]
        elif self.spoken:
            content = [{"type": "input_audio", "transcript": self.text}]
        else:
            content = [{"type": "input_text", "text": self.text or ""}]
        return {
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "status": self.status,
            "role": self.role,
            "content": content,
        }


class Items:
    """The messages of one conversation."""

    def __init__(self) -> None:
        self._items: list[Item] = []

    def __iter__(self) -> Any:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def last_id(self) -> str | None:
        return self._items[-1].id if self._items else None

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Puts a message after another one, at the end, or, after `root`, at the beginning.

        Returns:
            The id of the message before it, or None.

        Raises:
            ProtocolError: the id is taken, there is none of the id given, or there are too many.
        """
        if len(self._items) >= MAX_ITEMS:
            raise ProtocolError(
                "conversation_too_long",
                f"The conversation has {MAX_ITEMS} items; delete some, or open another one.",
            )
        if item.held_bytes + sum(other.held_bytes for other in self._items) > MAX_HELD_BYTES:
            raise ProtocolError(
                "conversation_too_long",
                f"The conversation's texts, and sound that waits to be heard, take more than "
                f"{MAX_HELD_BYTES >> 20} MiB; delete some, or open another one.",
            )
        if any(other.id == item.id for other in self._items):
            raise ProtocolError(
                "item_create_duplicate_item_id",
                f"The conversation has an item {item.id!r}.",
                "item.id",
            )
        place = len(self._items)
        if after == "root":
            place = 0
        elif after is not None:
            place = self._items.index(self.get(after, "previous_item_id")) + 1
        self._items.insert(place, item)
        return self._items[place - 1].id if place else None

    def get(self, item_id: str, param: str = "item_id", code: str = "item_not_found") -> Item:
        """The message of that id.

        Args:
            item_id: the id.
            param: where it stands in the event.
            code: the protocol's word for it that there is none, which is another one for each
                event; clients know some of them.

        Raises:
            ProtocolError: there is none.
        """
        for item in reversed(self._items):
            if item.id == item_id:
                return item
        raise ProtocolError(code, f"The conversation has no item {item_id[:60]!r}.", param)

    def labelled(self, role: Role, label: int) -> Item | None:
        """The newest message of that role that the client knows by its own number."""
        known = (i for i in reversed(self._items) if i.role == role and i.label == label)
        return next(known, None)

    def is_last(self, item: Item) -> bool:
        return bool(self._items) and self._items[-1] is item

    def before(self, item: Item) -> str | None:
        """The id of the message before it, or None."""
        place = self._items.index(item)
        return self._items[place - 1].id if place else None

    def remove(self, item: Item) -> None:
        self._items.remove(item)


def item_of(new: NewItem, wire: WireFormat, max_turn_s: float) -> Item:
    """The message that a client made.

    Args:
        new: what it sent.
        wire: how its sound is written.
        max_turn_s: what is beyond that is not heard.

    Raises:
        ProtocolError: its sound is none, too short, or beside other parts.
        AudioError: its sound is cut in the middle of a sample.
    """
    item = Item(new.role, id=new.id or new_id("item"), label=new.chroma.turn)
    sounds = [content.audio for content in new.content if content.audio is not None]
    if not sounds:
        texts = [part.text if part.text is not None else part.transcript for part in new.content]
        item.text = "\n".join(text for text in texts if text)
        return item
    if len(new.content) > 1 or new.role != "user":
        raise ProtocolError(
            "unsupported_content",
            "Audio is taken as the only part of a user's message.",
            "item.content",
        )
    param = "item.content.0.audio"
    sound = decode(audio_bytes(sounds[0], param), wire)
    item.hear(sound[: round(max_turn_s * INPUT_RATE_HZ)])
    if item.audio_ms < MIN_TURN_MS:
        raise ProtocolError("audio_too_short", f"At least {MIN_TURN_MS} ms are needed.", param)
    return item


def audio_bytes(text: str, param: str) -> bytes:
    """What base64 stands for.

    Raises:
        ProtocolError: it is none.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ProtocolError("invalid_value", f"{param} is not base64.", param) from None
