"""What `/openapi.json` says is what is served: requests made of it, right and wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import CHECKS
from schemathesis.config import SchemathesisConfig

from chroma_plugin.server.app import create_app
from chroma_plugin.server.settings import ApiKey, ServerConfig
from tests.fakes import FakeEngine

KEY = "k" * 32
EXAMPLES = 6
"""Requests of each kind and route."""
CONFIG = SchemathesisConfig.from_dict(
    {
        "checks": {  # 422: as described, and a clip, name or consent that cannot be used
            "positive_data_acceptance": {
                "expected-statuses": ["2xx", "401", "403", "404", "409", "422"]
            }
        }
    }
)


def new_app(voices: Path | None) -> FastAPI:
    config = ServerConfig(api_keys=(ApiKey(KEY),), voices=voices, max_upload_bytes=1 << 20)
    return create_app(FakeEngine(frames=2), config)


class Newest:
    """The server of this test: each has its own, as its end closes one for good."""

    app = new_app(None)

    async def __call__(self, *asgi: Any) -> None:
        await self.app(*asgi)


newest = Newest()
schema = schemathesis.openapi.from_asgi("/openapi.json", newest, config=CONFIG)


@pytest.fixture(autouse=True)
def another(tmp_path: Path) -> None:
    newest.app = new_app(tmp_path)


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_route_answers_as_it_is_described(case: Any) -> None:
    case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"})


def test_all_checks_are_on() -> None:
    known = set(CHECKS.get_all_names())
    assert {"ignored_auth", "negative_data_rejection", "response_schema_conformance"} <= known
    assert all(CONFIG.projects.default.checks.get_by_name(name=name).enabled for name in known)
