"""Voices that are ready to speak: computed once, the least recently used put away first."""

from __future__ import annotations

from collections import OrderedDict

from chroma_plugin.config import EngineConfig
from chroma_plugin.engine.runner import ReadyVoice, Runner
from chroma_plugin.errors import VoiceError
from chroma_plugin.voice import Voice

REPLY_POSITIONS = 32
"""Positions that a voice must leave for a reply: about a second."""


class VoiceShelf:
    """The voices of an engine.

    Args:
        runner: computes them.
        config: how many are kept.
    """

    def __init__(self, runner: Runner, config: EngineConfig) -> None:
        self._runner, self._config = runner, config
        self._voices: OrderedDict[str, ReadyVoice] = OrderedDict()

    def __len__(self) -> int:
        return len(self._voices)

    def ready(self, voice: Voice) -> ReadyVoice:
        """The voice's prompt and cached prefix, from the shelf or computed.

        Raises:
            VoiceError: its prompt does not fit the backbone.
        """
        ready = self._voices.pop(voice.key, None)
        if ready is None:
            ready = self._runner.prepare_voice(voice)
            room = self._config.backbone_positions - REPLY_POSITIONS
            if ready.positions > room:
                raise VoiceError(
                    f"The voice takes {ready.positions} positions of the backbone; {room} are "
                    "left for it. Use a shorter clip."
                )
        self._voices[voice.key] = ready
        if len(self._voices) > self._config.voice_cache:
            self._voices.popitem(last=False)
        return ready
