"""Who may come in: keys, origins, and how much one request may hold."""

from __future__ import annotations

from fastapi import Depends, Security, params
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chroma_plugin.server.settings import SCOPES, ServerConfig
from chroma_plugin.server.settings import Scope as KeyScope

BROWSER_KEY = "openai-insecure-api-key."
"""How a page gives its key, as it can set no header of a WebSocket: as a subprotocol."""


MAX_FORMS = 8
"""Uploads at the same time: each may take `max_upload_bytes` of the disk until it is decoded."""


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


def needs(config: ServerConfig, scope: KeyScope) -> list[params.Depends]:
    """The dependencies of a route that needs a key, and says so where there are keys."""
    key = HTTPBearer(scheme_name="key", description=f"An API key that opens {scope!r}.")
    key.auto_error = False  # `Needs` refuses, in the form of all refusals
    known = [Security(key)] if config.api_keys else []
    return [Depends(Needs(config, scope)), *known]


class BodyLimit:
    """ASGI middleware: nobody without a key sends a body, no body has more than so many bytes,
    whatever its header says, and only a few forms are on their way at the same time.

    FastAPI takes a form in before it asks who sends it, so this comes before.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._app, self._config, self._limit = app, config, config.max_upload_bytes
        self._forms = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = [refusal(self._config, headers, one) for one in SCOPES]
        length = headers.get("content-length", "")
        is_form = headers.get("content-type", "").lower().startswith("multipart/")
        if (stranger := refused[0]) is not None and None not in refused:
            await _answer(stranger, scope, receive, send)
        elif length.isdigit() and int(length) > self._limit:
            await _answer(self._too_big, scope, receive, send)
        elif is_form and self._forms >= MAX_FORMS:
            busy = Refusal(503, "too_many_uploads", "Too many uploads at once; try again later.")
            await _answer(busy, scope, receive, send)
        else:
            self._forms += is_form
            try:
                await self._count(scope, receive, send)
            finally:
                self._forms -= is_form

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
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
            await _answer(self._too_big, scope, receive, send)

    @property
    def _too_big(self) -> Refusal:
        return Refusal(413, "request_too_big", f"A request may hold {self._limit} bytes.")


async def _answer(refused: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers without the body, which is still on its way."""
    headers = {"connection": "close"} | ({"retry-after": "1"} if refused.status == 503 else {})
    await JSONResponse(refused.body, refused.status, headers)(scope, receive, send)


class _TooMuch(Exception):
    pass
