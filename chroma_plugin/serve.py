"""`chroma-plugin serve`: an engine behind the OpenAI Realtime protocol."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from chroma_plugin import __version__
from chroma_plugin.config import DEFAULT_MODEL, EngineConfig
from chroma_plugin.errors import ChromaError
from chroma_plugin.server.settings import ApiKey, ServerConfig

app = typer.Typer(name="serve", add_completion=False, pretty_exceptions_enable=False)


@app.command()
def serve(
    model: Annotated[
        str, typer.Option(help=f"{DEFAULT_MODEL}, a checkpoint folder, or a hub id.")
    ] = DEFAULT_MODEL,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port.")] = 8000,
    voices: Annotated[Path | None, typer.Option(help="The folder of voices.")] = None,
    max_replies: Annotated[int, typer.Option(min=1, help="Replies at the same time.")] = 4,
    max_sessions: Annotated[int, typer.Option(min=1, help="Calls at the same time.")] = 64,
    origin: Annotated[
        list[str] | None, typer.Option(help="A page that may talk to it: https://HOST.")
    ] = None,
) -> None:
    """Serve Chroma to other processes: OpenAI's Realtime protocol and a few HTTP routes.

    Beyond this machine $CHROMA_API_KEY is needed: one key, or several with commas between them;
    `KEY:talk` opens everything but enrolling voices.
    """
    config = ServerConfig(
        host=host,
        port=port,
        voices=voices,
        max_sessions=max_sessions,
        api_keys=api_keys(os.environ.get("CHROMA_API_KEY", "")),
        origins=tuple(origin or ()),
    )
    try:
        from chroma_plugin.server.app import create_app
        from chroma_plugin.server.run import serve as listen
    except ImportError as error:
        raise ChromaError(
            f"Something that a server needs is missing ({error}). "
            "Install it: pip install 'chroma-plugin[server]'"
        ) from error
    from chroma_plugin.engine.engine import Engine

    sessions = 2 * max_sessions  # out-of-band replies take sessions of their own
    engine = Engine(EngineConfig(model, device, max_replies=max_replies, max_sessions=sessions))
    place = f"[{host}]" if ":" in host else host
    print(f"Serving {model}: ws://{place}:{port}/v1/realtime  (Ctrl+C ends it)", file=sys.stderr)
    listen(create_app(engine, config, gpu_bytes=_gpu_bytes, version=__version__), config)


def api_keys(text: str) -> tuple[ApiKey, ...]:
    """Keys as they stand in the environment: `KEY,KEY:talk`.

    Raises:
        ConfigError: one is too short, or its scope is not known.
    """
    keys = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, _, scope = part.partition(":")
        keys.append(ApiKey(key, (scope,)) if scope else ApiKey(key))  # type: ignore[arg-type]
    return tuple(keys)


def _gpu_bytes() -> float:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0.0
    return float(torch.cuda.memory_allocated())
