"""The page at `/`: the files of `assets/page`, and what a browser may do with them.

Nothing secret is in them, so they are given to whoever asks; what the page asks for needs a key,
where there are keys. Knows no engine.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from chroma_plugin.server.access import Refusal

KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",  # fetch and the WebSocket, of this very server
        "media-src blob:",  # a clip is listened to before it is sent
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
"""Nothing is loaded from, or sent to, anywhere else; no text ever becomes markup or a script."""
HEADERS = {
    "content-security-policy": POLICY,
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # asked for again, and answered by 304
}


def routes() -> APIRouter:
    """`/`, and `/page/NAME` for what it loads; read once, no path of a request is opened."""
    router = APIRouter(include_in_schema=False)
    folder = files("chroma_plugin") / "assets" / "page"
    held = {item.name: item.read_bytes() for item in folder.iterdir() if item.is_file()}
    tags = {name: f'"{hashlib.sha256(data).hexdigest()[:32]}"' for name, data in held.items()}

    def answer(request: Request, name: str) -> Response:
        if name not in held:
            raise Refusal(404, "not_found", "The page has no such file.")
        headers = HEADERS | {"etag": tags[name]}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(status_code=304, headers=headers)
        suffix = name[name.rindex(".") :]
        return Response(held[name], headers=headers, media_type=KINDS[suffix])

    @router.api_route("/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        return answer(request, "index.html")

    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def part(request: Request, name: str) -> Response:
        return answer(request, name)

    return router
