"""One conversation on the engine's thread: its dialogue, what it is hearing, and the reply it
speaks.

A call changes its own log and tells nobody; the worker decides when its tensors are computed.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from chroma_plugin.audio import Samples
from chroma_plugin.engine.dialogue import Dialogue, Entry
from chroma_plugin.engine.utterance import Utterance
from chroma_plugin.errors import ChromaError
from chroma_plugin.model.listener import Listener
from chroma_plugin.model.prompt import PromptFormat


class Call:
    """A conversation.

    Args:
        prompt: how messages are spelt.
        embed: token ids to embeddings.
        new_listener: makes the listener of a user turn.
        alive: whether there still is somebody to hear it.
    """

    def __init__(
        self,
        prompt: PromptFormat,
        embed: Callable[[list[int]], Tensor],
        new_listener: Callable[[], Listener],
        alive: Callable[[], bool] = lambda: True,
    ) -> None:
        self.prompt, self.alive = prompt, alive
        self.dialogue = Dialogue(embed)
        self.thinker_row: int | None = None  # lent by `Seats`
        self.reply: Utterance | None = None
        self.broken: ChromaError | None = None  # why it cannot go on
        self._new_listener = new_listener
        self._listener: Listener | None = None
        self._hearing: Entry | None = None  # the unfinished turn's place in the dialogue
        self._next_system: list[int] | None = None  # waits for the reply to end

    @property
    def engaged(self) -> bool:
        """Somebody speaks to it, or it speaks or is about to."""
        return self.reply is not None or self._listener is not None

    def set_system(self, text: str) -> None:
        """Replaces the system prompt; a reply in the making keeps the one that it began with."""
        ids = self.prompt.system(text)
        if self.reply is None:
            self.dialogue.set_system(ids)
        else:
            self._next_system = ids

    # -- the user ----------------------------------------------------------------------------

    def hear(self, samples: Samples) -> None:
        """Takes audio of the user's turn."""
        if self._listener is None:
            self._listener = self._new_listener()
        self._listener.push(samples)

    def listen(self) -> None:
        """Embeds what can be embedded, unless a reply is using the dialogue's end."""
        if self._listener is not None and self.reply is None:
            self._place(self._listener, self._listener.update())

    def unhear(self) -> None:
        """Forgets the turn that is not committed."""
        self._listener = None
        self._displace()

    def commit(self, turn: int) -> None:
        """Makes what was heard a message, and that of this turn."""
        if self._listener is None:
            return
        entry = self._place(self._listener, self._listener.update(final=True))
        if entry is not None:
            entry.kind, entry.turn = "user", turn
            entry.after = list(self.prompt.audio_after)
        self._listener = self._hearing = None

    def _place(self, listener: Listener, changed: int) -> Entry | None:
        if not listener.positions:
            return None
        if self._hearing is None:
            opening = Entry("listening", before=list(self.prompt.audio_before))
            self._hearing = self.dialogue.append(opening)
            changed = 0
        if changed < listener.positions:
            self.dialogue.changed(self._hearing, len(self._hearing.before) + changed)
            self._hearing.audio = listener.embeds
        return self._hearing

    def _displace(self) -> None:
        if self._hearing is not None:
            self.dialogue.remove(self._hearing)
            self._hearing = None

    def add_text(self, role: str, text: str) -> None:
        """Appends a message of text; a turn that is being spoken comes after it."""
        self._displace()
        if role == "user":
            self.dialogue.append(Entry("user", before=self.prompt.user(text)))
        else:
            ids = self.prompt.encode(text)
            before, after = list(self.prompt.reply_open), list(self.prompt.reply_close)
            self.dialogue.append(Entry("assistant", before=before, tokens=ids, after=after))

    # -- the reply ---------------------------------------------------------------------------

    def open_reply(self, turn: int, instructions: str | None) -> tuple[Entry, Entry | None]:
        """Appends a reply's message, and before it the instruction for it alone."""
        self._displace()
        aside = None
        if instructions:
            aside = self.dialogue.append(Entry("aside", before=self.prompt.system(instructions)))
        entry = Entry("assistant", turn, before=list(self.prompt.reply_open))
        return self.dialogue.append(entry), aside

    def end_reply(self) -> None:
        """Closes the reply's message; an empty one goes."""
        reply, self.reply = self.reply, None
        if reply is None:
            return
        self.dialogue.close(reply.entry, list(self.prompt.reply_close))
        if not reply.entry.tokens:
            self.dialogue.remove(reply.entry)
        if reply.aside is not None:
            self.dialogue.remove(reply.aside)
        if self._next_system is not None:
            self.dialogue.set_system(self._next_system)
            self._next_system = None

    def keep_reply(self, turn: int, tokens: int) -> None:
        """Cuts a reply's message to what was heard."""
        entry = self.dialogue.find(turn)
        if entry is not None:
            self.dialogue.keep_tokens(entry, tokens)
