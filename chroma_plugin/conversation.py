"""What an engine does for one session: `Conversation`, and the words it is spoken to in.

An engine implements it; `Session` decides what is asked and what of the answers counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from chroma_plugin.config import SamplingParams
from chroma_plugin.reply import Sink
from chroma_plugin.transcript import TextSink
from chroma_plugin.voice import Voice

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of a conversation's history.

    Attributes:
        role: who said it.
        text: what was said; None for a user's speech that nobody transcribed.
        audio_ms: how much audio belongs to it; 0 for typed text.
        turn: the turn it belongs to; 0 for what was there before the first turn.
    """

    role: Role
    text: str | None
    audio_ms: float = 0.0
    turn: int = 0


@dataclass(frozen=True, slots=True)
class ReplyRequest:
    """What an engine is asked to speak.

    Attributes:
        turn: the number of the turn; unique in its session, growing.
        voice: whose voice.
        sampling: how codes are drawn.
        say: text to speak word for word; None lets the model answer.
        instructions: added to the session's for this one reply.
        max_reply_s: the cap on its length; None leaves the engine's.
    """

    turn: int
    voice: Voice
    sampling: SamplingParams
    say: str | None = None
    instructions: str | None = None
    max_reply_s: float | None = None


class Conversation(Protocol):
    """An engine's side of one session. Calls return at once and take effect in order.

    A reply's events go to its sink, on the session's event loop: any number of `TextDelta` and
    `AudioChunk`, then one `TurnDone` or one `ChromaError`. After `cancel_reply` nothing more
    needs to come; what still comes is dropped by the session. So it is with a transcript: one
    text or one `ChromaError` goes to its sink, unless it is cancelled before.
    """

    def push_audio(self, samples: NDArray[np.float32]) -> None:
        """Hears more of the user's turn: float32 mono at 16 kHz, in [-1, 1]."""

    def clear_audio(self) -> None:
        """Forgets what was pushed since the last commit."""

    def commit_audio(self, turn: int) -> None:
        """Makes what was pushed the user's next message, and that of this turn."""

    def add_text(self, role: Role, text: str) -> None:
        """Appends a message of text."""

    def set_instructions(self, instructions: str) -> None:
        """Replaces the system prompt."""

    def start_reply(self, request: ReplyRequest, sink: Sink) -> None:
        """Speaks. The reply's text becomes the assistant's next message as it is made."""

    def cancel_reply(self, turn: int) -> None:
        """Stops a reply within one frame and frees its row."""

    def keep_reply(self, turn: int, tokens: int) -> None:
        """Cuts a reply's message to its first tokens; with 0 the message goes."""

    def transcribe(self, turn: int, sink: TextSink) -> None:
        """Writes down what the user said in a turn, when nobody who speaks needs the time."""

    def cancel_transcript(self, turn: int) -> None:
        """Withdraws that, if it is not done."""

    def close(self) -> None:
        """Ends the conversation and frees what it holds."""
