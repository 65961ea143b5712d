"""The routes of a server: one WebSocket and a few of HTTP, around one engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, WebSocket
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from chroma_plugin.errors import ChromaError
from chroma_plugin.server import bodies, events, page, speech, voice_routes
from chroma_plugin.server.access import BodyLimit, Refusal, needs, refusal, subprotocols
from chroma_plugin.server.access_log import AccessLog
from chroma_plugin.server.connection import BROKEN, TRY_LATER, Connection
from chroma_plugin.server.logs import about
from chroma_plugin.server.metrics import CONTENT_TYPE, Metrics
from chroma_plugin.server.pool import Pool
from chroma_plugin.server.refusals import tell_refusals
from chroma_plugin.server.settings import ANY_MODEL, ServerConfig
from chroma_plugin.server.smart_turn import TurnJudge, smart_turn
from chroma_plugin.server.surroundings import Surroundings
from chroma_plugin.server.tracing import Traces
from chroma_plugin.server.turns import VoiceActivity
from chroma_plugin.server.vad import SileroVad
from chroma_plugin.server.voicing import Voicing
from chroma_plugin.server.watch import Watch
from chroma_plugin.session import SpeechEngine
from chroma_plugin.voice_store import VoiceStore

log = logging.getLogger(__name__)

REFUSED: dict[int | str, dict[str, Any]] = {
    400: {"model": bodies.Error, "description": "The request is wrong; says what is."},
    401: {"model": bodies.Error, "description": "No key, or a wrong one."},
    403: {"model": bodies.Error, "description": "A page of another origin."},
    413: {"model": bodies.Error, "description": "The request is too big."},
}


def create_app(
    engine: SpeechEngine,
    config: ServerConfig | None = None,
    *,
    new_vad: Callable[[], VoiceActivity] = SileroVad,
    judge: TurnJudge = smart_turn,
    gpu_bytes: Callable[[], float] | None = None,
    traces: Traces | None = None,
    version: str = "1",
) -> FastAPI:
    """A server around an engine, which it starts and closes.

    Args:
        engine: opens the sessions.
        config: limits, keys and the folder of voices; loopback and no voices if None.
        new_vad: makes what tells speech from other sound.
        judge: tells the end of a turn from a pause.
        gpu_bytes: what the model takes on its device, for the metrics.
        traces: makes a span of each turn; None: there are none.
        version: what the description of the routes calls itself.

    Raises:
        ConfigError: a setting is out of range.
        VoiceError: the folder of voices cannot be used.
    """
    config = config or ServerConfig()
    store = None if config.voices is None else VoiceStore(config.voices)
    pool = Pool(engine, config.max_sessions)
    metrics = Metrics(pool.as_dict, gpu_bytes, version)
    watch = Watch(metrics, traces)
    voicing = Voicing(store, inline=config.inline_voices)
    surroundings = Surroundings(
        engine,
        config.model,
        voicing,
        new_vad,
        config.max_turn_s,
        config.max_audio_rate,
        judge=judge,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(pool.start())
        following = asyncio.create_task(voicing.follow_removals())
        try:
            yield
        finally:
            pool.draining = True
            starting.cancel()
            following.cancel()
            await asyncio.gather(starting, following, return_exceptions=True)
            await engine.close()
            await asyncio.to_thread(watch.close)

    app = FastAPI(
        title="chroma-plugin",
        version=version,
        summary="Speech in, speech out in a cloned voice.",
        lifespan=lifespan,
        docs_url=None,  # a page that is fetched from elsewhere; /openapi.json says the same
        redoc_url=None,
        # Newer FastAPIs write paths, queries and exceptions into spans and logs of their own.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.pool = pool  # for whoever runs it
    app.add_middleware(BodyLimit, config=config)
    if config.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type"],
        )
    app.add_middleware(AccessLog, metrics=metrics)

    tell_refusals(app)
    talks = needs(config, "talk")

    @app.get("/health", tags=["state"])
    async def health() -> bodies.State:
        """Alive: it answers."""
        return bodies.State(status="ok")

    @app.get("/ready", tags=["state"], responses={503: {"model": bodies.State}})
    async def ready() -> Response:
        """Warm, and with room for another conversation."""
        status = pool.status
        code = 200 if status == "ready" else 503
        return JSONResponse(bodies.State(status=status).model_dump(), code)

    @app.get(
        "/metrics",
        tags=["state"],
        response_class=Response,
        dependencies=talks,
        responses=REFUSED | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def figures() -> Response:  # in a thread: asking the system for its own takes milliseconds
        """The figures, in Prometheus' text format."""
        return Response(metrics.page(), media_type=CONTENT_TYPE)

    @app.get("/v1/pool", tags=["state"], dependencies=talks, responses=REFUSED)
    async def slots() -> bodies.PoolState:
        """Conversations: how many there may be and are, and what the engine says of itself."""
        sessions = [bodies.SessionState(**session) for session in watch.sessions]
        return bodies.PoolState(**pool.as_dict(), sessions=sessions)

    @app.get("/v1/models", tags=["models"], dependencies=talks, responses=REFUSED)
    async def models() -> bodies.Models:
        """The one model that is served."""
        return bodies.Models(data=[bodies.Model(id=config.model)])

    @app.get(
        "/v1/models/{model:path}",  # a hub id has a slash
        tags=["models"],
        dependencies=talks,
        responses=REFUSED | {404: {"model": bodies.Error, "description": "There is no such one."}},
    )
    async def model(model: str) -> bodies.Model:
        """The one model, by its name or as `chroma`, whichever it is."""
        if model not in (config.model, ANY_MODEL):
            told = f"There is no model {model[:60]!r}; the one here is {config.model!r}."
            raise Refusal(404, "model_not_found", told, "model")
        return bodies.Model(id=config.model)

    app.include_router(speech.routes(config, pool, voicing, engine, watch, REFUSED))
    app.include_router(voice_routes.routes(config, store, REFUSED))
    app.include_router(page.routes())

    @app.websocket("/v1/realtime")
    async def realtime(websocket: WebSocket) -> None:
        refused = refusal(config, websocket.headers, "talk")
        if refused is not None:
            watch.refuse(refused.code)
            await websocket.send_denial_response(JSONResponse(refused.body, refused.status))
            return
        offered = subprotocols(websocket.headers)
        await websocket.accept(subprotocol="realtime" if "realtime" in offered else None)
        max_reply_s = _seconds(websocket.query_params.get("max_reply_s"))
        if not pool.take():
            watch.refuse(pool.status)
            failed = pool.status == "failed"
            chroma = {"error": "EngineFailed" if failed else "EngineBusy"}
            error = events.error(
                pool.refusal_code, pool.refusal, kind="server_error", chroma=chroma
            )
            await websocket.send_json(error)
            await websocket.close(BROKEN if failed else TRY_LATER)
            return
        try:
            with watch.session(websocket.headers) as session:
                watched = replace(surroundings, observe=session.observe)
                connection = Connection(websocket, config, watched, max_reply_s)
                session.id, session.state = connection.realtime.id, connection.realtime.state
                try:
                    with about(session=session.id):
                        await connection.run()
                finally:
                    session.ended_by = connection.ended_by
                if session.state() == "opening":
                    watch.refuse("engine")
        except ChromaError as error:  # what nobody else took, so that the socket is closed
            log.error("a connection ended: %s", type(error).__name__)
        finally:
            pool.give_back()

    return app


def _seconds(text: str | None) -> float | None:
    try:
        seconds = float(text) if text else None
    except ValueError:
        return None
    return seconds if seconds is None or 0 < seconds < 3600 else None
