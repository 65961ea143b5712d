"""A conversation as the framework's chat context: its items, in their order.

Knows what of a changed context is new, gone or other. Knows nothing of sessions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from livekit.agents import llm

from chroma_plugin.audio import Samples
from chroma_plugin.conversation import Message

HIDDEN = ("lk.agent_task.instructions", "lk.agent_task.instructions.dynamic")
"""Items of the agent's own instructions, which come another way."""


@dataclass(slots=True, eq=False)
class Item:
    """One item.

    Attributes:
        chat: as the framework sees it.
        sound: what the user said, float32 at 16 kHz, as long as a session may have to hear it.
        audio_ms: how long that is.
        turn: the session's number of the turn; 0 if no session knows it as one.
        cut: the reply was interrupted, and nobody has said yet how much of it was heard.
    """

    chat: llm.ChatItem
    sound: Samples | None = None
    audio_ms: float = 0.0
    turn: int = 0
    cut: bool = False

    @property
    def role(self) -> Literal["system", "user", "assistant"] | None:
        """Who said it; None for what is no message."""
        if self.chat.type != "message":
            return None
        return "system" if self.chat.role == "developer" else self.chat.role

    @property
    def text(self) -> str:
        """What was said, as far as it was written down."""
        text = self.chat.raw_text_content if self.chat.type == "message" else None
        return text or ""

    def write(self, text: str) -> None:
        """Replaces the text."""
        if self.chat.type == "message":
            self.chat.content = [text] if text else []

    @property
    def message(self) -> Message | None:
        """For the history of a session; None if there is nothing to tell."""
        if self.role in (None, "system") or not self.text.strip():
            return None
        return Message("user" if self.role == "user" else "assistant", self.text)


class Record:
    """The items of a conversation."""

    def __init__(self) -> None:
        self.items: list[Item] = []

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def context(self) -> llm.ChatContext:
        """A copy, for others to change."""
        return llm.ChatContext([item.chat.model_copy() for item in self.items])

    @property
    def instructions(self) -> str:
        """What messages of the system say, besides the agent's instructions."""
        texts = [item.text for item in self.items if item.role == "system" and item.text]
        return "\n\n".join(texts)

    def find(self, item_id: str) -> Item | None:
        """The item of that id."""
        return next((item for item in self.items if item.chat.id == item_id), None)

    def add(self, item: Item) -> str | None:
        """Puts an item at the end; returns the id of the one before it."""
        before = self.items[-1].chat.id if self.items else None
        self.items.append(item)
        return before

    def update(self, context: llm.ChatContext) -> tuple[list[Item], list[Item]]:
        """Takes over a context that somebody changed.

        Placeholders stay as they are: a message without text in the context is one whose text only
        this side knows, or one that is only spoken. But a reply that was interrupted and never
        came to be heard goes.

        Returns:
            The items that went, and those whose text changed; what is new has turn 0.
        """
        wanted = context.copy(exclude_handoff=True, exclude_config_update=True)
        known = {item.chat.id: item for item in self.items}
        kept = llm.ChatContext(
            [
                chat
                for chat in wanted.items
                if chat.id not in HIDDEN and not self._empty(chat, known.get(chat.id))
            ]
        )
        diff = llm.utils.compute_chat_ctx_diff(self.context, kept)
        gone = [known[item_id] for item_id in diff.to_remove]
        changed: list[Item] = []
        new = {item_id for _, item_id in diff.to_create}
        items: list[Item] = []
        for chat in kept.items:
            item = known.get(chat.id)
            if item is None or chat.id in new:
                item = Item(chat.model_copy())
            elif chat.type == "message" and chat.content and not _same(chat, item):
                if item.text or item.role != "user":  # else it is the transcript of speech
                    changed.append(item)
                item.write(chat.raw_text_content or "")
            items.append(item)
        self.items = items
        return gone, changed

    @staticmethod
    def _empty(chat: llm.ChatItem, item: Item | None) -> bool:
        if chat.type != "message" or chat.raw_text_content:
            return False
        return item is None or item.cut


def _same(chat: llm.ChatMessage, item: Item) -> bool:
    """The same words; a host may strip what it plays."""
    return (chat.raw_text_content or "").split() == item.text.split()
