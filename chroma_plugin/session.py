"""One conversation as its user sees it: `Session`, and the `SpeechEngine` that opens it.

This is the seam of the package. Hosts (Pipecat, LiveKit, the server) translate their events to a
`Session` and back; an engine (in this process, remote or fake) does the work behind it by
implementing the few methods of `Conversation`. The session keeps the turn numbers, decides what
was heard, and guarantees what reaches a reader: nothing late, nothing twice, text beside the audio
in which it is spoken. It knows nothing of tensors, threads or hosts.

Everything here lives on one asyncio event loop; no method blocks.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from chroma_plugin.audio import INPUT_RATE_HZ, pcm_to_float
from chroma_plugin.config import DEFAULT_INSTRUCTIONS, SamplingParams
from chroma_plugin.conversation import Conversation, Message, ReplyRequest
from chroma_plugin.errors import AudioError, ConfigError, SessionClosed
from chroma_plugin.reply import ReplyStream, Sink, Turn, TurnDone, add_up, covered
from chroma_plugin.transcript import Transcripts
from chroma_plugin.voice import Voice

log = logging.getLogger(__name__)

MIN_TURN_MS = 100
"""A user turn shorter than this holds no word and is refused."""


class SpeechEngine(Protocol):
    """What hosts need of an engine: `Engine`, `RemoteEngine` and the tests' fake one have it."""

    async def start(self) -> None:
        """Makes the engine ready; calling it again is harmless."""

    async def open_session(
        self,
        *,
        voice: Voice | None = None,
        instructions: str = DEFAULT_INSTRUCTIONS,
        sampling: SamplingParams | None = None,
        history: Iterable[Message] = (),
        max_reply_s: float | None = None,
    ) -> Session:
        """Opens a conversation.

        Args:
            voice: whose voice replies are spoken in; the packaged one if None.
            instructions: the system prompt.
            sampling: how codes are drawn; the released defaults if None.
            history: a conversation to go on with; messages without text are skipped.
            max_reply_s: a cap on the length of this session's replies, below the engine's.

        Raises:
            EngineBusy: no room for another session before the deadline.
            EngineClosed: the engine was not started, or is closed.
            EngineFailed: the engine is dead.
        """

    async def close(self) -> None:
        """Ends every session and frees the engine; calling it again is harmless."""


