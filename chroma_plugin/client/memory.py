"""What was said in a remote conversation, to be told again when its connection was lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from chroma_plugin.conversation import Role
from chroma_plugin.reply import TextDelta, add_up

KEPT_SOUND_BYTES = 120 * 32_000
"""So much of what users said is kept as sound (two minutes); older turns go by their transcript."""


@dataclass(slots=True)
class Entry:
    """One message: text, sound of a turn (PCM16 at 16 kHz), or a reply piece by piece."""

    role: Role
    turn: int = 0
    text: str | None = None
    sound: bytes | None = None
    pieces: list[TextDelta] = field(default_factory=list)

    @property
    def words(self) -> str:
        """Its text, as far as it is known."""
        return self.text if self.text is not None else add_up(self.pieces)[0]


class Memory:
    """The messages of one conversation, in order."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def __iter__(self) -> Iterator[Entry]:
        """Those that can be told again."""
        return (e for e in self._entries if e.sound is not None or e.words)

    def add_text(self, role: Role, text: str) -> None:
        self._entries.append(Entry(role, text=text))

    def add_sound(self, turn: int, sound: bytes) -> None:
        """A user's turn; the oldest sounds give way."""
        self._entries.append(Entry("user", turn, sound=sound))
        left = KEPT_SOUND_BYTES
        for entry in reversed(self._entries):
            if entry.sound is not None:
                left -= len(entry.sound)
                if left < 0:
                    entry.sound = None

    def add_piece(self, turn: int, piece: TextDelta) -> None:
        """More of a reply."""
        entry = self._of("assistant", turn)
        if entry is None:
            entry = Entry("assistant", turn)
            self._entries.append(entry)
        entry.pieces.append(piece)

    def keep(self, turn: int, tokens: int) -> bool:
        """Cuts a reply to its first tokens; False if it had no more."""
        entry, total = self._of("assistant", turn), 0
        if entry is None:
            return False
        kept: list[TextDelta] = []
        for piece in entry.pieces:
            if total >= tokens:
                break
            kept.append(piece)
            total += piece.tokens
        cut = len(kept) < len(entry.pieces)
        entry.pieces = kept
        return cut

    def write_down(self, turn: int, text: str) -> None:
        """What was said in a turn is known."""
        entry = self._of("user", turn)
        if entry is not None:
            entry.text = text

    def _of(self, role: Role, turn: int) -> Entry | None:
        known = (e for e in reversed(self._entries) if e.role == role and e.turn == turn > 0)
        return next(known, None)
