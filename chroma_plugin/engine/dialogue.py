"""A conversation as the thinker reads it: a log of entries, and how much of it the cache holds.

The log is the truth and the cache follows: whatever changes an entry only lowers `cached`, and
the next prefill goes on from there. So a new system prompt, a reply cut to what was heard, a
forgotten turn or an evicted cache are one mechanism. Knows nothing of rows, threads or audio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["system", "user", "listening", "assistant", "aside"]
"""`listening` is a user turn that is still being spoken, `aside` an instruction for one reply."""


@dataclass(slots=True)
class Entry:
    """One message.

    Attributes:
        kind: whose.
        turn: the reply's number, for the assistant's; its turn's, for what the user said aloud.
        before: token ids that open it, or all of it.
        audio: embeddings of what was said, `[positions, hidden]`.
        tokens: what the assistant says.
        after: token ids that close it.
    """

    kind: Kind
    turn: int = 0
    before: list[int] = field(default_factory=list)
    audio: Tensor | None = None
    tokens: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)

    @property
    def positions(self) -> int:
        audio = 0 if self.audio is None else len(self.audio)
        return len(self.before) + audio + len(self.tokens) + len(self.after)


@dataclass(slots=True)
class Dialogue:
    """The log of one conversation.

    Args:
        embed: token ids to embeddings `[n, hidden]`.

    Attributes:
        entries: the messages, the system prompt first.
        cached: positions from the start that the thinker's cache holds as the log says.
    """

    embed: Callable[[list[int]], Tensor]
    entries: list[Entry] = field(default_factory=list)
    cached: int = 0

    @property
    def positions(self) -> int:
        return sum(e.positions for e in self.entries)

    def start_of(self, entry: Entry) -> int:
        """The position of an entry's first token."""
        total = 0
        for other in self.entries:
            if other is entry:
                return total
            total += other.positions
        raise ValueError("the entry is not of this dialogue")

    def find(self, turn: int) -> Entry | None:
        """The assistant's entry of a turn."""
        found = (e for e in self.entries if e.kind == "assistant" and e.turn == turn)
        return next(found, None)

    def heard(self, turn: int) -> Entry | None:
        """What the user said aloud in a turn."""
        found = (e for e in self.entries if e.kind == "user" and e.turn == turn > 0)
        return next(found, None)

    def changed(self, entry: Entry, at: int = 0) -> None:
        """Says that an entry differs from the cache from its position `at` on."""
        self.cached = min(self.cached, self.start_of(entry) + at)

    def append(self, entry: Entry) -> Entry:
        self.entries.append(entry)
        return entry

    def remove(self, entry: Entry) -> None:
        self.changed(entry)
        self.entries = [e for e in self.entries if e is not entry]

    def set_system(self, ids: list[int]) -> None:
        """Replaces the system prompt."""
        if not self.entries:
            self.append(Entry("system"))
        self.entries[0].before = ids
        self.cached = 0

    def close(self, entry: Entry, after: list[int]) -> None:
        """Ends the assistant's message."""
        self.changed(entry, entry.positions - len(entry.after))
        entry.after = list(after)

    def keep_tokens(self, entry: Entry, count: int) -> None:
        """Cuts the assistant's message to its first tokens; with 0 it goes."""
        if count <= 0:
            self.remove(entry)
        elif count < len(entry.tokens):
            self.changed(entry, len(entry.before) + count)
            entry.tokens = entry.tokens[:count]

    def forget_beyond(self, limit: int) -> bool:
        """Drops the oldest messages until the log fits; False if it cannot, and then none goes.

        What goes begins after the system prompt and ends before a user's message, so that the rest
        starts with one. The last user's message stays; of the replies after it the oldest go, but
        never what comes last.
        """
        kept = list(self.entries)
        while sum(e.positions for e in kept) > limit:
            asked = [i for i, e in enumerate(kept) if e.kind in ("user", "listening") and i > 1]
            said = [i for i, e in enumerate(kept[:-1]) if e.kind == "assistant"]
            if asked:
                del kept[1 : asked[0]]
            elif said:
                del kept[said[0]]
            else:
                return False
        if len(kept) < len(self.entries):
            pairs = zip(self.entries, kept, strict=False)
            self.changed(next(old for old, new in pairs if old is not new))
            self.entries = kept
        return True

    def pending(self, most: int) -> Tensor:
        """Embeddings of the next positions that the cache lacks, at most so many, `[n, hidden]`."""
        pieces: list[Tensor] = []
        skip, wanted = self.cached, most
        for entry in self.entries:
            for part in (entry.before, entry.audio, entry.tokens, entry.after):
                if part is None or wanted <= 0:
                    continue
                if skip >= len(part):
                    skip -= len(part)
                    continue
                piece = part[skip : skip + wanted]
                skip = 0
                wanted -= len(piece)
                pieces.append(piece if isinstance(piece, Tensor) else self.embed(piece))
        return torch.cat(pieces)
