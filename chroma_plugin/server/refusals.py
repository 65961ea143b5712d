"""What is not done, told in the form of OpenAI's HTTP errors, whoever refuses it."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from chroma_plugin.server.access import Refusal

RETRY_S = 1
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_CODES = {404: "not_found", 405: "method_not_allowed"}


def tell_refusals(app: FastAPI) -> None:
    """Has an app answer every refusal with an `Error` body."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        headers = {"retry-after": str(RETRY_S)} if error.status == 503 else None
        return JSONResponse(error.body, error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        param = ".".join(map(str, first["loc"][1:])) or None
        told = Refusal(400, "invalid_value", f"{param or 'the request'}: {first['msg']}.", param)
        return JSONResponse(told.body, told.status)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code, "invalid_request")
        headers = dict(error.headers or {})
        if error.status_code == 405:  # a path has a route for each method; all of them are named
            headers["Allow"] = ", ".join(_methods(app, request))
        told = Refusal(error.status_code, code, f"{error.detail}: {request.method} here.")
        return JSONResponse(told.body, told.status, headers)


def _methods(app: FastAPI, request: Request) -> list[str]:
    """What may be done at a path."""
    asked = ({**request.scope, "method": method} for method in METHODS)
    return [
        scope["method"]
        for scope in asked
        if any(route.matches(scope)[0] is Match.FULL for route in app.routes)
    ]
