"""Lines of text and of JSON, and what is in none of them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from chroma_plugin.errors import ConfigError, EngineBusy
from chroma_plugin.server import logs
from chroma_plugin.server.settings import ApiKey, ServerConfig
from tests.fakes import FakeConversation, FakeEngine
from tests.kept_logging import kept_logging
from tests.server.scripted import SECRET
from tests.server.serving import http, serving
from tests.server.test_app import send, stops_in_mid_text, until

log = logging.getLogger("chroma_plugin.server.tests")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Where lines go; what was set up before is put back."""
    with kept_logging():
        yield io.StringIO()


def read(lines: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def test_a_line_of_json_holds_ids_and_figures(lines: io.StringIO) -> None:
    logs.set_up("json", "info", lines)
    with logs.about(session="sess_1", turn=None), logs.about(response="resp_2"):
        logs.tell(log, "reply", status="completed", total_ms=12.5, error=None)
    log.info("and %s", "later")
    first, second = read(lines)
    time = first.pop("time")
    assert time.endswith("Z") and len(time) == len("2026-01-01T00:00:00.000Z")
    assert first == {
        "level": "info",
        "logger": "chroma_plugin.server.tests",
        "message": "reply",
        "session": "sess_1",
        "response": "resp_2",
        "status": "completed",
        "total_ms": 12.5,
    }
    assert second["message"] == "and later"
    assert "session" not in second


def test_a_line_of_text_is_one_line(lines: io.StringIO) -> None:
    logs.set_up("text", "info", lines)
    logs.tell(log, "two\nlines", why="a b", empty="", quoted='"', ms=0.5)
    (line,) = lines.getvalue().splitlines()
    _, _, rest = line.partition(" ")
    name = "chroma_plugin.server.tests"
    assert rest == f'info {name} two\\nlines why="a b" empty="" quoted="\\"" ms=0.5'


def test_fields_cannot_pass_for_others(lines: io.StringIO) -> None:
    logs.set_up("json", "info", lines)
    log.info("mine", extra={"fields": {"message": "yours", "level": "error", "more": 1}})
    (line,) = read(lines)
    assert (line["message"], line["level"], line["more"]) == ("mine", "info", 1)


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_traceback_comes_along(lines: io.StringIO, form: logs.LogFormat) -> None:
    logs.set_up(form, "info", lines)
    try:
        raise ZeroDivisionError("on purpose")
    except ZeroDivisionError:
        log.exception("it failed")
    told = lines.getvalue()
    assert "it failed" in told and "ZeroDivisionError: on purpose" in told
    if form == "json":
        assert len(told.splitlines()) == 1


def test_levels_are_this_packages(lines: io.StringIO) -> None:
    """Others write down what goes over their sockets when they are asked for everything."""
    logs.set_up("text", "debug", lines)
    log.debug("ours")
    logging.getLogger("websockets.server").debug("theirs")
    logging.getLogger("uvicorn.error").info("theirs, too")
    logging.getLogger("uvicorn.error").warning("a warning")
    told = lines.getvalue()
    assert "ours" in told and "a warning" in told
    assert "theirs" not in told
    logs.set_up("text", "warning", lines)
    log.info("not this")
    assert "not this" not in lines.getvalue()


def test_loguru_is_heard_from_warnings_on(
    lines: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    """Pipecat's, which judges turns here if it is installed, and greets in colours otherwise."""
    logger = pytest.importorskip("loguru").logger
    logs.set_up("json", "debug", lines)
    logger.info("hello")
    logger.warning("{} is {}", "this", "wrong")
    try:
        raise ZeroDivisionError("on purpose")
    except ZeroDivisionError:
        logger.exception("that, too")
    first, second = read(lines)
    assert (first["level"], first["message"]) == ("warning", "this is wrong")
    assert first["logger"] == __name__
    assert "ZeroDivisionError: on purpose" in second["exception"]
    assert capfd.readouterr().err == ""


def test_it_can_be_set_up_again(lines: io.StringIO) -> None:
    logs.set_up("text", "info", lines)
    logs.set_up("json", "info", lines)
    log.info("once")
    assert len(read(lines)) == 1


def test_unknown_forms_and_levels_are_named() -> None:
    with pytest.raises(ConfigError, match="yaml"):
        logs.set_up("yaml")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="loud"):
        logs.set_up("text", "loud")  # type: ignore[arg-type]


async def test_tasks_keep_their_ids_apart(lines: io.StringIO) -> None:
    logs.set_up("json", "info", lines)

    async def work(name: str) -> None:
        with logs.about(session=name):
            for _ in range(3):
                await asyncio.sleep(0)
                log.info(name)

    await asyncio.gather(*(work(f"sess_{i}") for i in range(4)))
    told = read(lines)
    assert len(told) == 12
    assert all(line["session"] == line["message"] for line in told)


@pytest.mark.parametrize("level", ["info", "debug"])
async def test_a_conversation_in_lines(lines: io.StringIO, level: logs.LogLevel) -> None:
    """Who, when and how long; never a word, and never a sound."""
    logs.set_up("json", level, lines)
    engine = FakeEngine(SECRET, frames=3)
    engine.transcript = SECRET
    async with serving(engine) as place:
        async with connect(f"ws://{place}/v1/realtime?model={SECRET}") as socket:
            created = await until(socket, "session.created")
            text = {"type": "input_text", "text": SECRET}
            item = {"type": "message", "role": "user", "content": [text]}
            await send(socket, "conversation.item.create", item=item)
            await send(socket, "response.create", response={"instructions": SECRET})
            done = await until(socket, "response.done")
            await send(socket, f"no.such.{SECRET}")
            await until(socket, "error")
        async with httpx.AsyncClient(base_url=f"http://{place}") as requests:
            while (await requests.get("/v1/pool")).json()["used"]:
                await asyncio.sleep(0)
    told = read(lines)
    (reply,) = [line for line in told if line["message"] == "reply"]
    assert reply["session"] == created["session"]["id"]
    assert reply["response"] == done["response"]["id"]
    assert reply["status"] == "completed"
    latency_ms = done["chroma"]["latency_ms"]
    assert {name: reply[f"{name}_ms"] for name in latency_ms} == latency_ms
    (ended,) = [line for line in told if line["message"] == "session ended"]
    assert (ended["session"], ended["replies"]) == (reply["session"], 1)
    assert SECRET not in lines.getvalue()
    assert done["response"]["output"][0]["content"][0]["transcript"] == SECRET


async def test_all_lines_of_a_reply_have_its_ids(
    lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.set_up("json", "info", lines)
    fail = lambda self, request, sink: sink(EngineBusy(SECRET))  # noqa: E731
    monkeypatch.setattr(FakeConversation, "start_reply", fail)
    async with serving() as place, connect(f"ws://{place}/v1/realtime") as socket:
        session = (await until(socket, "session.created"))["session"]["id"]
        await send(socket, "response.create")
        response = (await until(socket, "response.done"))["response"]["id"]
    about = [line for line in read(lines) if line.get("response") == response]
    assert [line["level"] for line in about] == ["warning", "warning"]
    assert all(line["session"] == session for line in about)
    assert [line.get("error") for line in about] == [None, "EngineBusy"]
    assert SECRET not in lines.getvalue()


async def test_why_a_reply_is_incomplete_is_told(
    lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only word of it to who asked for plain sound of a text."""
    logs.set_up("json", "info", lines)
    async with http() as requests:
        for stops in (False, True):
            if stops:
                monkeypatch.setattr(FakeConversation, "start_reply", stops_in_mid_text)
            await requests.post("/v1/audio/speech", json={"input": "one two"})
    told = [line for line in read(lines) if line["message"] == "reply"]
    ends = [(line["status"], line.get("reason")) for line in told]
    assert ends == [("completed", None), ("incomplete", "unfinished")]


async def test_a_session_that_finds_no_room_is_a_warning(lines: io.StringIO) -> None:
    logs.set_up("json", "warning", lines)
    engine = FakeEngine()

    async def busy(**settings: Any) -> Any:
        raise EngineBusy(SECRET)

    engine.open_session = busy  # type: ignore[method-assign]
    async with serving(engine) as place, connect(f"ws://{place}/v1/realtime") as socket:
        await until(socket, "error")
        await socket.wait_closed()
    (line,) = [line for line in read(lines) if line["message"] == "session refused"]
    assert (line["level"], line["reason"]) == ("warning", "engine")
    assert SECRET not in lines.getvalue()


async def test_requests_are_logged_by_their_route(lines: io.StringIO) -> None:
    logs.set_up("json", "info", lines)
    config = ServerConfig(api_keys=(ApiKey("k" * 32),))
    async with http(config=config, headers={"authorization": f"Bearer {'k' * 32}"}) as requests:
        await requests.get("/v1/models")
        await requests.get(f"/v1/models/{SECRET}?word={SECRET}")
        await requests.get(f"/{SECRET}")
        await requests.get("/health")
        await requests.get("/metrics")
        page = (await requests.get("/metrics")).text
    told = [
        (line["method"], line["route"], line["status"])
        for line in read(lines)
        if line["message"] == "request"
    ]
    assert told == [
        ("GET", "/v1/models", 200),
        ("GET", "/v1/models/{model}", 404),
        ("GET", "none", 404),
    ]  # probes are told at the level of debugging
    assert SECRET not in lines.getvalue() + page
    assert "k" * 32 not in lines.getvalue()
    about = 'method="GET",route="/v1/models/{model}",status="404"'
    assert f"chroma_http_request_seconds_count{{{about}}} 1.0" in page
    about = 'method="GET",route="/metrics",status="200"'
    assert f"chroma_http_request_seconds_count{{{about}}} 1.0" in page
