"""`chroma-plugin serve`: an engine behind the OpenAI Realtime protocol."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from chroma_plugin import __version__
from chroma_plugin.config import DEFAULT_MODEL, EngineConfig
from chroma_plugin.errors import ChromaError, ConfigError
from chroma_plugin.server import logs
from chroma_plugin.server.settings import ServerConfig, api_keys, model_name
from chroma_plugin.session import SpeechEngine
from chroma_plugin.voice_store import default_folder

if TYPE_CHECKING:
    from chroma_plugin.server.ray_app import Arguments

log = logging.getLogger(__name__)

Watermark = Literal["perth", "off"]

app = typer.Typer(name="serve", add_completion=False, pretty_exceptions_enable=False)


@app.command()
def serve(
    model: Annotated[
        str, typer.Option(help=f"{DEFAULT_MODEL}, a checkpoint folder, or a hub id.")
    ] = DEFAULT_MODEL,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port.")] = 8000,
    voices: Annotated[
        Path | None,
        typer.Option(
            help="The folder of voices; else that of chroma-plugin voices, if it is there."
        ),
    ] = None,
    max_replies: Annotated[int, typer.Option(min=1, help="Replies at the same time.")] = 4,
    max_sessions: Annotated[int, typer.Option(min=1, help="Calls at the same time.")] = 64,
    origin: Annotated[
        list[str] | None, typer.Option(help="A page that may talk to it: https://HOST.")
    ] = None,
    watermark: Annotated[
        Watermark, typer.Option(help="The inaudible mark on replies; off: they go out unmarked.")
    ] = "perth",
    log_format: Annotated[
        logs.LogFormat, typer.Option(help="Of the lines on stderr; json: each is one object.")
    ] = "text",
    log_level: Annotated[logs.LogLevel, typer.Option(help="Of these lines.")] = "info",
) -> None:
    """Serve Chroma to other processes: OpenAI's Realtime protocol and a few HTTP routes.

    Beyond this machine $CHROMA_API_KEY is needed: one key, or several with commas between them;
    `KEY:talk` opens everything but enrolling voices.
    """
    logs.set_up(log_format, log_level)
    with _in_form(log_format):
        config = ServerConfig(
            host=host,
            port=port,
            model=model_name(model),
            voices=voices or _kept_voices(),
            max_sessions=max_sessions,
            api_keys=api_keys(os.environ.get("CHROMA_API_KEY", "")),
            origins=tuple(origin or ()),
        )
        sessions = 2 * max_sessions  # out-of-band replies take sessions of their own
        settings = EngineConfig(model, device, max_replies=max_replies, max_sessions=sessions)
        _serve(config, settings, watermark, log_format)


def _serve(
    config: ServerConfig, settings: EngineConfig, watermark: Watermark, form: logs.LogFormat
) -> None:
    """Serves until it is told to stop; what cannot be is told first.

    Raises:
        ChromaError: it cannot be served; says how to mend it.
    """
    try:
        from chroma_plugin.server.app import create_app
        from chroma_plugin.server.metrics import gpu_bytes
        from chroma_plugin.server.run import serve as listen
        from chroma_plugin.server.smart_turn import smart_turn
        from chroma_plugin.server.tracing import Traces
    except ImportError as error:
        raise ChromaError(
            f"Something that a server needs is missing ({error}). "
            "Install it: pip install 'chroma-plugin[server]'"
        ) from error
    from chroma_plugin.engine.engine import Engine
    from chroma_plugin.engine.parts import find_device
    from chroma_plugin.model.weights import find_checkpoint

    # Told now, not by a server that says that it serves and never gets ready.
    _check_port(config.host, config.port)
    find_device(settings.device)
    find_checkpoint(settings.model)
    engine = marked_engine(Engine(settings), watermark)
    _announce(config, watermark, form)
    smart_turn.load()  # an import takes time from whoever speaks, so it comes before anybody does
    served = create_app(
        engine,
        config,
        gpu_bytes=gpu_bytes,
        traces=Traces.from_environment(__version__),
        version=__version__,
    )
    listen(served, config)


def _announce(config: ServerConfig, watermark: Watermark, form: logs.LogFormat) -> None:
    """Says where it serves: in sentences for who started it, or, so that all lines of the stream
    are JSON where that was asked for, as lines of the log."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"ws://{host}:{config.port}/v1/realtime"
    unmarked = "Replies are not marked as synthetic (--watermark off)."
    if form == "json":
        logs.tell(log, "serving", model=config.model, address=address, page=config.page_address)
        if watermark == "off":
            log.warning(unmarked)
        return
    print(f"Serving {config.model}: {address}  (Ctrl+C ends it)", file=sys.stderr)
    print(f"To talk to it in a browser: {config.page_address}", file=sys.stderr)
    if watermark == "off":
        print(unmarked, file=sys.stderr)


@contextmanager
def _in_form(form: logs.LogFormat) -> Iterator[None]:
    """Where lines are JSON, a start that fails is told in one, too; else whoever called tells."""
    try:
        yield
    except ChromaError as error:
        if form != "json":
            raise
        log.error("%s", error)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error


def _kept_voices() -> Path | None:
    """Where `chroma-plugin voices` keeps them, if that is named or there."""
    folder = default_folder()
    return folder if os.environ.get("CHROMA_VOICES") or folder.is_dir() else None


def _check_port(host: str, port: int) -> None:
    """Before anything is loaded.

    Raises:
        ChromaError: somebody else listens there, or nobody can.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ChromaError(
            f"Nobody can listen at {host}:{port} ({error.strerror}). Name another --port or --host."
        ) from error


def marked_engine(engine: SpeechEngine, watermark: Watermark) -> SpeechEngine:
    """The engine with its replies marked, or as it is if that is turned off.

    Raises:
        ChromaError: they cannot be marked; says how to mend it.
    """
    if watermark == "off":
        return engine
    from chroma_plugin.perth import Perth
    from chroma_plugin.watermark import MarkedEngine

    return MarkedEngine(engine, Perth.load().marker())


def replica_engine(replica: Arguments) -> SpeechEngine:
    """The engine of one replica of `chroma_plugin.server.ray_app`, which cannot name one itself."""
    from chroma_plugin.engine.engine import Engine

    settings = EngineConfig(
        replica.model,
        replica.device,
        max_replies=replica.rows,
        max_sessions=2 * replica.places,  # as above
        thinker_rows=max(replica.rows, min(4 * replica.rows, 2 * replica.places)),
    )
    return marked_engine(Engine(settings), replica.watermark)
