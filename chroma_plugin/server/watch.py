"""Whoever watches a server: each session and each reply is told to metrics, log and traces here."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from chroma_plugin.errors import ChromaError
from chroma_plugin.reply import AudioChunk, ReplyEvent, ReplyStream, TurnDone
from chroma_plugin.server.events import new_id
from chroma_plugin.server.logs import about, tell
from chroma_plugin.server.metrics import Metrics
from chroma_plugin.server.response import Outcome, ending
from chroma_plugin.server.timeline import Timeline, now_s
from chroma_plugin.server.tracing import Traces

log = logging.getLogger(__name__)


class WatchedSession:
    """One session, while it lasts.

    Args:
        watch: the server's.
        headers: of the request that opened it.

    Attributes:
        id: its id, once it has one.
        state: tells what goes on in it.
        ended_by: who or what ended it, in the server's own words.
    """

    def __init__(self, watch: Watch, headers: Mapping[str, str]) -> None:
        self.id: str | None = None
        self.state: Callable[[], str] = lambda: "opening"
        self.ended_by = "client"
        self._watch, self._parent = watch, watch.parent(headers)
        self._began_s = now_s()
        self._replies = self._interruptions = 0
        self._first_audio_ms: float | None = None

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return now_s() - self._began_s

    def observe(self, outcome: Outcome) -> None:
        """Tells of a reply that has ended."""
        line = outcome.timeline
        self._replies += 1
        self._interruptions += line.at("interruption") is not None
        if (first_s := line.between_s("asked", "first_audio")) is not None:
            self._first_audio_ms = round(first_s * 1000, 1)
        self._watch.observe(outcome, self.id, self._parent)

    def as_dict(self) -> dict[str, Any]:
        """How it is, for `/v1/pool`."""
        return {
            "id": self.id or "",
            "seconds": round(self.seconds, 1),
            "state": self.state(),
            "replies": self._replies,
            "interruptions": self._interruptions,
            "first_audio_ms": self._first_audio_ms,
        }


class WatchedSpeech:
    """One text that is spoken for `/v1/audio/speech`, asked for now.

    Args:
        watch: the server's.
        headers: of the request.
    """

    def __init__(self, watch: Watch, headers: Mapping[str, str]) -> None:
        self._watch, self._parent = watch, watch.parent(headers)
        self._outcome = Outcome(new_id("speech"), Timeline(), status="abandoned")
        self._outcome.timeline.mark("asked")

    @property
    def done(self) -> TurnDone | None:
        """The engine's account of it, once it has been followed to its end."""
        return self._outcome.done

    async def follow(self, stream: ReplyStream) -> AsyncIterator[ReplyEvent]:
        """The events of a reply, each noted on its way."""
        outcome = self._outcome
        try:
            async for event in stream:
                if isinstance(event, AudioChunk):
                    outcome.timeline.mark("engine_audio")
                    outcome.timeline.mark("first_audio")
                elif isinstance(event, TurnDone):
                    outcome.status, outcome.done = ending(event.reason)["type"], event
                yield event
        except ChromaError as error:
            outcome.status, outcome.error = "failed", error
            raise

    def end(self, error: BaseException | None = None) -> None:
        """Tells how it went; it was abandoned if it was not followed to its end."""
        if isinstance(error, ChromaError):
            self._outcome.status, self._outcome.error = "failed", error
        self._outcome.timeline.mark("end")
        self._watch.observe(self._outcome, None, self._parent)


class Watch:
    """All that is seen of one server.

    Args:
        metrics: count.
        traces: make spans; None: there are none.
    """

    def __init__(self, metrics: Metrics, traces: Traces | None = None) -> None:
        self._metrics, self._traces = metrics, traces
        self._sessions: list[WatchedSession] = []

    @contextmanager
    def session(self, headers: Mapping[str, str]) -> Iterator[WatchedSession]:
        """A session, from its connection's beginning to its end.

        Args:
            headers: of the request that opened it.
        """
        session = WatchedSession(self, headers)
        self._sessions.append(session)
        self._metrics.sessions.inc()
        try:
            yield session
        finally:
            self._sessions.remove(session)
            self._metrics.sessions.dec()
            self._metrics.session_s.labels(session.ended_by).observe(session.seconds)
            told = session.as_dict()
            figures = {name: told[name] for name in ("seconds", "replies", "interruptions")}
            tell(log, "session ended", session=session.id, by=session.ended_by, **figures)

    def speech(self, headers: Mapping[str, str]) -> WatchedSpeech:
        """A text that is spoken; `headers` of the request for it."""
        return WatchedSpeech(self, headers)

    def refuse(self, reason: str) -> None:
        """Tells of a connection that was not let in; `reason` is one of the server's own words."""
        self._metrics.rejected.labels(reason).inc()
        tell(log, "session refused", logging.WARNING, reason=reason)

    def observe(self, outcome: Outcome, session: str | None, parent: Any) -> None:
        """Tells of a reply that has ended.

        Args:
            outcome: how it went.
            session: the id of its session, if there is one.
            parent: what its spans are a part of.
        """
        line, done, error = outcome.timeline, outcome.done, outcome.error
        self._metrics.observe(outcome)
        with about(session=session, turn=line.turn, response=outcome.id):
            tell(
                log,
                "reply",
                logging.INFO if error is None else logging.WARNING,
                status=outcome.status,
                reason=done.reason.value if done and outcome.status == "incomplete" else None,
                cancelled_by=outcome.cancelled_by,
                error=None if error is None else type(error).__name__,
                **{
                    f"{name}_ms": ms
                    for name, ms in line.latency_ms(0.0 if done is None else done.audio_ms).items()
                },
            )
        if self._traces is not None:
            self._traces.turn(parent, session, outcome)

    def parent(self, headers: Mapping[str, str]) -> Any:
        """What a request says that its spans are a part of; None where there are no spans."""
        return None if self._traces is None else self._traces.parent(headers)

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """All that are open, the oldest first."""
        return [session.as_dict() for session in self._sessions]

    def close(self) -> None:
        """Sends what was not sent; may wait for an exporter."""
        if self._traces is not None:
            self._traces.close()
