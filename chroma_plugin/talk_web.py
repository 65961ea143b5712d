"""A page to talk to Chroma: what `chroma-plugin talk --web` runs.

The bot is the example `pipecat_webrtc.py`, which the wheel holds as well. This module gives it an
engine and settings, serves it by Pipecat's runner, and ends its calls when the server is stopped.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import pipecat.transports.smallwebrtc.connection  # noqa: F401  if that is missing, say so now
from loguru import logger
from pipecat.runner.run import app, main
from pipecat.runner.types import RunnerArguments

from chroma_plugin.config import SamplingParams
from chroma_plugin.errors import ChromaError
from chroma_plugin.pipecat import ChromaRealtimeLLMSettings

if TYPE_CHECKING:
    from chroma_plugin.engine.engine import Engine
    from chroma_plugin.voice import Voice

EXAMPLE = "pipecat_webrtc.py"


def serve(
    engine: Engine,
    *,
    voice: Voice | None = None,
    instructions: str | None = None,
    sampling: SamplingParams | None = None,
    host: str = "localhost",
    port: int = 7860,
    verbose: bool = False,
    on_ready: Callable[[str], None] = print,
) -> None:
    """Serves the page until the process is told to end, then closes the engine.

    Once for a process: Pipecat's runner has one server and looks for its bot in ``__main__``.

    Args:
        engine: speaks in all conversations; started here, if it is not running yet.
        voice: whose voice replies are spoken in; that of the example if None.
        instructions: the system prompt; that of the example if None.
        sampling: how codes are drawn; the released defaults if None.
        host: the name or address to listen at.
        port: the port to listen at.
        verbose: leaves Pipecat's own log and banner as they are.
        on_ready: called with the page's address when it can be opened.

    Raises:
        ChromaError: the host or port cannot be listened at, or the engine does not start.
    """
    check_port(host, port)
    bot, out = load_example(), sys.stdout
    bot.engine, bot.voice = engine, voice or bot.voice
    if instructions is not None:
        bot.settings.system_instruction = instructions
    bot.settings.apply_update(ChromaRealtimeLLMSettings(**asdict(sampling or SamplingParams())))
    asyncio.run(engine.start())
    calls: set[asyncio.Task[None]] = set()

    async def call(arguments: RunnerArguments) -> None:
        task = asyncio.create_task(bot.bot(arguments))
        calls.add(task)
        task.add_done_callback(calls.discard)
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()):
            raise error

    @asynccontextmanager
    async def lifespan(server: Any) -> AsyncIterator[None]:
        async with bot.running(server):
            _end_calls_first(calls)
            if not verbose:  # the runner has made it talkative by now
                logger.remove()
                logger.add(sys.stderr, level="WARNING", filter=_is_news)
            with redirect_stdout(out):
                on_ready(page_address(host, port))
            yield

    app.router.lifespan_context = lifespan
    setattr(sys.modules["__main__"], "bot", call)  # noqa: B010, mypy: it has none yet
    arguments, sys.argv = sys.argv, ["talk", "-t", "webrtc", "--host", host, "--port", str(port)]
    if not verbose:
        logging.disable(logging.INFO)  # uvicorn's
    try:
        with open(os.devnull, "w") as nothing, redirect_stdout(sys.stderr if verbose else nothing):
            main()
    finally:
        sys.argv = arguments
        logging.disable(logging.NOTSET)
        asyncio.run(engine.close())  # again, if the server was not given the time to


def load_example() -> Any:
    """The example as a module: from the installed package, or from the checkout beside it.

    Raises:
        ChromaError: it is in neither.
    """
    package = Path(__file__).parent
    for folder in (package / "examples", package.parent / "examples"):
        if (folder / EXAMPLE).is_file():
            spec = importlib.util.spec_from_file_location("pipecat_webrtc", folder / EXAMPLE)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise ChromaError(f"{EXAMPLE} is missing from this installation; install chroma-plugin anew.")


def page_address(host: str, port: int) -> str:
    """Where a browser on this machine finds the page."""
    if host in ("", "0.0.0.0", "::"):  # every address; a browser needs one
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_port(host: str, port: int) -> None:
    """Refuses what cannot be listened at, before a model is loaded for it.

    Raises:
        ChromaError: the port is taken or not allowed, or the host is not this machine's.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            attempt.bind(address)
    except OSError as error:
        raise ChromaError(
            f"{host}:{port} cannot be listened at ({error.strerror or error}). "
            "Choose others: --host, --port"
        ) from error


def _end_calls_first(calls: set[asyncio.Task[None]]) -> None:
    """Ends running calls on Ctrl+C; the server waits until they have ended."""
    loop = asyncio.get_running_loop()

    def end_calls() -> None:
        for task in calls:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)

        def stop(number: int, frame: FrameType | None, before: Any = before) -> None:
            loop.call_soon_threadsafe(end_calls)
            if callable(before):
                before(number, frame)

        signal.signal(number, stop)


def _is_news(record: Any) -> bool:
    """Not Pipecat's warnings that a page without a camera sends no video."""
    return record["function"] not in ("video_input_track", "screen_video_input_track")
