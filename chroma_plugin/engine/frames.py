"""From beat to beat: launches the steps of the rows that act, and hands every row its share.

On a GPU a step is launched before the one before it is looked at, so that the device never waits
for the host. A row that has ended is then found out one frame late; that frame is dropped.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from chroma_plugin.engine.call import Call
from chroma_plugin.engine.clock import PartClock, StepTally
from chroma_plugin.engine.runner import Runner, StepResult
from chroma_plugin.engine.scheduler import URGENT_S, Scheduler, Slot, Ticket
from chroma_plugin.engine.utterance import Utterance
from chroma_plugin.reply import EndReason


@dataclass(frozen=True, slots=True)
class StepTimes:
    """How long a step took.

    Attributes:
        rows: the rows that it covered.
        ms: from its launch, or the end of the step before if that was later, until its result was
            on the host.
        gap_ms: how long the device had nothing of a step to do before it; None for the first.
    """

    rows: int
    ms: float
    gap_ms: float | None


@dataclass(slots=True)
class _Flight:
    """A step that was launched and not looked at.

    Attributes:
        launched_s: when.
        result: what it makes.
        batch: the rows that it covers.
        slots: those that act in it.
        writing: those of them that get a text token.
    """

    launched_s: float
    result: StepResult
    batch: int
    slots: list[Slot]
    writing: list[Slot]


class Frames:
    """The frames of everyone who speaks.

    Args:
        runner: makes them.
        scheduler: says whose.
    """

    def __init__(self, runner: Runner, scheduler: Scheduler) -> None:
        self._runner, self._scheduler = runner, scheduler
        self.observe: Callable[[StepTimes], None] | None = None  # for measurements
        self.tally = StepTally()
        self._flights: deque[_Flight] = deque()
        self._newest: _Flight | None = None  # its rows have frames that wait for the codec
        self._before: PartClock | None = None  # of the step that was looked at last
        self._landed_s = 0.0

    def begin(self, slot: Slot) -> None:
        """Puts a reply that is ready on its row."""
        call, reply = call_of(slot.ticket), reply_of(slot.ticket)
        assert reply.voice is not None and reply.hidden is not None
        assert call.thinker_row is not None and call.dialogue.cached == call.dialogue.positions
        self._catch_up()
        sampling = reply.request.sampling
        self._runner.start(
            slot.row,
            reply.voice,
            call.thinker_row,
            call.dialogue.positions,
            reply.hidden,
            sampling,
            random.getrandbits(63) if sampling.seed is None else sampling.seed,
            reply.say,
        )
        slot.position = reply.voice.positions
        reply.started_s = time.monotonic()

    def step(self, now_s: float) -> None:
        """One frame for every row that acts."""
        scheduler, runner = self._scheduler, self._runner
        slots, unseen = scheduler.acting, len(self._flights)
        if scheduler.even and (rows := [slot.row for slot in slots]) != runner.active:
            self._catch_up()
            runner.set_active(rows)
        writing = [s for s in slots if s.texting] if scheduler.even else []
        texts = [call_of(s.ticket).dialogue.positions for s in writing]
        hurry = min(slot.in_hand_s(now_s) for slot in slots) < URGENT_S
        launched_s = time.perf_counter()
        result = runner.step(
            scheduler.batch,
            think=bool(writing),
            thinker_span=max(texts, default=0) + 1 + unseen,
            span=max(s.position for s in slots) + 3 * (1 + unseen),
            decode=hurry or runner.undecoded + 1 >= runner.mode.codec_frames,
        )
        self._newest = _Flight(launched_s, result, scheduler.batch, slots, writing)
        self._flights.append(self._newest)
        scheduler.stepped()
        while len(self._flights) > runner.mode.lag:
            self._land(self._flights.popleft())

    def settle(self) -> bool:
        """Looks at every step that was launched; whether there was one."""
        flights = len(self._flights)
        while self._flights:
            self._land(self._flights.popleft())
        return bool(flights)

    def _land(self, flight: _Flight) -> None:
        """Hands each row its share, and frees the rows of replies that have ended."""
        result = flight.result
        result.wait()
        landed_s = time.perf_counter()
        codes, tokens, parts = result.codes.tolist(), result.tokens.tolist(), result.clock.read()
        self._note(flight, landed_s, parts)
        slots = self._speaking(flight)
        ended: dict[int, EndReason] = {}
        for slot in slots:
            call, reply = call_of(slot.ticket), reply_of(slot.ticket)
            pair = slot in flight.writing
            if pair:
                call.dialogue.cached += slot.frames > 0  # the token before this one has been read
                reply.take_token(slot, tokens[slot.row])
            slot.position += (slot.frames > 0) + 2 * pair
            reason = reply.take_codes(slot, codes[slot.row])
            if reason is not None:
                ended[slot.row] = reason
            for part, ms in parts.items():
                reply.spend(part, ms)
        self._hand_out(flight, ended)
        if ended:
            self._catch_up(ended)
        for slot in slots:
            if slot.row in ended:
                self._end(slot, ended[slot.row])

    def _note(self, flight: _Flight, landed_s: float, parts: dict[str, float]) -> None:
        clock, before = flight.result.clock, self._before
        ms = (landed_s - max(flight.launched_s, self._landed_s)) * 1000
        self.tally.add(ms)
        self.tally.spend(parts)
        if self.observe is not None:
            self.observe(StepTimes(flight.batch, ms, clock.gap_ms(before) if before else None))
        self._before, self._landed_s = clock, landed_s

    def _hand_out(self, flight: _Flight, ended: dict[int, EndReason]) -> None:
        if flight.result.audio is None:
            return
        audio, now_s = flight.result.audio.numpy(), time.monotonic()
        for slot in self._speaking(flight):
            cut = ended.get(slot.row, EndReason.END_OF_SPEECH) is not EndReason.END_OF_SPEECH
            reply_of(slot.ticket).take_audio(slot, audio[slot.row], now_s, cut=cut)

    def _catch_up(self, ended: dict[int, EndReason] | None = None) -> None:
        """Has the codec make what waits for it, before the rows change."""
        flight = self._newest
        if flight is None or not self._runner.undecoded:
            return
        clock = self._runner.new_clock()
        flight.result.audio = self._runner.decode_rest(flight.batch, clock)
        parts = clock.read()
        self.tally.spend(parts)
        for slot in self._speaking(flight):
            for part, ms in parts.items():
                reply_of(slot.ticket).spend(part, ms)
        self._hand_out(flight, ended or {})

    def _end(self, slot: Slot, reason: EndReason) -> None:
        reply_of(slot.ticket).finish(slot, reason, time.monotonic())
        self._scheduler.release(slot)
        self._runner.stop(slot.row)
        call_of(slot.ticket).end_reply()

    def _speaking(self, flight: _Flight) -> list[Slot]:
        """The slots of a step that have not been withdrawn since."""
        speaking = self._scheduler.speaking
        return [slot for slot in flight.slots if speaking.get(slot.row) is slot]


def call_of(ticket: Ticket) -> Call:
    """Whose reply it is."""
    assert isinstance(ticket.key, Call)
    return ticket.key


def reply_of(ticket: Ticket) -> Utterance:
    """The reply that a ticket stands for."""
    reply = call_of(ticket).reply
    assert reply is not None
    return reply
