"""Has the user finished, or only paused? Judged by the sound, with Smart Turn, if it is there.

The network comes in Pipecat's wheel, so it is used where Pipecat is installed. It needs about as
long as a frame of speech on one core and runs on a thread of its own, one question at a time.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from chroma_plugin.audio import INPUT_RATE_HZ, Samples, float_to_pcm

log = logging.getLogger(__name__)

LIMIT_S = 2.0
"""Whoever judges longer is not waited for: the silence decides."""


class TurnJudge(Protocol):
    """What tells the end of a turn from a pause: `SmartTurn`, or a test's stand-in."""

    async def ready(self) -> bool:
        """Loads it, at the first call; False if there is none."""

    async def complete(self, samples: Samples) -> bool:
        """Whether who spoke has finished.

        Args:
            samples: the last of the turn with the pause, float32 `[n]`, mono, 16 kHz.
        """


class SmartTurn:
    """Pipecat's Smart Turn v3; one for all conversations."""

    def __init__(self) -> None:
        self._analyzer: Any = None
        self._thread: ThreadPoolExecutor | None = None
        self._loading = threading.Lock()
        self._loaded = self._missed = False

    async def ready(self) -> bool:
        """Loads it, at the first call; False, and once a warning, where it is not."""
        if not self._loaded:
            await asyncio.to_thread(self.load)
        if self._analyzer is None and not self._missed:
            self._missed = True
            log.warning(
                "semantic_vad goes by the length of a silence: there is no Smart Turn. "
                "Install it: pip install 'chroma-plugin[pipecat]'"
            )
        return self._analyzer is not None

    def load(self) -> None:
        """Loads it now, if it is installed, so that nobody who speaks has to wait for that."""
        with self._loading:
            if self._loaded:
                return
            try:
                self._analyzer = _analyzer()
            except ImportError:
                log.debug("there is no Smart Turn")
            except Exception:  # of another package's: whatever it is, a silence does as well
                log.exception("Smart Turn does not load")
            self._thread = ThreadPoolExecutor(1, "smart-turn")
            self._loaded = True

    async def complete(self, samples: Samples) -> bool:
        """Whether who spoke has finished; False if that takes too long to say."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(LIMIT_S):
                return await loop.run_in_executor(self._thread, self._judge, samples)
        except TimeoutError:
            log.warning("Smart Turn took longer than %g s; the silence decides", LIMIT_S)
        except Exception:
            log.exception("Smart Turn failed; the silence decides")
        return False

    def _judge(self, samples: Samples) -> bool:
        self._analyzer.clear()
        self._analyzer.append_audio(float_to_pcm(samples), True)
        state, _ = asyncio.run(self._analyzer.analyze_end_of_turn())  # in a loop of this thread's
        return bool(state.name == "COMPLETE")


def _analyzer() -> Any:
    from pipecat.audio.turn.smart_turn.local_smart_turn_v3 import LocalSmartTurnAnalyzerV3

    analyzer = LocalSmartTurnAnalyzerV3()
    analyzer.set_sample_rate(INPUT_RATE_HZ)
    return analyzer


smart_turn = SmartTurn()
"""The one of this process."""
