"""The items of a conversation and the session that speaks in it, kept in step.

A client may change its conversation anywhere and at any time; a `Session` grows at its end and
holds one reply at a time. What the session can follow, it follows at once, so that speech is
understood while it comes in. The rest waits until the reply has ended, and what no session can
follow (a message put between others, or taken out) makes it stale: before the next reply it is
closed and another one opened with the items as its history. Speech that was not written down is
transcribed before that; its sound is lost then, its words stay.

Knows no event and no socket.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import numpy as np

from chroma_plugin.audio import INPUT_RATE_HZ, Samples
from chroma_plugin.conversation import Message
from chroma_plugin.errors import ChromaError
from chroma_plugin.reply import ReplyStream, add_up
from chroma_plugin.server.items import Item, Items
from chroma_plugin.server.protocol import ProtocolError
from chroma_plugin.session import MIN_TURN_MS, Session

log = logging.getLogger(__name__)

TRANSCRIPT_LIMIT_S = 30.0
"""Speech that takes longer to be written down is given up when a session is opened again."""

OpenSession = Callable[[list[Message]], Awaitable[Session]]


class Dialogue:
    """One conversation: its items, and the session behind them.

    Args:
        open_session: opens one with a history.
        session: the first one, without a history.
        max_turn_s: what is kept of one turn, at most.
    """

    def __init__(self, open_session: OpenSession, session: Session, max_turn_s: float) -> None:
        self.items = Items()
        self.session = session
        self._open = open_session
        self._limit = round(max_turn_s * INPUT_RATE_HZ)
        self._waiting: list[Item] = []  # that the session has not been told
        self._stale = False
        self._heard: list[Samples] = []  # of the turn that is not committed
        self._heard_samples = self._told_samples = 0

    # -- what the user says ------------------------------------------------------------------

    @property
    def heard_ms(self) -> float:
        """How much of a turn was heard that is not committed."""
        return self._heard_samples * 1000 / INPUT_RATE_HZ

    def hear(self, samples: Samples) -> None:
        """More of the user's turn; what is beyond the longest turn is dropped."""
        samples = samples[: max(self._limit - self._heard_samples, 0)]
        if len(samples):
            self._heard.append(samples)
            self._heard_samples += len(samples)
            self._tell_sound()

    def forget(self) -> None:
        """Takes back what was heard since the last commit."""
        if self._told_samples:
            self.session.clear_audio()
        self._heard.clear()
        self._heard_samples = self._told_samples = 0

    def forget_all_but(self, seconds: float) -> None:
        """Takes back what was heard since the last commit, but for the last of it."""
        kept = np.concatenate([np.zeros(0, np.float32), *self._heard])
        self.forget()
        self.hear(kept[-round(seconds * INPUT_RATE_HZ) :])

    def commit(self, item: Item) -> str | None:
        """Makes what was heard a message.

        Returns:
            The id of the message before it, or None.

        Raises:
            ProtocolError: there is too little of it; it is forgotten.
        """
        if self.heard_ms < MIN_TURN_MS:
            heard_ms = self.heard_ms
            self.forget()
            raise ProtocolError(
                "input_audio_buffer_commit_empty",
                f"The input audio buffer holds {heard_ms:.0f} ms of audio; at least "
                f"{MIN_TURN_MS} ms are needed. Append some first.",
            )
        item.hear(np.concatenate(self._heard))
        previous = self.items.add(item)
        told = self._told_samples == self._heard_samples and self._in_step and not self.speaking
        self._heard.clear()
        self._heard_samples = 0
        if told:
            item.turn, item.samples = self.session.commit_audio().number, None
        else:
            if self._told_samples:
                self.session.clear_audio()
            self._waiting.append(item)
        self._told_samples = 0
        return previous

    # -- items -------------------------------------------------------------------------------

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Puts a message that the client made into the conversation; see `Items.add`."""
        previous = self.items.add(item, after)
        if not self.items.is_last(item):
            self._stale = True
        self._waiting.append(item)
        self.follow()
        return previous

    def delete(self, item_id: str) -> Item:
        """Takes a message out.

        Raises:
            ProtocolError: there is none of that id.
        """
        item = self.items.get(item_id, code="item_delete_invalid_item_id")
        if item in self._waiting:
            self._waiting.remove(item)
        elif self._is_newest_reply(item):
            self.session.truncate(0.0)
        elif item.role != "system":
            self._stale = True
        self.items.remove(item)
        return item

    def truncate(self, item: Item, heard_ms: float) -> None:
        """Leaves of a reply what was heard."""
        if heard_ms >= item.audio_ms and item.status != "in_progress":
            return
        if self._is_newest_reply(item):
            self.session.truncate(heard_ms)
        elif item.turn or item not in self._waiting:
            self._stale = True
        item.cut(heard_ms)

    def keep(self, item: Item, tokens: int) -> None:
        """Leaves of a reply the text of its first tokens."""
        kept, total = [], 0
        for piece in item.pieces:
            if total >= tokens:
                break
            kept.append(piece)
            total += piece.tokens
        whole = len(kept) == len(item.pieces)
        item.pieces = kept
        item.text, _ = add_up(kept)
        if whole and item.status != "in_progress":
            return  # the session has cut it there itself, and knows tokens without text, too
        if not self._is_newest_reply(item):
            self._stale = True
        elif kept:
            heard_ms = self.session.reply.delivered_ms if self.session.reply else 0.0
            self.session.truncate(heard_ms, text=item.text)
        else:
            self.session.truncate(0.0)

    def _is_newest_reply(self, item: Item) -> bool:
        reply = self.session.reply
        return (
            bool(item.turn)
            and item.role == "assistant"
            and reply is not None
            and (reply.turn == item.turn)
        )

    # -- the session -------------------------------------------------------------------------

    @property
    def speaking(self) -> bool:
        """A reply is on its way to the client."""
        reply = self.session.reply
        return reply is not None and not reply.ended

    @property
    def _in_step(self) -> bool:
        return not (self._waiting or self._stale)

    def replace_session(self) -> None:
        """Has another session opened before the next reply."""
        self._stale = True

    def follow(self) -> None:
        """Tells the session what waited, as far as it can be told now."""
        while self._waiting and not self._stale and not self.speaking:
            item = self._waiting[0]
            if item.samples is not None:
                if self._told_samples:
                    self.session.clear_audio()
                    self._told_samples = 0
                self.session.push_audio(item.samples)
                item.turn, item.samples = self.session.commit_audio().number, None
            elif item.role == "assistant":
                self._stale = True
                return
            elif item.role == "user" and item.text:
                self.session.add_user_text(item.text)
            del self._waiting[0]
        self._tell_sound()

    def _tell_sound(self) -> None:
        """What of the turn was heard and not told goes to the session, if it is in step."""
        if not self._in_step or self._told_samples == self._heard_samples:
            return
        new = self._heard_samples - self._told_samples
        last = self._heard[-1]  # the usual case: all but the last piece was told
        self.session.push_audio(last if len(last) == new else np.concatenate(self._heard)[-new:])
        self._told_samples = self._heard_samples

    async def ready(self) -> None:
        """Brings the session up to the items; to be called before it is asked for a reply.

        Raises:
            ChromaError: another session was needed and could not be opened.
        """
        self.follow()
        while self._stale:
            await self._reopen()
            self.follow()

    async def _reopen(self) -> None:
        end_s = asyncio.get_running_loop().time() + TRANSCRIPT_LIMIT_S  # of all of them together
        for item in [i for i in self.items if i.turn and i.role == "user" and i.text is None]:
            try:
                async with asyncio.timeout_at(end_s):
                    item.text = await self.session.transcribe(item.turn)
            except (ChromaError, TimeoutError) as error:
                log.warning("item %s is left out: no transcript (%s)", item.id, error)
                item.text = ""
        known, later = [], False
        waiting = []
        for item in self.items:
            later = later or item.samples is not None
            if later:
                waiting.append(item)
            elif item.role != "system":
                known.append(item)
        messages = [m for m in (item.message for item in known) if m is not None]
        await self.session.aclose()
        self._told_samples = 0  # now, should no other one be opened
        self.session = await self._open(messages)
        for item in known:
            item.turn = 0
        self._waiting, self._stale, self._told_samples = waiting, False, 0

    async def transcribe(self, item: Item) -> str:
        """What the user said in a message, written down by the engine.

        Raises:
            ChromaError: nobody can tell any more.
        """
        if item.text is None and item.turn:
            item.text = await self.session.transcribe(item.turn)
        return item.text or ""

    def respond(
        self, *, instructions: str, added: str | None, say: str | None = None
    ) -> ReplyStream:
        """Asks for a reply to the conversation as it stands; call `ready` before.

        Args:
            instructions: the system prompt of this reply; the items of the system are added.
            added: more instructions, that do not change the system prompt.
            say: text to speak word for word instead.
        """
        system = [item.text for item in self.items if item.role == "system" and item.text]
        self.session.update(instructions="\n\n".join([instructions, *system]))
        return self.session.say(say) if say else self.session.respond(instructions=added)

    async def aclose(self) -> None:
        """Ends the conversation."""
        await self.session.aclose()
