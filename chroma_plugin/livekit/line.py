"""The record of a conversation and the session that speaks in it, kept in step.

The framework may change its context anywhere; a `Session` grows at its end and holds one reply at
a time. What the session can follow it is told at once, so that speech is understood while it comes
in. What would disturb the reply that speaks waits until it is over. And what no session can follow
(a message put between others, or taken out) has another session opened, with the record as its
history. The sound of a turn is then lost, so it is written down before; its words stay.

Knows no event and no stream of the framework.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

import numpy as np

from chroma_plugin.audio import INPUT_RATE_HZ, Samples
from chroma_plugin.conversation import Message
from chroma_plugin.errors import ChromaError, SessionClosed
from chroma_plugin.livekit.record import Item, Record
from chroma_plugin.reply import ReplyStream
from chroma_plugin.session import MIN_TURN_MS, Session

log = logging.getLogger(__name__)

TRANSCRIPT_LIMIT_S = 5.0
"""Speech that takes longer to be written down is forgotten when another session is opened."""
MAX_TURN_S, KEPT_TURN_S = 60.0, 30.0
"""Of a turn that gets longer than a minute, the last half is kept: who spoke then is who waits."""

OpenSession = Callable[[list[Message], str], Awaitable[Session]]


class Line:
    """One conversation.

    Args:
        open_session: opens a session with a history and a system prompt.
        instructions: tells the agent's; messages of the system are added to it.
        on_turn: is told of each turn of the user's that a session knows.

    Attributes:
        record: the items.
        session: the session; None before the first, and after one was lost.
    """

    def __init__(
        self,
        open_session: OpenSession,
        instructions: Callable[[], str],
        on_turn: Callable[[Item], None],
    ) -> None:
        self.record = Record()
        self.session: Session | None = None
        self._open_session, self._instructions, self._on_turn = open_session, instructions, on_turn
        self._known: list[Item] = []  # what the session was told, in this order
        self._stale = False
        self._opening: asyncio.Task[None] | None = None
        self._heard: list[Samples] = []  # of the turn that is not committed
        self._heard_samples = self._told_samples = 0
        self._half_told: Item | None = None  # the session has its sound, but not its end
        self._live: ReplyStream | None = None  # the reply that speaks

    # -- what the user says ------------------------------------------------------------------

    @property
    def heard_s(self) -> float:
        """How much was heard of the turn that is not committed."""
        return self._heard_samples / INPUT_RATE_HZ

    def hear(self, samples: Samples) -> None:
        """More of the user's turn, float32 at 16 kHz."""
        if not len(samples):
            return
        self._heard.append(samples)
        self._heard_samples += len(samples)
        if self.heard_s > MAX_TURN_S:
            log.debug("a turn got longer than %g s: its beginning is forgotten", MAX_TURN_S)
            kept = np.concatenate(self._heard)[-round(KEPT_TURN_S * INPUT_RATE_HZ) :]
            self.forget()
            self._heard, self._heard_samples = [kept], len(kept)
        self._tell_sound()

    def forget(self) -> None:
        """Takes back what was heard since the last commit."""
        self._take_sound_back()
        self._heard, self._heard_samples = [], 0

    def commit(self, item: Item) -> bool:
        """Makes what was heard the item's sound, and the item the last one.

        Returns:
            False if there is too little of it; it is forgotten.
        """
        if self.heard_s * 1000 < MIN_TURN_MS:
            self.forget()
            return False
        for old in self._known:
            old.sound = None  # a session has it; the newest turn is kept, should that be lost
        item.sound = np.concatenate(self._heard)
        item.audio_ms = self.heard_s * 1000
        if self._told_samples == self._heard_samples:
            self._half_told = item
        else:
            self._take_sound_back()
        self._heard, self._heard_samples, self._told_samples = [], 0, 0
        self.record.add(item)
        self.follow()
        return True

    # -- items -------------------------------------------------------------------------------

    def add_reply(self, item: Item) -> None:
        """The session's newest reply becomes an item, the last one."""
        if self._known == self.record.items:
            self._known.append(item)
        else:  # the record was changed while the reply was asked for
            self._stale = True
        self.record.add(item)

    def changed(self, gone: list[Item], rewritten: list[Item]) -> None:
        """Says how the record has changed, after `Record.update`."""
        for item in gone:
            if item is self._half_told:
                self._half_told = None
                self._told_samples = 1  # so that it is taken back
                self._take_sound_back()
            if self._is_newest_reply(item):
                self._cut(0.0)
                self._known.remove(item)
            elif item in self._known and not item.turn and item.message is None:
                self._known.remove(item)  # the session knows nothing of it
        for item in rewritten:
            if self._is_newest_reply(item):
                self._cut(float("inf"), item.text)
            elif item in self._known and item.role != "system":
                self._stale = True
        if self._known != self.record.items[: len(self._known)]:
            self._stale = True
        self.instruct()
        self.follow()

    def truncate(self, item: Item, heard_ms: float, text: str | None) -> None:
        """Leaves of a reply what was heard of it."""
        item.cut = False
        if self._is_newest_reply(item):
            self._cut(heard_ms, text if heard_ms > 0 else None)
            kept = self.spoken(item)
            item.write((text or kept) if kept else "")
            if not kept:
                self._known.remove(item)
                self.record.items.remove(item)
        else:
            self._stale = True
            item.write((text or "") if heard_ms > 0 else "")

    def spoken(self, item: Item) -> str:
        """What the session remembers of a reply."""
        history = self.session.history if self.session is not None else ()
        said = (m for m in history if m.role == "assistant" and m.turn == item.turn > 0)
        message = next(said, None)
        return (message.text or "") if message is not None else ""

    def _is_newest_reply(self, item: Item) -> bool:
        reply = self.session.reply if self.session is not None else None
        return (
            item.role == "assistant"
            and reply is not None
            and item.turn == reply.turn
            and item in self._known
        )

    def _cut(self, heard_ms: float, text: str | None = None) -> None:
        if self.session is not None:
            with suppress(SessionClosed):
                self.session.truncate(heard_ms)
                if text is not None:  # of what the playhead leaves, no more than these words
                    self.session.truncate(heard_ms, text=text)

    # -- the session -------------------------------------------------------------------------

    @property
    def speaking(self) -> bool:
        """A reply is on its way to the framework."""
        return self._live is not None and not self._live.ended

    def cancel(self) -> None:
        """Stops the reply; what it would have disturbed is told before the next one, so that what
        was heard of it can be settled first."""
        self._live = None
        if self.session is not None:
            self.session.cancel()

    @property
    def in_step(self) -> bool:
        """The session knows the record, and nothing else."""
        return self._usable and len(self._known) == len(self.record)

    @property
    def _usable(self) -> bool:
        return self.session is not None and not self.session.closed and not self._stale

    def follow(self) -> None:
        """Tells the session what is new, as far as it can be told now."""
        session = self.session
        if session is None or not self._usable or self.speaking:
            return
        try:
            while len(self._known) < len(self.record):
                item = self.record.items[len(self._known)]
                if item.sound is not None and not item.text:
                    self._tell_turn(session, item)
                elif item.role == "assistant" and item.text:
                    self._stale = True  # no session takes words for its own
                    return
                elif item.role == "user" and item.text.strip():
                    session.add_user_text(item.text)
                self._known.append(item)
        except SessionClosed:
            return
        self._tell_sound()

    def _tell_turn(self, session: Session, item: Item) -> None:
        if item is not self._half_told and item.sound is not None:
            self._take_sound_back()
            session.push_audio(item.sound)
        self._half_told = None
        item.turn = session.commit_audio().number
        self._on_turn(item)

    def _tell_sound(self) -> None:
        """What of the turn was heard and not told goes to the session, if it is in step."""
        new = self._heard_samples - self._told_samples
        if not new or not self.in_step or self.session is None:
            return
        last = self._heard[-1]  # the usual case: all but the last piece was told
        with suppress(SessionClosed):
            self.session.push_audio(
                last if len(last) == new else np.concatenate(self._heard)[-new:]
            )
        self._told_samples = self._heard_samples

    def _take_sound_back(self) -> None:
        if self._told_samples and self.session is not None:
            with suppress(SessionClosed):
                self.session.clear_audio()
        self._told_samples = 0

    def lose(self) -> None:
        """The session is of no use any more."""
        self._stale = True

    async def ready(self) -> Session:
        """Brings a session up to the record, and gives it.

        Raises:
            ChromaError: another one was needed and could not be opened.
        """
        while True:
            self.follow()
            if self.session is not None and (self.in_step or (self.speaking and self._usable)):
                return self.session
            if self._opening is None:
                self._opening = asyncio.get_running_loop().create_task(self._reopen())
                self._opening.add_done_callback(self._opened)
            await asyncio.shield(self._opening)  # others may wait for it, too

    def _opened(self, opening: asyncio.Task[None]) -> None:
        self._opening = None
        if not opening.cancelled():
            opening.exception()  # whoever waited has been told

    async def _reopen(self) -> None:
        old = self.session
        if old is not None and not old.closed:
            await self._write_down(old)
        self._stale = False
        known = self._in_words()
        if old is not None:
            self.session = None
            await old.aclose()
        self._half_told, self._told_samples = None, 0
        history = [message for item in known if (message := item.message) is not None]
        session = await self._open_session(history, self.instructions)
        for item in self.record:
            item.turn = 0
        self.session, self._known = session, known
        if known != self.record.items[: len(known)]:  # it was changed meanwhile
            self._stale = True

    def _in_words(self) -> list[Item]:
        """The items that another session is told as its history; the rest it hears as sound."""
        items = self.record.items
        said = [i for i, item in enumerate(items) if item.role == "assistant" and item.text]
        rest = said[-1] + 1 if said else 0
        sounds = [i for i in range(rest, len(items)) if items[i].sound is not None]
        return items[: sounds[0]] if sounds else list(items)

    async def _write_down(self, session: Session) -> None:
        """Has the turns written down of which the sound will be lost."""
        unwritten = [i for i in self._in_words() if i.role == "user" and i.turn and not i.text]
        try:
            async with asyncio.timeout(TRANSCRIPT_LIMIT_S):
                for item in unwritten:
                    item.write(await session.transcribe(item.turn))
        except (ChromaError, TimeoutError) as error:
            log.warning("turns of the user's are forgotten: no transcript (%r)", error)

    @property
    def instructions(self) -> str:
        """The system prompt, with what messages of the system say."""
        parts = [self._instructions(), self.record.instructions]
        return "\n\n".join(part for part in parts if part)

    def instruct(self) -> None:
        """Tells the session its system prompt, before it reads what the user says."""
        if self.session is not None:
            with suppress(SessionClosed):
                self.session.update(instructions=self.instructions)

    async def ask(self, *, added: str | None = None, say: str | None = None) -> ReplyStream:
        """Asks for a reply to the conversation as it stands.

        Args:
            added: more instructions for this one reply.
            say: text to speak word for word instead.

        Raises:
            ChromaError: no session could be opened.
        """
        session = await self.ready()
        self.instruct()
        self._live = session.say(say) if say is not None else session.respond(instructions=added)
        return self._live

    async def aclose(self) -> None:
        """Ends the conversation."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        session, self.session = self.session, None
        if session is not None:
            await session.aclose()
