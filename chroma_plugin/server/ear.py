"""What a client appends, as the user's turns: decoded, and, if the server is to, found in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from chroma_plugin.audio import INPUT_RATE_HZ, Samples
from chroma_plugin.server.formats import Decoder, WireFormat
from chroma_plugin.server.session_config import SemanticVad, ServerVad
from chroma_plugin.server.turns import Speech, TurnDetector, TurnEvent, VoiceActivity


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
        self._detector: TurnDetector | None = None
        self._heard_samples = 0

    @property
    def heard_ms(self) -> float:
        """All that was ever heard."""
        return self._heard_samples * 1000 / INPUT_RATE_HZ

    @property
    def in_turn(self) -> bool:
        """The user speaks, as far as the server can tell."""
        return self._detector is not None and self._detector.in_turn

    def configure(self, wire: WireFormat, turns: ServerVad | SemanticVad | None) -> None:
        """How sound comes in from now on, and who finds the turns in it; None: the client."""
        if wire != self._wire:
            self._wire, self._decoder = wire, Decoder(wire)
        if turns == self._settings:
            return
        self._settings = turns
        self._detector = None
        if turns is not None:
            self._detector = TurnDetector(
                threshold=turns.threshold,
                padding_ms=turns.prefix_padding_ms,
                silence_ms=turns.silence_ms,
                vad=self._new_vad(),
                from_ms=self.heard_ms,
            )

    def push(self, data: bytes) -> Iterator[TurnEvent]:
        """The next piece; without turn detection all of it belongs to the turn.

        Raises:
            AudioError: half a sample; nothing of the piece was used.
        """
        yield from self._hear(self._decoder.push(data))

    def finish(self) -> Iterator[TurnEvent]:
        """Ends the turn where it is: what is left of it, as `Speech`."""
        rest = self._decoder.flush()
        if self._detector is None:
            yield from self._hear(rest)
            return
        yield from (e for e in self._hear(rest) if isinstance(e, Speech))
        yield Speech(self._detector.take_rest())

    def forget(self) -> None:
        """Drops what was appended and is no turn yet."""
        for _ in self.finish():
            pass

    def _hear(self, samples: Samples) -> Iterator[TurnEvent]:
        self._heard_samples += len(samples)
        if self._detector is None:
            yield Speech(samples)
        else:
            yield from self._detector.push(samples)