class Session:
    """One conversation: push what the user says, commit the turn, read the reply.

    Opened by an engine's `open_session`. All methods belong to the event loop that opened it.

    Example:
        ::

            session = await engine.open_session(voice=voice)
            session.push_audio(pcm16k)
            async for event in session.commit_turn():
                if isinstance(event, AudioChunk):
                    play(event.pcm)

    At most one reply speaks at a time: asking for another one cancels the first.
    """

    def __init__(
        self,
        conversation: Conversation,
        *,
        voice: Voice,
        instructions: str,
        sampling: SamplingParams,
        history: Iterable[Message] = (),
        max_reply_s: float | None = None,
        max_turn_s: float = 60.0,
    ) -> None:
        if max_reply_s is not None and not _positive(max_reply_s):
            raise ConfigError(f"max_reply_s is {max_reply_s!r}; it must be seconds, more than 0.")
        _of_kinds(voice, sampling)
        self._conversation = conversation
        self.voice = voice
        self.instructions = instructions
        self.sampling = sampling
        self._max_reply_s = max_reply_s
        self._max_turn_samples = round(max_turn_s * INPUT_RATE_HZ)
        self._numbers = itertools.count(1)
        self._history: list[Message] = []
        self._reply: ReplyStream | None = None
        self._spoken_samples = 0  # of the turn that is not committed yet
        self._heard_samples = 0
        self._closed = False
        self._between: Callable[[Sink], Sink] | None = None
        self._transcripts = Transcripts(
            conversation.transcribe, conversation.cancel_transcript, self._write_down
        )
        _whole_text(instructions, "open_session")
        for message in history:
            _whole_text(message.text or "", "open_session")
            if message.text and message.role != "system":
                self._history.append(replace(message, turn=0))
                conversation.add_text(message.role, message.text)

    @property
    def history(self) -> tuple[Message, ...]:
        """What was said and heard so far; a reply appears when the engine has made it, the text of
        what the user said when it was transcribed."""
        return tuple(self._history)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def reply(self) -> ReplyStream | None:
        """The newest reply, ended or not."""
        return self._reply

    # -- what the user says ------------------------------------------------------------------

    def push_audio(self, pcm: bytes | NDArray[np.int16] | NDArray[np.float32]) -> None:
        """Hears a piece of the user's turn, of any length; it is understood while it comes in.

        Args:
            pcm: mono at 16 kHz: PCM16 bytes (little endian), int16, or float32 in [-1, 1].

        Raises:
            AudioError: half a sample, more than one channel, NaN or infinity. The piece is dropped,
                the turn goes on.
            SessionClosed: after `aclose`.
        """
        self._check_open()
        samples = pcm_to_float(pcm)
        if not samples.size:
            return
        heard = samples[: self._max_turn_samples - self._heard_samples]
        if heard.size < samples.size and self._spoken_samples == self._heard_samples:  # once
            log.warning(
                "turn longer than %g s: the rest is not heard",
                self._max_turn_samples / INPUT_RATE_HZ,
            )
        self._spoken_samples += samples.size
        self._heard_samples += heard.size
        if heard.size:
            self._conversation.push_audio(heard)

    def clear_audio(self) -> None:
        """Takes back what was pushed since the last commit."""
        self._check_open()
        self._spoken_samples = self._heard_samples = 0
        self._conversation.clear_audio()

    def add_user_text(self, text: str) -> None:
        """Adds what the user typed to the history; `respond` asks for a reply to it.

        Raises:
            ConfigError: the text is empty.
            SessionClosed: after `aclose`.
        """
        self._check_open()
        _some_text(text, "add_user_text")
        self.cancel()
        self._history.append(Message("user", text))
        self._conversation.add_text("user", text)

    def commit_audio(self) -> Turn:
        """Makes the pushed audio a message of the history without asking for a reply.

        Raises:
            AudioError: less than 100 ms was pushed; it is forgotten.
            SessionClosed: after `aclose`.
        """
        self._check_open()
        heard_ms = self._heard_samples * 1000 / INPUT_RATE_HZ
        unheard_ms = (self._spoken_samples - self._heard_samples) * 1000 / INPUT_RATE_HZ
        if heard_ms < MIN_TURN_MS:
            self.clear_audio()
            raise AudioError(
                f"The turn holds {heard_ms:.0f} ms of audio; at least {MIN_TURN_MS} ms are needed. "
                "Push 16 kHz audio with push_audio() first, or use respond() to let Chroma speak "
                "without a user turn."
            )
        self.cancel()
        turn = Turn(next(self._numbers), heard_ms, unheard_ms)
        self._spoken_samples = self._heard_samples = 0
        self._history.append(Message("user", None, audio_ms=heard_ms, turn=turn.number))
        self._conversation.commit_audio(turn.number)
        return turn

    async def transcribe(self, turn: Turn | int) -> str:
        """Writes down what the user said in a turn, with the model that heard it.

        The engine does it while no reply of any session needs its time, so an engine that cannot
        get ahead of its playbacks makes you wait; `asyncio.timeout` bounds that. The model goes on
        remembering the sound; the text becomes that of the history's message, so asking again
        costs nothing. Cancelling the wait withdraws the work.

        Args:
            turn: what `commit_audio` returned, a reply's `user_turn`, or the number of either.

        Returns:
            The text; "" if the model finds no word in it.

        Raises:
            AudioError: the engine has forgotten the turn, as it does with the oldest ones.
            ConfigError: the user said nothing in such a turn.
            EngineFailed: the engine is dead.
            SessionClosed: after `aclose`, or the session is closed meanwhile.
        """
        self._check_open()
        number = turn.number if isinstance(turn, Turn) else turn
        message = self._heard(number)
        if message is None:
            raise ConfigError(
                f"transcribe({turn!r}): in no such turn did the user say anything. Give what "
                "commit_audio() returned, or the user_turn of a reply to a spoken turn."
            )
        return await self._transcripts.of(number) if message.text is None else message.text

    # -- what is answered --------------------------------------------------------------------

    def commit_turn(self, *, instructions: str | None = None) -> ReplyStream:
        """Ends the user's turn and answers it.

        Args:
            instructions: added to the session's for this one reply.

        Returns:
            The reply, at once; its first audio follows when it is made.

        Raises:
            AudioError: less than 100 ms was pushed; it is forgotten and nothing is answered.
            SessionClosed: after `aclose`.
        """
        _whole_text(instructions or "", "commit_turn")
        return self._speak(self.commit_audio(), instructions=instructions)

    def respond(self, *, instructions: str | None = None) -> ReplyStream:
        """Speaks on the history as it stands: a greeting, or the answer to typed text."""
        self._check_open()
        _whole_text(instructions or "", "respond")
        self.cancel()
        return self._speak(Turn(next(self._numbers)), instructions=instructions)

    def say(self, text: str) -> ReplyStream:
        """Speaks the given text word for word in the voice; it becomes part of the history.

        A model may stop before the end of it, a small one often does: the reply then ends with
        `EndReason.UNFINISHED`, and its text, here and in the history, is what was said.

        Raises:
            ConfigError: the text is empty.
            SessionClosed: after `aclose`.
        """
        self._check_open()
        _some_text(text, "say")
        self.cancel()
        return self._speak(Turn(next(self._numbers)), say=text)

    def before_reader(self, between: Callable[[Sink], Sink]) -> None:
        """Puts something between the engine and the readers of all replies from now on.

        Args:
            between: called for each reply with where its events go; gives where the engine is to
                send them. It may change the sound of a chunk, not its length.
        """
        self._between = between

    def _speak(
        self, turn: Turn, *, say: str | None = None, instructions: str | None = None
    ) -> ReplyStream:
        stream = self._reply = ReplyStream(turn, self._settle)
        request = ReplyRequest(
            turn.number, self.voice, self.sampling, say, instructions, self._max_reply_s
        )
        sink = stream.put if self._between is None else self._between(stream.put)
        self._conversation.start_reply(request, sink)
        return stream

    def cancel(self) -> None:
        """Stops the reply, if one speaks; idempotent.

        Its stream ends with `TurnDone`; what was not handed out leaves the history. Use `truncate`
        afterwards if less than that was heard.
        """
        if self._reply is None or not self._reply.cancel():
            return
        self._conversation.cancel_reply(self._reply.turn)
        self._keep(self._reply, self._reply.delivered_ms)

    def truncate(self, heard_ms: float, *, text: str | None = None) -> None:
        """Cuts the newest reply in the history to what was heard of it.

        Args:
            heard_ms: how much of its audio was played; 0 removes the reply.
            text: what was heard, if the host knows it better; then `heard_ms` only says how much
                audio. It should be a beginning of the reply's text.

        Raises:
            ConfigError: `heard_ms` is negative or no number.
            SessionClosed: after `aclose`.
        """
        self._check_open()
        if not heard_ms >= 0:
            raise ConfigError(f"truncate(heard_ms={heard_ms!r}): give milliseconds, 0 or more.")
        if self._reply is None:
            return
        self.cancel()
        if heard_ms >= self._reply.delivered_ms and text is None:
            return
        self._keep(self._reply, heard_ms, text)

    def update(
        self,
        *,
        instructions: str | None = None,
        voice: Voice | None = None,
        sampling: SamplingParams | None = None,
    ) -> None:
        """Changes settings from the next reply on; what is None stays as it is.

        Raises:
            ConfigError: a setting is of the wrong kind; none is changed.
            SessionClosed: after `aclose`.
        """
        self._check_open()
        _of_kinds(voice, sampling)
        if instructions is not None and instructions != self.instructions:
            _whole_text(instructions, "update")
            self.instructions = instructions
            self._conversation.set_instructions(instructions)
        self.voice = voice or self.voice
        self.sampling = sampling or self.sampling

    async def aclose(self) -> None:
        """Ends the conversation and frees what the engine holds of it; idempotent."""
        if not self._closed:
            self.cancel()
            self._closed = True
            self._conversation.close()
            self._transcripts.close(SessionClosed("The session was closed before the transcript."))

    # -- history -----------------------------------------------------------------------------

    def _settle(self, stream: ReplyStream, done: TurnDone) -> None:
        """The engine has made a reply, or failed at it: write down what was spoken of it."""
        if stream is not self._reply:
            return
        if not done.whole:
            self._conversation.keep_reply(stream.turn, done.tokens)
        message = Message("assistant", done.text, done.audio_ms, stream.turn)
        self._replace_reply(stream.turn, message if done.text else None)

    def _keep(self, stream: ReplyStream, heard_ms: float, text: str | None = None) -> None:
        texts = stream.texts_before(heard_ms if text is None else float("inf"))
        if text is not None:
            texts = covered(texts, text)
        heard, tokens = add_up(texts)
        self._conversation.keep_reply(stream.turn, tokens)
        stream.keep(texts, heard_ms)
        kept = Message("assistant", heard, stream.delivered_ms, stream.turn)
        self._replace_reply(stream.turn, kept if heard else None)

    def _heard(self, turn: int) -> Message | None:
        """The user's spoken message of a turn."""
        heard = (m for m in self._history if m.role == "user" and m.turn == turn > 0)
        return next(heard, None)

    def _write_down(self, turn: int, text: str) -> None:
        message = self._heard(turn)
        if message is not None:
            self._history[self._history.index(message)] = replace(message, text=text)

    def _replace_reply(self, turn: int, message: Message | None) -> None:
        for i, old in enumerate(self._history):
            if old.role == "assistant" and old.turn == turn:
                self._history[i : i + 1] = [message] if message else []
                return
        if message:
            self._history.append(message)

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosed("This session was closed; open a new one with open_session().")


def _positive(seconds: float) -> bool:
    return isinstance(seconds, int | float) and 0 < seconds < float("inf")


def _of_kinds(voice: Voice | None, sampling: SamplingParams | None) -> None:
    if not isinstance(voice, Voice | None):
        raise ConfigError(f"voice is of type {type(voice).__name__}; use Voice.from_file(...).")
    if not isinstance(sampling, SamplingParams | None):
        raise ConfigError(
            f"sampling is of type {type(sampling).__name__}; use SamplingParams(...)."
        )


def _some_text(text: str, caller: str) -> None:
    if not text.strip():
        raise ConfigError(f"{caller}() was given no text; pass at least one word.")
    _whole_text(text, caller)


def _whole_text(text: str, caller: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{caller}() was given text with half a character at {error.start} (a lone surrogate); "
            "decode it with errors='replace'."
        ) from None
