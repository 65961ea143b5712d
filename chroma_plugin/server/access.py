"""Who may come in: keys, origins, and how much one request may hold."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chroma_plugin.server.settings import Scope as KeyScope
from chroma_plugin.server.settings import ServerConfig

BROWSER_KEY = "openai-insecure-api-key."
"""How a page gives its key, as it can set no header of a WebSocket: as a subprotocol."""


class Refusal(Exception):
    """An HTTP request that is not done.

    Attributes:
        status: of HTTP.
        code: the protocol's word for it.
        param: the field that is wrong, or None.
    """

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param

    @property
    def body(self) -> dict[str, object]:
        """In the form of OpenAI's HTTP errors."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        about = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": about}


def refusal(config: ServerConfig, headers: Headers, scope: KeyScope) -> Refusal | None:
    """Why somebody may not come in, or None."""
    if not config.welcomes(headers.get("origin"), headers.get("host")):
        return Refusal(403, "origin_refused", "Pages of this origin may not talk to this server.")
    if not config.admits(given_key(headers), scope):
        return Refusal(
            401, "invalid_api_key", f"An API key that opens {scope!r} is needed: Authorization."
        )
    return None


def given_key(headers: Headers) -> str | None:
    """The key that came along, in the header or, from a page, as a subprotocol."""
    kind, _, key = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return key.strip()
    for offered in subprotocols(headers):
        if offered.startswith(BROWSER_KEY):
            return offered.removeprefix(BROWSER_KEY)
    return None


def subprotocols(headers: Headers) -> list[str]:
    """What a WebSocket's client offered."""
    return [part.strip() for part in headers.get("sec-websocket-protocol", "").split(",")]


class Needs:
    """A dependency of a route: a key that opens something, from a welcome page or none."""

    def __init__(self, config: ServerConfig, scope: KeyScope) -> None:
        self._config, self._scope = config, scope

    def __call__(self, request: Request) -> None:
        refused = refusal(self._config, request.headers, self._scope)
        if refused is not None:
            raise refused


class BodyLimit:
    """ASGI middleware: no request holds more than so many bytes, whatever its header says."""

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self._app, self._limit = app, limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > self._limit:
            await self._refuse(scope, receive, send)
            return
        received, answering = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise _TooMuch
            return message

        async def watched(message: Message) -> None:
            nonlocal answering
            if received <= self._limit:  # otherwise it is the answer to half a body
                answering = True
                await send(message)

        try:
            await self._app(scope, counted, watched)
        except _TooMuch:
            if answering:
                raise
        if received > self._limit and not answering:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.responses import JSONResponse

        message = f"A request may hold {self._limit} bytes."
        too_big = Refusal(413, "request_too_big", message)
        headers = {"connection": "close"}
        await JSONResponse(too_big.body, too_big.status, headers)(scope, receive, send)


class _TooMuch(Exception):
    pass
