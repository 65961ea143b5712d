"""HTTP requests: each is logged and timed when it is answered.

A request is named by its route (`/v1/audio/voices/{name}`), never by its path or query: these may
hold what nobody should find in a log, and they are without end.
"""

from __future__ import annotations

import logging
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chroma_plugin.server.logs import tell
from chroma_plugin.server.metrics import METHODS, Metrics
from chroma_plugin.server.timeline import now_s

log = logging.getLogger(__name__)

PROBES = ("/health", "/ready", "/metrics")
"""Asked for every few seconds by machines: logged at the level of debugging."""


class AccessLog:
    """ASGI middleware.

    Args:
        app: what answers.
        metrics: counts and times.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin_s, status, sent = now_s(), 0, 0

        async def watched(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:  # status 0: the client was gone before there was an answer
            seconds = now_s() - begin_s
            route, method = route_of(scope), scope["method"]
            method = method if method in METHODS else "other"
            self._metrics.requests.labels(route, method, str(status)).observe(seconds)
            tell(
                log,
                "request",
                logging.DEBUG if route in PROBES else logging.INFO,
                method=method,
                route=route,
                status=status,
                ms=round(seconds * 1000, 1),
                bytes=sent,
            )


def route_of(scope: Scope) -> str:
    """The route that a request was for; `none` if there is none."""
    route: Any = scope.get("route")
    return str(getattr(route, "path_format", None) or getattr(route, "path", "none"))
