"""Voices that are ready to speak: computed once, the least recently used put away first."""

from __future__ import annotations

import logging
from collections import OrderedDict

from chroma_plugin.config import EngineConfig
from chroma_plugin.engine.runner import ReadyVoice, Runner
from chroma_plugin.errors import VoiceError
from chroma_plugin.voice import Voice

log = logging.getLogger(__name__)

REPLY_POSITIONS = 32
"""Positions that a voice must leave for a reply: about a second."""


class VoiceShelf:
    """The voices of an engine, while they fit: so many, and so many bytes.

    A voice that was put away stays valid for the replies that hold it.

    Args:
        runner: computes them.
        config: how many are kept.

    Attributes:
        nbytes: what the kept voices take; other threads may read it.
    """

    def __init__(self, runner: Runner, config: EngineConfig) -> None:
        self._runner, self._config = runner, config
        self._voices: OrderedDict[str, ReadyVoice] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._voices)

    def ready(self, voice: Voice) -> ReadyVoice:
        """The voice's prompt and cached prefix, from the shelf or computed.

        Raises:
            VoiceError: its prompt does not fit the backbone.
        """
        ready = self._voices.get(voice.key)
        if ready is not None:
            self._voices.move_to_end(voice.key)
            return ready
        ready = self._runner.prepare_voice(voice)
        room = self._config.backbone_positions - REPLY_POSITIONS
        if ready.positions > room:
            raise VoiceError(
                f"The voice takes {ready.positions} positions of the backbone; {room} are "
                "left for it. Use a shorter clip."
            )
        self._keep(voice.key, ready)
        return ready

    def _keep(self, key: str, ready: ReadyVoice) -> None:
        most, most_bytes = self._config.voice_cache, self._config.voice_cache_mb * 1e6
        if ready.nbytes > most_bytes:  # the others stay: they would go and be of no help
            log.warning(
                "a voice of %.1f MB is not kept: EngineConfig.voice_cache_mb is %g",
                ready.nbytes / 1e6,
                self._config.voice_cache_mb,
            )
            return
        self._voices[key] = ready
        self.nbytes += ready.nbytes
        while len(self._voices) > most or self.nbytes > most_bytes:
            _, gone = self._voices.popitem(last=False)
            self.nbytes -= gone.nbytes
