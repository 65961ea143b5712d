"""Conversations asked in either way: the same questions, the same form of reply."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from chroma_plugin.audio import INPUT_RATE_HZ, OUTPUT_RATE_HZ, read_audio
from chroma_plugin.config import SamplingParams
from chroma_plugin.errors import AudioError, ChromaError, ConfigError, EngineBusy, EngineFailed
from chroma_plugin.evaluation.conversation import (
    Ask,
    Reply,
    Talk,
    by_pipeline,
    by_session,
    hold,
    long_talks,
    read_settings,
    save_talk,
    talks_of,
    written_setting,
)
from chroma_plugin.reply import EndReason
from chroma_plugin.session import SpeechEngine
from chroma_plugin.training.data import DataPlan, build
from chroma_plugin.training.records import Records
from chroma_plugin.voice import Voice
from tests.evaluation.conftest import QUESTION
from tests.fakes import FakeEngine
from tests.training.test_data import Hum

PLAN = DataPlan(0, 4, turns=(2, 3), speaker_dialogues=2, shard_dialogues=4)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    folder = tmp_path_factory.mktemp("records")
    build(PLAN, folder, speaker=Hum())
    return Records(folder, "heldout")


@pytest.fixture
def talks(records: Records) -> list[Talk]:
    return talks_of(records)[0]


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine("the capital is Paris", frames=9)
    await engine.start()
    yield engine
    await engine.close()


def test_talks_are_the_dialogues_in_the_voices_that_answer(records: Records) -> None:
    talks, left_out = talks_of(records)
    assert len(talks) == 4 and not left_out
    for talk, number in zip(talks, records.dialogues, strict=True):
        record = records[number]
        assert talk.turns == record.turns and not talk.long
        assert talk.voice.transcript == talk.prompt.text == record.references[0].text
        assert np.array_equal(talk.voice.samples, record.references[0].samples())
    assert [talk.speaker for talk in talks[:2]] == [talks[0].speaker] * 2 != [talks[2].speaker] * 2
    assert len(talks_of(records, 3)[0]) == 3


def test_a_clip_that_cannot_be_a_prompt_gives_way_to_the_next(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = {records[records.dialogues[0]].references[0].text}
    plain = Voice.from_samples

    def from_samples(samples: object, rate_hz: int, transcript: str, name: str) -> Voice:
        if transcript in refused:
            raise AudioError("too quiet")
        return plain(samples, rate_hz, transcript, name)  # type: ignore[arg-type]

    monkeypatch.setattr(Voice, "from_samples", from_samples)
    talks, left_out = talks_of(records)
    assert talks[0].prompt.text == records[records.dialogues[0]].references[1].text
    assert not left_out
    refused.add(talks[0].prompt.text)
    talks, left_out = talks_of(records)
    assert len(talks) == 2 and left_out == ["heldout-00000/0: too quiet"] * 2


def test_long_talks_go_through_the_dialogues_in_one_voice(talks: list[Talk]) -> None:
    long = long_talks(talks, 2)
    assert [len(talk.turns) for talk in long] == [10, 10] and all(talk.long for talk in long)
    everything = [turn for talk in talks for turn in talk.turns] * 3
    assert list(long[0].turns) == everything[:10]
    used = next(n for n in range(1, 9) if sum(len((talks * 2)[i].turns) for i in range(n)) >= 10)
    second = (talks * 3)[used]
    assert long[1].turns[0] == second.turns[0] and long[1].speaker == second.speaker
    assert long[0].voice is talks[0].voice
    assert long_talks([], 2) == [] == long_talks(talks, 0)


async def test_a_session_hears_the_question_in_pieces(
    engine: FakeEngine, talks: list[Talk]
) -> None:
    sampling = SamplingParams(0.5, 20)
    (replies,) = await hold(engine, talks[:1], by_session(2.0), sampling, seed=7)
    calls = engine.conversations[0].calls
    pieces = [call[1] for call in calls if call[0] == "push_audio"]
    asked = np.concatenate([turn.question.samples() for turn in talks[0].turns])
    assert np.array_equal(np.concatenate(pieces), asked)
    assert max(map(len, pieces)) == INPUT_RATE_HZ // 50
    requests = [call[1] for call in calls if call[0] == "start_reply"]
    assert all(request.voice is talks[0].voice for request in requests)
    assert all(request.max_reply_s == 2.0 for request in requests)
    assert requests[0].sampling == SamplingParams(0.5, 20, seed=7)
    assert [reply.text for reply in replies] == ["the capital is Paris"] * len(talks[0].turns)
    assert all(reply.ended and not reply.error for reply in replies)
    assert replies[0].seconds == pytest.approx(9 * 0.08)
    assert replies[0].audio.dtype == np.float32


async def test_a_pipeline_gives_the_same_replies(engine: FakeEngine, talks: list[Talk]) -> None:
    """Hums are no speech to VAD, so a recording of somebody asks."""
    recording = read_audio(QUESTION, INPUT_RATE_HZ)

    class Recorded:
        text = "What is the capital of France?"

        def samples(self) -> object:
            return recording

    turn = type(talks[0].turns[0])(Recorded(), talks[0].turns[0].answer)  # type: ignore[arg-type]
    talk = Talk((turn, turn), talks[0].voice, talks[0].prompt, talks[0].speaker)
    (straight,) = await hold(engine, [talk], by_session(10.0))
    (through,) = await hold(engine, [talk], by_pipeline(10.0), SamplingParams(0.5, 20), seed=3)
    assert len(straight) == len(through) == 2
    for one, other in zip(straight, through, strict=True):
        assert (one.text, one.reason, one.error) == (other.text, other.reason, other.error)
        assert np.array_equal(one.audio, other.audio)
    request = next(c[1] for c in engine.conversations[1].calls if c[0] == "start_reply")
    assert request.sampling == SamplingParams(0.5, 20, seed=3)
    assert request.voice is talk.voice


async def test_a_pipeline_that_hears_no_speech_has_failed(
    engine: FakeEngine, talks: list[Talk]
) -> None:
    (replies,) = await hold(engine, talks[:1], by_pipeline(10.0))
    assert len(replies) == len(talks[0].turns)
    assert "no speech was found" in replies[0].error
    assert "broke off" in replies[1].error and not replies[1].ended


def test_a_pipeline_needs_pipecat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "chroma_plugin.talk", None)
    with pytest.raises(ChromaError, match="needs Pipecat"):
        by_pipeline(10.0)


async def test_what_fails_is_told_and_the_others_go_on(talks: list[Talk]) -> None:
    async def ask(engine: SpeechEngine, talk: Talk, sampling: SamplingParams) -> list[Reply]:
        if talk is talks[1]:
            return [Reply("one", reason=EndReason.MAX_SECONDS), Reply(error="busy")]
        return [Reply(str(sampling.seed), reason=EndReason.END_OF_SPEECH)] * len(talk.turns)

    told: list[tuple[int, int]] = []
    held = await hold(
        FakeEngine(), talks, ask, seed=40, together=2, progress=lambda *at: told.append(at)
    )
    assert [len(row) for row in held] == [len(talk.turns) for talk in talks]
    assert [row[0].text for row in held] == ["40", "one", "42", "43"]
    assert not held[1][0].ended and held[1][1].error == "busy"
    assert told == [(n, 4) for n in (1, 2, 3, 4)]


async def test_a_session_that_fails_ends_its_conversation(
    talks: list[Talk], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy(self: FakeEngine, **_: object) -> object:
        return _Failing(EngineBusy("no room"))

    async def dead(self: FakeEngine, **_: object) -> object:
        return _Failing(EngineFailed("it is dead"))

    ask: Ask = by_session(10.0)
    monkeypatch.setattr(FakeEngine, "open_session", busy)
    (replies,) = await hold(FakeEngine(), talks[:1], ask)
    assert replies[0].error == "no room" and len(replies) == len(talks[0].turns)
    monkeypatch.setattr(FakeEngine, "open_session", dead)
    with pytest.raises(EngineFailed):
        await hold(FakeEngine(), talks[:1], ask)


class _Failing:
    def __init__(self, error: ChromaError) -> None:
        self.error = error

    def push_audio(self, samples: object) -> None:
        raise self.error

    async def aclose(self) -> None:
        pass


def test_settings_are_read() -> None:
    found = read_settings("1:50 0.7:20 0")
    assert found == [
        SamplingParams(1.0, 50),
        SamplingParams(0.7, 20),
        SamplingParams(0.0, 0),
    ]
    assert [written_setting(one) for one in found] == ["1:50", "0.7:20", "0"]
    for wrong in ("warm", "1:x", "9:50", "1:-1"):
        with pytest.raises(ConfigError, match="--sampling"):
            read_settings(wrong)
    with pytest.raises(ConfigError, match="names no setting"):
        read_settings(" ")


def test_talks_are_kept_as_recordings(talks: list[Talk], tmp_path: Path) -> None:
    replies = [
        Reply(f"reply {n}", np.full(1920, 0.1, np.float32), EndReason.END_OF_SPEECH)
        for n in range(len(talks[0].turns))
    ]
    replies[1] = Reply(error="busy")
    save_talk(tmp_path / "kept", "001", talks[0], replies)
    prompt = read_audio(tmp_path / "kept" / "001-prompt.wav", OUTPUT_RATE_HZ)
    assert np.allclose(prompt, talks[0].voice.samples, atol=1e-4)
    question = read_audio(tmp_path / "kept" / "001-2-question.wav", INPUT_RATE_HZ)
    assert np.allclose(question, talks[0].turns[1].question.samples(), atol=1e-4)
    assert (tmp_path / "kept" / "001-1-reply.wav").stat().st_size == 44 + 2 * 1920
    said = (tmp_path / "kept" / "001.txt").read_text()
    assert "1 reply: reply 0" in said and "2 failed: busy" in said
    assert talks[0].turns[0].answer.text in said
    (tmp_path / "file").write_text("")
    with pytest.raises(AudioError, match="cannot be made"):
        save_talk(tmp_path / "file" / "x", "001", talks[0], replies)
