"""What a client appends, as the user's turns: decoded, and, if the server is to, found in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from chroma_plugin.audio import INPUT_RATE_HZ, Samples
from chroma_plugin.server.formats import Decoder, WireFormat
from chroma_plugin.server.session_config import SemanticVad, ServerVad
from chroma_plugin.server.turns import (
    Speech,
    SpeechStarted,
    TurnDetector,
    TurnEvent,
    VoiceActivity,
)

LULL_S = 15.0
"""A client that finds the turns itself may append so much before anybody speaks; some append all
that a microphone hears, the whole call long."""
KEPT_S = 1.0
"""What is left of that."""


@dataclass(frozen=True, slots=True)
class Lull:
    """Nobody has spoken in what was appended: all but its last `KEPT_S` can be forgotten."""


@dataclass(frozen=True, slots=True)
class Idle:
    """The user says nothing, for longer than the settings let pass.

    Attributes:
        start_ms: where Chroma had finished, from the first sample that was ever heard.
        end_ms: where it is told.
        samples: the last of the silence, float32 `[n]`, mono, 16 kHz.
    """

    start_ms: float
    end_ms: float
    samples: Samples


EarEvent = TurnEvent | Lull | Idle


class Ear:
    """One client's sound.

    Args:
        new_vad: makes what tells speech from other sound.
    """

    def __init__(self, new_vad: Callable[[], VoiceActivity]) -> None:
        self._new_vad = new_vad
        self._wire = WireFormat()
        self._decoder = Decoder(self._wire)
        self._settings: ServerVad | SemanticVad | None = None
        self._judged = False
        self._detector: TurnDetector | None = None
        self._heard_samples = self._lull_samples = 0
        self._seeker: TurnDetector | None = None  # of a voice in a turn that the client finds
        self._quiet_from_ms: float | None = None
        self._seek()

    @property
    def heard_ms(self) -> float:
        """All that was ever heard."""
        return self._heard_samples * 1000 / INPUT_RATE_HZ

    @property
    def in_turn(self) -> bool:
        """The user speaks, as far as the server can tell."""
        return self._detector is not None and self._detector.in_turn

    def configure(
        self, wire: WireFormat, turns: ServerVad | SemanticVad | None, *, judged: bool = False
    ) -> None:
        """How sound comes in from now on, and who finds the turns in it.

        Args:
            wire: how it is written.
            turns: how the server finds them; None: the client does.
            judged: somebody tells the end of a turn from a pause.
        """
        if wire != self._wire:
            self._wire, self._decoder = wire, Decoder(wire)
        if (turns, judged) == (self._settings, self._judged):
            return
        self._settings, self._judged = turns, judged
        self._detector = None
        if turns is not None:
            self._detector = TurnDetector(
                threshold=turns.threshold,
                padding_ms=turns.prefix_padding_ms,
                silence_ms=turns.silence_ms(judged),
                pauses=judged,
                vad=self._new_vad(),
                from_ms=self.heard_ms,
            )
        self._seek()

    def push(self, data: bytes) -> Iterator[EarEvent]:
        """The next piece; without turn detection all of it belongs to the turn.

        Raises:
            AudioError: half a sample; nothing of the piece was used.
        """
        yield from self._hear(self._decoder.push(data))

    def end_turn(self) -> None:
        """The turn has ended in the pause that was told last."""
        if self._detector is not None:
            self._detector.end()

    def quiet_from(self, ms: float) -> None:
        """Chroma has spoken until then, and it is the user's turn to say something."""
        self._quiet_from_ms = max(ms, self.heard_ms)

    def finish(self) -> Iterator[EarEvent]:
        """Ends the turn where it is: what is left of it, as `Speech`."""
        rest = self._decoder.flush()
        events = list(self._hear(rest))
        yield from (event for event in events if isinstance(event, Speech))
        if self._detector is not None:
            yield Speech(self._detector.take_rest())
        self._seek()

    def forget(self) -> None:
        """Drops what was appended and is no turn yet."""
        for _ in self.finish():
            pass

    def _hear(self, samples: Samples) -> Iterator[EarEvent]:
        self._heard_samples += len(samples)
        if self._detector is None:
            yield Speech(samples)
            if self._is_lull(samples):
                yield Lull()
            return
        for event in self._detector.push(samples):
            if isinstance(event, SpeechStarted):
                self._quiet_from_ms = None
            yield event
        if idle := self._idle(self._detector):
            yield idle

    def _idle(self, detector: TurnDetector) -> Idle | None:
        limit_ms = None if self._settings is None else self._settings.idle_timeout_ms
        start_ms = self._quiet_from_ms
        if limit_ms is None or start_ms is None or detector.in_turn:
            return None
        if self.heard_ms < start_ms + limit_ms:
            return None
        self._quiet_from_ms = None
        return Idle(start_ms, self.heard_ms, detector.before)

    def _seek(self) -> None:
        """A turn begins; where the client will end it, a voice is listened for."""
        self._lull_samples = 0
        self._seeker = TurnDetector(vad=self._new_vad()) if self._detector is None else None

    def _is_lull(self, samples: Samples) -> bool:
        if self._seeker is None:
            return False
        self._lull_samples += len(samples)
        if any(isinstance(event, SpeechStarted) for event in self._seeker.push(samples)):
            self._seeker = None  # from here on it is speech, whatever comes
        elif self._lull_samples >= LULL_S * INPUT_RATE_HZ:
            self._lull_samples = round(KEPT_S * INPUT_RATE_HZ)
            return True
        return False
