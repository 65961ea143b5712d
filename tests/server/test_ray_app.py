"""What Ray is told of the server, and what a replica is. A cluster: `test_ray_cluster.py`."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

pytest.importorskip("ray", reason="Ray is not installed: pip install 'chroma-plugin[ray]'")

from chroma_plugin.errors import ConfigError, EngineFailed
from chroma_plugin.serve import replica_engine
from chroma_plugin.server import ray_app
from chroma_plugin.server.ray_app import Arguments, LoopbackOnly, Replica, deployment_options
from tests.fakes import FakeEngine

HERE = "tests.server.test_ray_app"


def quick(args: Arguments) -> FakeEngine:
    return FakeEngine(frames=2)


class Mortal(FakeEngine):
    """Dies when it is told to."""

    dead = False

    @property
    def stats(self) -> None:
        if self.dead:
            raise EngineFailed("dead")


def mortal(args: Arguments) -> Mortal:
    return Mortal(frames=2)


class Stillborn(FakeEngine):
    async def start(self) -> None:
        raise EngineFailed("no such device")


def stillborn(args: Arguments) -> Stillborn:
    return Stillborn()


# -- what Ray is told --------------------------------------------------------------------------


def test_a_replica_is_never_held_back_by_ray_and_scales_before_it_is_full() -> None:
    args = Arguments(rows=8, num_gpus=1, max_replicas=5, max_call_s=900, target_load=0.75)
    options = deployment_options(args)
    assert args.places == 8
    assert options["max_ongoing_requests"] > args.places  # or full replicas let callers hang
    scaling = options["autoscaling_config"]
    assert scaling["target_ongoing_requests"] == 6
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (1, 5)
    assert options["graceful_shutdown_timeout_s"] > 900
    assert options["ray_actor_options"]["num_gpus"] == 1
    assert options["request_router_config"]["request_router_kwargs"] == {"calls": 8}
    assert Arguments(rows=8, calls=20).places == 20


async def test_behind_haproxy_that_one_routes_and_a_key_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    assert "request_router_config" not in deployment_options(Arguments())
    with pytest.raises(ConfigError, match="CHROMA_API_KEY"):
        ray_app.replica_app(Arguments(engine=f"{HERE}:quick"))
    monkeypatch.setenv("CHROMA_API_KEY", "k" * 20)
    async with replica("quick") as (_, http):
        assert (await http.get("/ready")).status_code == 200


def test_the_application_is_made_without_a_cluster() -> None:
    bound: Any = ray_app.app(Arguments(max_replicas=3))
    deployment = bound._bound_deployment
    assert deployment.name == "Chroma"
    assert deployment._deployment_config.max_surge_percent == 25


def test_the_words_of_a_command_line_are_arguments() -> None:
    """`serve run ...:app rows=8 num_gpus=0.5` hands over words."""
    bound: Any = ray_app.app({"rows": "8", "num_gpus": "0.5", "voices": "/mnt/voices"})
    deployment = bound._bound_deployment
    assert deployment._deployment_config.max_ongoing_requests > 8
    assert deployment.ray_actor_options["num_gpus"] == 0.5
    with pytest.raises(ValidationError, match="gpus"):
        ray_app.app({"gpus": "1"})


def test_the_configuration_of_the_page_is_one() -> None:
    from ray.serve.schema import ServeDeploySchema

    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(block)).applications
    module, _, name = application.import_path.partition(":")
    assert getattr(ray_app, name) is ray_app.app and module == ray_app.__name__
    assert Arguments(**application.args).places == 128
    (command,) = re.findall(r"^CHROMA_API_KEY=\S+ serve run \S+:app (.*)$", page, re.MULTILINE)
    Arguments(**dict(word.split("=") for word in command.split()))


@pytest.mark.parametrize(
    "wrong", [{"rows": 0}, {"target_load": 1.5}, {"gpus": 1}, {"max_call_s": 0}, {"calls": 0}]
)
def test_arguments_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Arguments(**wrong)


def test_the_servers_settings_are_checked_before_a_replica_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match="idle"):
        ray_app.app(Arguments(server={"idle": 3}))
    with pytest.raises(ConfigError, match="idle_s"):
        ray_app.app(Arguments(server={"idle_s": -1}))
    monkeypatch.setenv("CHROMA_API_KEY", "short")
    with pytest.raises(ConfigError, match="API key"):
        ray_app.app(Arguments())


def test_the_limits_of_a_replica_are_those_of_its_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHROMA_API_KEY", f"{'k' * 20}:talk")
    args = Arguments(calls=3, max_call_s=60, voices=tmp_path, server={"idle_s": 5.0})
    config = args.server_config()
    assert config.model == "chroma-tiny"
    assert (config.max_sessions, config.max_session_s, config.idle_s) == (3, 60, 5.0)
    assert config.voices == tmp_path
    assert config.admits("k" * 20, "talk") and not config.admits("k" * 20, "voices")


def test_the_engine_of_a_replica() -> None:
    args = Arguments(rows=3, calls=5, device="cpu", watermark="off")
    engine: Any = replica_engine(args)
    assert (engine.config.max_replies, engine.config.device) == (3, "cpu")
    assert engine.config.max_sessions >= 5
    assert engine.config.thinker_rows == 10  # of no use to more sessions than there may be


@pytest.mark.parametrize("path", ["nowhere:f", "tests.fakes:nothing", "tests.fakes", ":f", ""])
def test_a_path_that_leads_nowhere(path: str) -> None:
    with pytest.raises(ConfigError, match=r"module:function"):
        ray_app.engine_maker(path)


# -- a replica ---------------------------------------------------------------------------------


@asynccontextmanager
async def replica(
    engine: str, client: tuple[str, int] = ("127.0.0.1", 9), **settings: Any
) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    app = ray_app.replica_app(Arguments(engine=f"{HERE}:{engine}", **settings))
    transport = httpx.ASGITransport(app, client=client)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as http,
    ):
        yield app, http


async def test_a_replica_is_warm_when_it_has_started() -> None:
    async with replica("quick", calls=2) as (_, http):
        ready = await http.get("/ready")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
        assert (await http.get("/v1/pool")).json()["slots"] == 2


async def test_a_replica_whose_engine_does_not_start_is_none() -> None:
    with pytest.raises(RuntimeError, match="does not start"):
        async with replica("stillborn"):
            raise AssertionError("it started")


async def test_a_replica_whose_engine_died_tells_ray() -> None:
    async with replica("mortal") as (app, http):
        watched = Replica()
        watched.app = app
        await watched.check_health()
        app.state.pool._engine.dead = True
        with pytest.raises(RuntimeError, match="failed"):
            await watched.check_health()
        assert (await http.get("/ready")).json() == {"status": "failed"}


async def test_without_a_key_nobody_comes_in_from_another_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stranger = ("203.0.113.7", 9)
    async with replica("quick", stranger) as (_, http):
        answer = await http.get("/ready")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "loopback_only")
    monkeypatch.setenv("CHROMA_API_KEY", "k" * 20)
    async with replica("quick", stranger) as (_, http):
        assert (await http.get("/ready")).status_code == 200
        assert (await http.get("/v1/pool")).status_code == 401


@pytest.mark.parametrize("client", [None, ("203.0.113.7", 9)])
async def test_a_stranger_opens_no_socket(client: tuple[str, int] | None) -> None:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("it came in")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    extensions: dict[str, Any] = {"websocket.http.response": {}}
    scope = {"type": "websocket", "client": client, "extensions": extensions}
    await LoopbackOnly(inner)(scope, receive, send)
    assert (sent[0]["type"], sent[0]["status"]) == ("websocket.http.response.start", 403)
