"""What users said, written down by the thinker that heard it, on the engine's thread.

A turn's embeddings lie in its dialogue; under a system prompt that asks for them in words, the same
weights transcribe. The work is cut into pieces, and the scheduler says when there is time for one.
A row of the thinker's cache is kept for it, so no conversation gives one up. One transcript at a
time, first come, first served.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from chroma_plugin.engine.call import Call
from chroma_plugin.engine.dialogue import Dialogue, Entry
from chroma_plugin.engine.runner import PIECE_POSITIONS, Runner
from chroma_plugin.errors import AudioError, ChromaError, ConfigError, EngineError
from chroma_plugin.transcript import TextSink

log = logging.getLogger(__name__)

TRANSCRIPT_PIECE = PIECE_POSITIONS // 4
"""Positions that are read at once: the smaller of the two sizes of a piece that are captured."""
FEWEST_TOKENS = 16
POSITIONS_PER_TOKEN = 2
"""A transcript is cut at 16 tokens and one for each 80 ms: speech has three to seven a second."""


@dataclass(slots=True, eq=False)
class _Writing:
    """A transcript on its way.

    Attributes:
        call: whose.
        turn: of which turn.
        emit: hands text or error to the session's event loop.
        log: what the thinker reads: the instructions, the turn, and what is written so far.
        reply: the last of its messages, which holds the text's tokens.
        most: so many tokens and no more.
        newest: the token chosen last, on its way to the host.
    """

    call: Call
    turn: int
    emit: TextSink
    log: Dialogue
    reply: Entry
    most: int
    newest: _Arriving | None = None


class Transcripts:
    """The line of transcripts, and the steps of the one in front.

    Args:
        runner: reads pieces of prompts.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._row = runner.thinker_cache.rows - 1
        self._line: deque[_Writing] = deque()
        self.made = 0

    def __len__(self) -> int:
        return len(self._line)

    def ask(self, call: Call, turn: int, emit: TextSink) -> None:
        """Puts a turn in line; what cannot be transcribed is refused at once."""
        runner, prompt = self._runner, call.prompt
        heard = call.dialogue.heard(turn)
        if heard is None or heard.audio is None:
            return emit(
                AudioError(
                    f"The sound of turn {turn} is forgotten, as that of the oldest turns is when a "
                    "conversation fills EngineConfig.thinker_positions. Transcribe a turn sooner."
                )
            )
        instructions = prompt.system(runner.config.transcript_instructions)
        reply = Entry("assistant", before=list(prompt.reply_open))
        asked = Entry("user", before=heard.before, audio=heard.audio, after=heard.after)
        dialogue = Dialogue(
            call.dialogue.embed, [Entry("system", before=instructions), asked, reply]
        )
        most = FEWEST_TOKENS + len(heard.audio) // POSITIONS_PER_TOKEN
        room = runner.config.thinker_positions - dialogue.positions
        if room < FEWEST_TOKENS:
            return emit(
                ConfigError(
                    f"Turn {turn} takes {dialogue.positions} of the thinker's "
                    f"{runner.config.thinker_positions} positions, which leaves too few for its "
                    "text. Raise EngineConfig.thinker_positions, or shorten "
                    "transcript_instructions."
                )
            )
        self._line.append(_Writing(call, turn, emit, dialogue, reply, min(most, room)))

    def cancel(self, call: Call, turn: int | None = None) -> None:
        """Withdraws a conversation's transcripts, or the one of this turn."""
        stay = [w for w in self._line if w.call is not call or turn not in (None, w.turn)]
        self._line = deque(stay)

    def end(self, error: ChromaError) -> None:
        """Tells everyone who waits that there is nothing to wait for."""
        for writing in self._line:
            writing.emit(error)
        self._line.clear()

    def step(self) -> None:
        """A piece of the transcript in front: of its prompt, or a token. There must be one.

        What goes wrong in it is that transcript's alone.
        """
        writing = self._line[0]
        try:
            if self._ended(writing):
                self._line.popleft()
                text = writing.call.prompt.decode(writing.reply.tokens)
                self.made += 1
                writing.emit(text)
            else:
                self._advance(writing)
        except Exception as error:
            log.exception("a transcript failed")
            self.cancel(writing.call, writing.turn)
            writing.emit(
                EngineError(
                    f"Turn {writing.turn} could not be transcribed ({type(error).__name__}: "
                    f"{error}). The log has the details."
                )
            )

    def _ended(self, writing: _Writing) -> bool:
        """Takes the newest token; whether it was the last."""
        if writing.newest is None:
            return False
        token, writing.newest = writing.newest.wait(), None
        if token == self._runner.model.config.im_end:
            return True
        writing.reply.tokens.append(token)
        return len(writing.reply.tokens) >= writing.most

    def _advance(self, writing: _Writing) -> None:
        """Has the device read on; nobody waits for it before the next piece's turn comes."""
        dialogue, thinker = writing.log, self._runner.model.thinker
        embeds = dialogue.pending(TRANSCRIPT_PIECE)
        hidden = self._runner.prefill(self._row, embeds, dialogue.cached)
        dialogue.cached += len(embeds)
        if dialogue.cached == dialogue.positions:
            writing.newest = _Arriving.of(thinker.lm_head(hidden[None]).argmax())


@dataclass(frozen=True, slots=True)
class _Arriving:
    """A number on its way from the device."""

    number: Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, number: Tensor) -> _Arriving:
        """Sends it; the host goes on."""
        if number.device.type != "cuda":
            return cls(number, None)
        host = torch.empty(number.shape, dtype=number.dtype, pin_memory=True)
        host.copy_(number, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return cls(host, event)

    def wait(self) -> int:
        if self.arrived is not None:
            self.arrived.synchronize()
        return int(self.number)
