"""The server on Ray Serve: a replica per GPU, calls bounded by its rows, more replicas on demand.

::

    serve run chroma_plugin.server.ray_app:app num_gpus=1 calls=8 voices=/mnt/voices

A replica is the same application as that of `chroma-plugin serve`, around an engine of its own.
What is here is how Ray is told to place, fill, drain and watch replicas; docs/scale.md says why.
Knows no model: a function named by its path makes the engine.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from chroma_plugin import __version__
from chroma_plugin.addresses import is_loopback
from chroma_plugin.config import DEFAULT_MODEL
from chroma_plugin.errors import ConfigError
from chroma_plugin.server.access import Refusal
from chroma_plugin.server.app import create_app
from chroma_plugin.server.metrics import gpu_bytes
from chroma_plugin.server.settings import ServerConfig, api_keys, model_name
from chroma_plugin.server.smart_turn import smart_turn
from chroma_plugin.server.tracing import Traces
from chroma_plugin.session import SpeechEngine

try:
    from ray import serve
    from ray.serve import Application
except ImportError as error:
    raise ConfigError(
        f"Ray Serve is missing ({error}). Install it: pip install 'chroma-plugin[server,ray]'"
    ) from error

SPARE_REQUESTS = 64
"""What Ray may send to a replica beyond its calls. It has to reach the application to be refused
in the protocol's words: what Ray itself holds back hangs in the handshake."""
HANG_UP_S = 30.0
"""What a call may take beyond its longest time, to be told of its end."""
WARM_POLL_S = 0.05


class Arguments(BaseModel):
    """What `serve run` and the `args` of a Serve config may say.

    Attributes:
        engine: the path `module:function` of what makes a replica's engine; it is given these
            arguments.
        model, device: of the engine.
        rows: replies that a replica makes at the same time.
        calls: conversations of one replica; as many as rows if None, so that no reply waits.
        num_gpus, num_cpus: that Ray sets aside for a replica.
        min_replicas, max_replicas: how many there may be.
        target_load: the share of all calls from which on Ray starts another replica; below 1, as
            calls beyond all places are refused and so are never seen.
        upscale_delay_s, downscale_delay_s: how long that has to last.
        max_call_s: a call ends after so long; a replica that is drained waits for it.
        surge_percent: replicas of a new version that are started before old ones go, by all; they
            need GPUs of their own meanwhile. 0: the old ones go first, and their places with them.
        voices: the folder of voices, on a file system that all replicas share.
        watermark: the mark on replies, or off; the engine's maker puts it in.
        server: further settings of `ServerConfig`.
    """

    model_config = ConfigDict(extra="forbid")

    engine: str = "chroma_plugin.serve:replica_engine"
    model: str = DEFAULT_MODEL
    device: str = "auto"
    rows: int = Field(default=4, ge=1, le=4096)
    calls: int | None = Field(default=None, ge=1, le=65536)
    num_gpus: float = Field(default=0.0, ge=0.0)
    num_cpus: float = Field(default=1.0, ge=0.0)
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    target_load: float = Field(default=0.8, gt=0.0, le=1.0)
    upscale_delay_s: float = Field(default=10.0, ge=0.0)
    downscale_delay_s: float = Field(default=600.0, ge=0.0)
    max_call_s: float = Field(default=7200.0, gt=0.0)
    surge_percent: int = Field(default=25, ge=0, le=100)
    voices: Path | None = None
    watermark: Literal["perth", "off"] = "perth"
    server: dict[str, Any] = Field(default_factory=dict)

    @property
    def places(self) -> int:
        """Conversations of one replica."""
        return self.rows if self.calls is None else self.calls

    def server_config(self) -> ServerConfig:
        """What a replica's application is set to; the keys come from its environment.

        Raises:
            ConfigError: a setting is not known or out of range, or a key cannot be used.
        """
        told = {"model": model_name(self.model)} | self.server
        try:
            return ServerConfig(
                voices=self.voices,
                max_sessions=self.places,
                max_session_s=self.max_call_s,
                api_keys=api_keys(os.environ.get("CHROMA_API_KEY", "")),
                **told,
            )
        except TypeError as error:
            raise ConfigError(f"server: {error}; see ServerConfig for what there is.") from error


