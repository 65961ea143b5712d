"""A whole pipeline over an engine in another process: turns, a barge-in, a lost connection."""

from __future__ import annotations

from chroma_plugin.client import RemoteEngine
from chroma_plugin.voice import Voice
from tests.client.test_remote_engine import lose
from tests.fakes import FakeEngine
from tests.pipecat.pipeline import conversation
from tests.pipecat.recordings import capital
from tests.server.client import calls
from tests.server.serving import serving

WORDS = "one two three four"


async def test_a_pipeline_talks_to_a_server_as_to_an_engine() -> None:
    behind = FakeEngine(frames=1000, frame_s=0.005)
    clip = Voice.default()
    voice = Voice.from_samples(clip.samples * 0.9, 24_000, clip.transcript, "mine")
    async with (
        serving(behind) as place,
        RemoteEngine(f"ws://{place}", voice_consent="a test") as engine,
        conversation(
            engine, voice=voice, messages=[{"role": "system", "content": "Be brief."}]
        ) as call,
    ):
        call.speaker.play_to(0.4)
        await call.say(capital())
        await call.until(lambda: call.speaker.played_s >= 0.4 - 1e-6, "0.4 s played")
        await call.say(capital())  # " three" would be said after 0.5 s
        await call.until(lambda: call.turns, "an interrupted turn")
        assert call.turns == ["one two"]
        behind.frames, behind.frame_s = 24, 0.0
        call.speaker.play_to(float("inf"))
        await call.replies(2)
        lose(engine)
        await call.say(capital())
        await call.replies(3)
        assert call.turns == ["one two", WORDS, WORDS]
        assert not call.errors
        assert call.session is not None
        said = [(m.role, m.text) for m in call.session.history if m.role == "assistant"]
        assert said == [("assistant", text) for text in call.turns]
    (request,) = calls(behind, "start_reply")[-1]
    assert request.voice.name == "mine"
    assert calls(behind, "set_instructions", 0)[-1] == ("Be brief.",)
    again = [text for role, text in calls(behind, "add_text") if role == "assistant"]
    assert again[:2] == ["one two", WORDS]
    before = [c for c in behind.conversations[0].calls if c[0] == "keep_reply"]
    assert before[-1][2] == 2


async def test_a_reply_that_the_wire_loses_is_an_error_and_the_next_one_is_made() -> None:
    behind = FakeEngine(frames=100_000, frame_s=0.005)
    async with (
        serving(behind) as place,
        RemoteEngine(f"ws://{place}") as engine,
        conversation(engine) as call,
    ):
        await call.say(capital())
        await call.until(lambda: call.speaker.played_s > 0.3, "a reply")
        behind.frames, behind.frame_s = 24, 0.0
        lose(engine)
        await call.until(lambda: call.errors, "an error")
        assert "lost in mid-reply" in call.errors[0].error
        await call.say(capital())
        await call.until(lambda: WORDS in call.turns, "the next reply")
        assert len(call.errors) == 1
        assert len(calls(behind, "start_reply")) == 1  # on the new connection: nothing twice
