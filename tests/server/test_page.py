"""The page at `/`: what is served of it, and what a browser may do with it."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

from chroma_plugin.server.page import KINDS
from chroma_plugin.server.settings import ApiKey, ServerConfig
from tests.server.serving import http

FOLDER = Path(str(files("chroma_plugin") / "assets" / "page"))
HELD = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
KEYS = ServerConfig(api_keys=(ApiKey("k" * 32),))


async def test_the_page_comes_without_a_key_and_with_its_policy() -> None:
    async with http(config=KEYS) as requests:
        answer = await requests.get("/")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.text == HELD["index.html"]
        assert (await requests.head("/")).headers["etag"] == answer.headers["etag"]
        policy = dict(
            part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
        )
        assert policy["default-src"] == policy["form-action"] == "'none'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == "'self'"
        assert not re.search(r"unsafe|\*|https?:|data:", str(policy))
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert (await requests.get("/v1/models")).status_code == 401


@pytest.mark.parametrize("name", sorted(HELD))
async def test_every_file_of_it_is_served_as_what_it_is(name: str) -> None:
    async with http() as requests:
        answer = await requests.get(f"/page/{name}")
        assert answer.text == HELD[name]
        assert answer.headers["content-type"].startswith(KINDS[Path(name).suffix])
        again = await requests.get(
            f"/page/{name}", headers={"if-none-match": answer.headers["etag"]}
        )
        assert (again.status_code, again.content) == (304, b"")


async def test_nothing_else_is_found_there() -> None:
    async with http() as requests:
        for path in ("none.js", "../talk.html", "..%2ftalk.html", "%2fetc%2fpasswd", ""):
            assert (await requests.get(f"/page/{path}")).status_code == 404, path
        assert "/" not in (await requests.get("/openapi.json")).json()["paths"]


def test_it_asks_nobody_else_for_anything() -> None:
    """Every address is one of its own files; what the policy refuses is not in it."""
    for name, text in HELD.items():
        plain = text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?|wss?):|//[\w-]+\.\w+|url\(|@import", plain), name
        assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(|localStorage", text)
    named = re.findall(r'(?:src|href)="([^"]+)"', HELD["index.html"])
    named += [
        f"page/{module}"
        for name in HELD
        for module in re.findall(r'(?:from|URL\() ?"(?:\./)?([\w.]+\.js)"', HELD[name])
    ]
    assert {f"page/{name}" for name in HELD} == set(named) | {"page/index.html"}
    assert not re.search(r"<script>| style=| on\w+=", HELD["index.html"])


def test_every_element_that_a_script_looks_for_is_there() -> None:
    ids = set(re.findall(r'id="([\w-]+)"', HELD["index.html"]))
    scripts = "\n".join(text for name, text in HELD.items() if name.endswith(".js"))
    wanted = set(re.findall(r'(?:\$|getElementById)\("([\w-]+)"\)', scripts))
    (parts,) = re.findall(r"\[(\"record\".*?)\]", scripts)
    wanted |= {f"enrol-{part}" for part in re.findall(r'"(\w+)"', parts)}
    assert len(wanted) > 20 and not wanted - ids


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000/"),
        ("::1", "http://[::1]:8000/"),
        ("0.0.0.0", "http://localhost:8000/"),
        ("::", "http://localhost:8000/"),
    ],
)
def test_its_address_can_be_opened(host: str, address: str) -> None:
    assert ServerConfig(host=host, api_keys=KEYS.api_keys).page_address == address
