"""Where the engine of a model is."""

from __future__ import annotations

import pytest

from chroma_plugin.livekit import LocalServer, RealtimeModel
from tests.fakes import FakeEngine
from tests.livekit.stage import reply, say_into
from tests.server.serving import serving


async def test_an_engine_of_this_process_is_started_and_never_closed() -> None:
    engine = FakeEngine()
    model = RealtimeModel(engine=engine)
    assert await model.engine() is engine and engine.started
    assert model.provider == "chroma_plugin" and model.model == "chroma"
    await model.aclose()
    assert not engine.closed


@pytest.mark.parametrize("form", ["ws://{}/v1/realtime", "http://{}"])
async def test_an_engine_at_an_address(form: str) -> None:
    engine = FakeEngine(frames=8)
    async with serving(engine) as address:
        model = RealtimeModel(engine=form.format(address), transcribe=True)
        session = model.session()
        say_into(session)
        session.commit_audio()
        assert (await reply(session)).seconds == pytest.approx(0.64)
        assert model.provider == form.format(address)
        await model.aclose()
    assert "commit_audio" in [call[0] for call in engine.conversations[0].calls]


async def test_the_environment_names_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(FakeEngine(frames=8)) as address:
        monkeypatch.setenv("CHROMA_ENGINE_URL", f"ws://{address}")
        model = RealtimeModel()
        assert (await reply(model.session())).text
        await model.aclose()


def test_without_a_word_it_is_a_server_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHROMA_ENGINE_URL", raising=False)
    assert RealtimeModel()._backend.place == LocalServer()


async def test_voices_of_the_server_go_by_their_names() -> None:
    async with serving(FakeEngine(frames=8)) as address:
        model = RealtimeModel(engine=f"ws://{address}", voice="default")
        assert (await reply(model.session())).text
        await model.aclose()