def app(args: Arguments | Mapping[str, Any]) -> Application:
    """The application that Ray Serve runs.

    Args:
        args: as `Arguments`, or as the words of a command line or a Serve config.

    Raises:
        ConfigError: a setting of the server is out of range.
        ValidationError: an argument is not known or out of range; pydantic's, names it.
    """
    told = args if isinstance(args, Arguments) else Arguments.model_validate(dict(args))
    told.server_config()  # complains here and now instead of in a replica's log

    def make() -> FastAPI:
        return replica_app(told)

    place = serve.deployment(**deployment_options(told))
    bound: Application = place(serve.ingress(make)(Replica)).bind()
    return bound


class Replica:
    """One engine, and the application around it. Ray asks it whether it is well."""

    app: FastAPI  # given by serve.ingress

    async def check_health(self) -> None:
        """Raises what Ray takes for a reason to put another replica in its place."""
        if self.app.state.pool.status == "failed":
            raise RuntimeError("The engine has failed; see the replica's log.")


def deployment_options(args: Arguments) -> dict[str, Any]:
    """How Ray is to place, fill, scale and drain replicas."""
    options: dict[str, Any] = {
        "name": "Chroma",
        "ray_actor_options": {"num_gpus": args.num_gpus, "num_cpus": args.num_cpus},
        "max_ongoing_requests": args.places + SPARE_REQUESTS,
        "autoscaling_config": {
            "min_replicas": args.min_replicas,
            "max_replicas": max(args.max_replicas, args.min_replicas),
            "target_ongoing_requests": args.places * args.target_load,
            "upscale_delay_s": args.upscale_delay_s,
            "downscale_delay_s": args.downscale_delay_s,
        },
        # A replica that is to go takes no more calls, and stays until its last one has ended.
        "graceful_shutdown_timeout_s": args.max_call_s + HANG_UP_S,
        "max_surge_percent": args.surge_percent,
    }
    if not behind_haproxy():  # which finds the fewest connections itself, and takes no other router
        options["request_router_config"] = {
            "request_router_class": "chroma_plugin.server.ray_router.FewestCalls",
            "request_router_kwargs": {"calls": args.places},
        }
    return options


def behind_haproxy() -> bool:
    """Whether Ray puts HAProxy before the replicas instead of its own proxy."""
    return os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"


def replica_app(args: Arguments) -> FastAPI:
    """A replica's application: as that of a single server, but that it starts warm.

    Raises:
        ConfigError: the engine's path leads nowhere, or a setting is out of range.
    """
    config = args.server_config()
    made = create_app(
        engine_maker(args.engine)(args),
        config,
        gpu_bytes=gpu_bytes,
        traces=Traces.from_environment(__version__),
        version=__version__,
    )
    if not config.api_keys:
        if behind_haproxy():  # everybody comes from its address
            raise ConfigError("Behind HAProxy an API key is needed: set CHROMA_API_KEY.")
        made.add_middleware(LoopbackOnly)
    starts = made.router.lifespan_context

    @asynccontextmanager
    async def warm(app: FastAPI) -> AsyncIterator[Any]:
        """A replica that still loads would be sent calls, and refuse them."""
        async with starts(app) as state:
            await asyncio.to_thread(smart_turn.load)
            while app.state.pool.status == "loading":
                await asyncio.sleep(WARM_POLL_S)
            if app.state.pool.status == "failed":
                raise RuntimeError("The engine does not start; see the line above.")
            yield state

    made.router.lifespan_context = warm
    return made


def engine_maker(path: str) -> Callable[[Arguments], SpeechEngine]:
    """What a path `module:function` leads to.

    Raises:
        ConfigError: nothing.
    """
    module, _, name = path.partition(":")
    try:
        found: Callable[[Arguments], SpeechEngine] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"engine is {path!r}, which leads nowhere ({error}); name a module:function."
        ) from error
    return found


class LoopbackOnly:
    """ASGI middleware of a replica without keys: nobody from another machine comes in, wherever
    Ray's proxy listens."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        host, _ = scope.get("client") or ("", 0)
        if is_loopback(host):
            await self._app(scope, receive, send)
            return
        about = "Without an API key only this machine may talk to it; set CHROMA_API_KEY."
        refused = Refusal(403, "loopback_only", about)
        await JSONResponse(refused.body, refused.status)(scope, receive, send)
