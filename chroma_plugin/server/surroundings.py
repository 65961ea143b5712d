"""What a conversation is given by its server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chroma_plugin.server.response import Outcome
from chroma_plugin.server.smart_turn import TurnJudge, smart_turn
from chroma_plugin.server.turns import VoiceActivity
from chroma_plugin.server.voicing import Voicing
from chroma_plugin.session import SpeechEngine


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a conversation is given by its server.

    Attributes:
        engine: opens the sessions.
        model: its name.
        voicing: finds voices by their names.
        new_vad: makes what tells speech from other sound.
        max_turn_s: what is said beyond it in one turn is not heard.
        max_audio_rate: audio that may come, in seconds a second.
        observe: is told how each reply went.
        judge: tells the end of a turn from a pause, for who asks for `semantic_vad`.
    """

    engine: SpeechEngine
    model: str
    voicing: Voicing
    new_vad: Callable[[], VoiceActivity]
    max_turn_s: float = 60.0
    max_audio_rate: float = 4.0
    observe: Callable[[Outcome], None] = lambda outcome: None
    judge: TurnJudge = smart_turn
