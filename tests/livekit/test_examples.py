"""The examples: their agents talk, with an engine that needs no model."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from livekit.agents import AgentServer

from chroma_plugin.livekit import RealtimeModel
from tests.fakes import FakeEngine
from tests.livekit.agents import calling
from tests.livekit.stage import calls

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ["livekit_agent", "livekit_two_agents"]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_nothing_leaves_the_machine(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert 'TurnDetector(version="v1-mini")' in text and '{"mode": "vad"}' in text
    module = example(name)
    assert isinstance(module.server, AgentServer)
    assert module.server.load_fnc is not None and module.server.load_fnc() == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_they_say_what_can_be_done(name: str) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and "console" in done.stdout and "dev" in done.stdout


async def test_the_agent_greets_and_answers() -> None:
    engine = FakeEngine("one two", 6, 0.01)
    host = example("livekit_agent").Host(instructions="Be short.")
    async with calling(RealtimeModel(engine=engine), host) as call:
        await call.played(1)
        assert calls(engine, "start_reply")[0][0].say == "Hello. What would you like to know?"
        await call.ask()
        await call.played(2)


async def test_the_desk_hands_over(monkeypatch: pytest.MonkeyPatch) -> None:
    module, engine = example("livekit_two_agents"), FakeEngine("one two", 6, 0.01)
    monkeypatch.setattr(module, "ENGINE", engine)
    async with calling(RealtimeModel(engine=engine), module.Desk()) as call:
        await call.played(1)
        for _ in range(module.ANSWERS_OF_THE_FIRST):
            await call.session.generate_reply(user_input="And then?")
        await call.until(lambda: isinstance(call.session.current_agent, module.Expert))
        await call.until(lambda: call.speaker.segments[4:])
        assert len(engine.conversations) == 2
        assert calls(engine, "start_reply")[0][0].say == "The expert here. Go on, please."
        told = [text for _, text in calls(engine, "add_text")]
        assert told.count("And then?") == 3  # the expert knows what was said
