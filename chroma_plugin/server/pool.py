"""How many conversations there may be, and are. Knows no socket."""

from __future__ import annotations

import logging
from dataclasses import asdict, is_dataclass
from typing import Any, Literal

from chroma_plugin.errors import ChromaError, EngineFailed
from chroma_plugin.session import SpeechEngine

log = logging.getLogger(__name__)

Status = Literal["loading", "failed", "draining", "full", "ready"]

WHY: dict[Status, str] = {
    "loading": "The model is still being loaded; try again in a moment.",
    "failed": "The engine did not start, or has died; the server's log says why.",
    "draining": "The server is shutting down; try again later, or another one.",
    "full": "No room for another conversation: every place is taken; try again later.",
    "ready": "",
}
"""Why there is no place."""


class Pool:
    """The places of one server, and the engine behind them.

    Args:
        engine: started by `start`.
        slots: conversations at the same time.
    """

    def __init__(self, engine: SpeechEngine, slots: int) -> None:
        self._engine, self.slots, self.used = engine, slots, 0
        self.draining = False
        self._started = self._failed = False

    async def start(self) -> None:
        """Starts the engine; whether it could is told by `status`."""
        try:
            await self._engine.start()
        except ChromaError as error:
            self._failed = True
            log.error("the engine does not start: %s", error)
            return
        except Exception:  # of the device's: out of memory, a driver that is not there
            self._failed = True
            log.exception("the engine does not start")
            return
        self._started = True

    @property
    def status(self) -> Status:
        if self._failed or self._dead:
            return "failed"
        if not self._started:
            return "loading"
        if self.draining:
            return "draining"
        return "full" if self.used >= self.slots else "ready"

    @property
    def refusal(self) -> str:
        """Why nobody is let in, and what to do about it; "" while somebody is."""
        return WHY[self.status]

    @property
    def refusal_code(self) -> str:
        """The protocol's code for that: trying again helps against all but a failed engine."""
        return "server_error" if self.status == "failed" else "server_overloaded"

    @property
    def _dead(self) -> bool:
        """The engine runs no more; it says so when its figures are asked for."""
        try:
            getattr(self._engine, "stats", None)
        except EngineFailed:
            return True
        except ChromaError:  # not started, or closed
            return False
        return False

    def take(self) -> bool:
        """Takes a place; False if there is none."""
        if self.status != "ready":
            return False
        self.used += 1
        return True

    def give_back(self) -> None:
        self.used -= 1

    def as_dict(self) -> dict[str, Any]:
        """Places, and the engine's own figures if it has any."""
        try:
            stats = getattr(self._engine, "stats", None)
        except ChromaError:
            stats = None
        return {
            "status": self.status,
            "slots": self.slots,
            "used": self.used,
            "free": max(self.slots - self.used, 0),
            "engine": asdict(stats) if is_dataclass(stats) and not isinstance(stats, type) else {},
        }
