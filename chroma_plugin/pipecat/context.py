"""What is new in an `LLMContext`, and where in it the user's spoken words belong.

The session remembers what it heard; the context holds text that others wrote: the application,
and the aggregators. Knows nothing of sessions and audio.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipecat.processors.aggregators.llm_context import LLMContext, standard_message_text

from chroma_plugin.conversation import Message

PLACES = 8
"""So many of the newest turns can still get their transcript into its place."""


class News(NamedTuple):
    """What was written since the last reply: by the user, and by the developer for the next."""

    typed: list[str]
    hints: list[str]


@dataclass(slots=True)
class _Place:
    """Where what was said in a turn belongs: after a message, which may be on its way."""

    after: Any  # the message; None for the beginning
    reply: str  # the last reply's text, if its message has not come yet


class ContextReader:
    """Reads a context that others write."""

    def __init__(self, context: LLMContext | None) -> None:
        self.context = context
        self._known: Counter[tuple[str, str]] = Counter()  # of (role, text), that the session has
        self._places: dict[int, _Place] = {}  # of spoken turns, by their numbers
        self._coming: dict[int, str] = {}  # by turn, what the aggregator is about to write
        self._bookkeeping = False  # the next context frame is one
        self._aside: list[str] = []  # typed before there was a context

    @property
    def messages(self) -> list[Any]:
        return self.context.get_messages() if self.context is not None else []

    @property
    def instructions(self) -> str | None:
        """The text of the system message, if the context begins with one."""
        system = _system_message(self.messages)
        return standard_message_text(system) if system is not None else None

    def begin(self) -> list[Message]:
        """The conversation so far, for a new session."""
        if self.replaced:
            self._places.clear()
        told = [m for m in self.messages if _role(m) in ("user", "assistant")]
        hints = Counter(_key(m) for m in self.messages) & self._known
        self._known = Counter(map(_key, told)) | hints
        return [Message(_role(m), standard_message_text(m)) for m in told]

    @property
    def replaced(self) -> bool:
        """What the user or the assistant said is not there any more."""
        gone = self._known - Counter(map(_key, self.messages))
        return any(role in ("user", "assistant") for role, _ in gone)

    def news(self) -> News:
        """What is new since it was called last."""
        messages, left = self.messages, self._known.copy()
        system, heard, new = _system_message(messages), set(self._coming.values()), []
        for message in messages:
            if left[_key(message)] > 0:
                left[_key(message)] -= 1
            elif message is not system and standard_message_text(message) not in heard:
                new.append(message)
        self._known = Counter(map(_key, messages))
        aside, self._aside = self._aside, []
        typed = aside + [standard_message_text(m) for m in new if _role(m) == "user"]
        hints = [standard_message_text(m) for m in new if _role(m) in ("developer", "system")]
        return News([t for t in typed if t.strip()], [h for h in hints if h.strip()])

    def type(self, text: str) -> None:
        """The user typed something."""
        if self.context is None:
            self._aside.append(text)
        else:
            self.context.add_message({"role": "user", "content": text})

    def assistant_wrote(self, text: str) -> None:
        """The aggregator wrote down what was heard of a reply."""
        self._learn(("assistant", text))

    # -- what was said --------------------------------------------------------------------------

    def turn_spoken(self, turn: int, last_reply: str) -> None:
        """A spoken turn has ended: what was said in it belongs here.

        Args:
            turn: its number.
            last_reply: the text of the reply before it, which may not have been written yet.
        """
        messages = self.messages
        last = messages[-1] if messages else None
        self._places[turn] = _Place(last, "" if _tells(last, last_reply) else last_reply)
        while len(self._places) > PLACES:
            del self._places[next(iter(self._places))]

    def insert(self, turn: int, text: str) -> bool:
        """Writes what was said in a turn into its place; False if that is long gone."""
        if self.context is None or turn not in self._places:
            return False
        message = {"role": "user", "content": text}
        self.context.add_message(message)  # type: ignore[arg-type]
        self._learn(_key(message))
        self._move(message, turn)
        return True

    def coming(self, turn: int, text: str) -> None:
        """The user aggregator was given the transcript of a turn, and will write it down."""
        self._coming[turn] = text

    def user_wrote(self, text: str) -> bool:
        """The user aggregator wrote down what was said; a context frame follows.

        Returns:
            Whether it was told by somebody else than this service.
        """
        self._bookkeeping = True
        turns = sorted(turn for turn, said in self._coming.items() if said in text)
        said = {turn: self._coming.pop(turn) for turn in turns}
        turn = turns[0] if turns else max(self._places, default=0)
        for message in reversed(self.messages):
            if _key(message) == ("user", text):
                if len(turns) > 1:
                    self._part(message, said)
                else:
                    self._learn(("user", text))
                    self._move(message, turn)
                break
        return not turns

    def _part(self, message: Any, said: Mapping[int, str]) -> None:
        """Makes a message for each turn of one that the aggregator wrote of several: a barge-in
        had come before it wrote the first."""
        context = self.context
        if context is None:
            return
        context.set_messages([m for m in context.get_messages() if m is not message])
        self._known -= Counter([_key(message)])
        for turn, text in said.items():
            self.insert(turn, text)

    def is_request(self, context: LLMContext) -> bool:
        """Whether a context frame asks for a reply; the one after `user_wrote` does not."""
        self.context = context
        asks, self._bookkeeping = not self._bookkeeping, False
        return asks

    def interrupted(self) -> None:
        """Frames on their way were dropped."""
        self._bookkeeping = False

    def _learn(self, key: tuple[str, str]) -> None:
        there = sum(_key(message) == key for message in self.messages)
        self._known[key] = min(self._known[key] + 1, there)  # `news` may have been quicker

    def _move(self, message: Any, turn: int) -> None:
        place, context = self._places.get(turn), self.context
        if place is None or context is None:
            return
        rest = [m for m in context.get_messages() if m is not message]
        index = 0
        if place.after is not None:
            index = next((i for i, m in enumerate(rest, 1) if m is place.after), len(rest))
        if index < len(rest) and _tells(rest[index], place.reply):
            index += 1
        context.set_messages([*rest[:index], message, *rest[index:]])
        for later, other in self._places.items():
            if later > turn and other.after is place.after:
                other.after = message
        place.after, place.reply = message, ""  # more of the turn follows it


def _key(message: Any) -> tuple[str, str]:
    role = _role(message)
    return (str(role), standard_message_text(message)) if role else ("", "")


def _tells(message: Any, reply: str) -> bool:
    """Whether it is what the assistant aggregator writes of a reply: its beginning, at least."""
    role, text = _key(message)
    told = "".join(text.split())
    return role == "assistant" and bool(told) and "".join(reply.split()).startswith(told)


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def _system_message(messages: list[Any]) -> Any:
    """The message that holds the context's instructions, if they begin with one."""
    return messages[0] if messages and _role(messages[0]) == "system" else None
