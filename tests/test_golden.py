"""Agreement with the official implementation, by the plain loop and through the engine.

Further folders can be named in CHROMA_GOLDEN_DIRS, separated by colons.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chroma_plugin.audio import FRAME_SAMPLES
from chroma_plugin.config import GREEDY
from chroma_plugin.engine.engine import Engine
from chroma_plugin.engine.frames import reply_of
from chroma_plugin.engine.graphs import DeviceMode
from chroma_plugin.engine.runner import StepResult
from chroma_plugin.engine.scheduler import Slot
from chroma_plugin.reply import EndReason, TurnDone
from chroma_plugin.session import Session
from tests.golden import Golden, assert_close, folders, load
from tests.recorded import GPU_LIKE, GRAPHS_OFF

pytestmark = pytest.mark.golden
PIECE = 1_234  # samples of user audio pushed at a time
MODES = {"as_it_is": DeviceMode(), "graphs": GPU_LIKE, "graphs_off": GRAPHS_OFF}


@pytest.fixture(params=folders(), ids=lambda folder: folder.name)
def golden(request: pytest.FixtureRequest) -> Golden:
    folder: Path = request.param
    return load(folder)


@pytest.mark.parametrize("piece", [None, PIECE], ids=["at_once", "in_pieces"])
def test_the_plain_loop_agrees(golden: Golden, piece: int | None) -> None:
    expected, model = golden.expected, golden.model
    voice = model.voice_prompt(golden.transcript, torch.tensor(golden.clip))
    assert torch.equal(voice.codes[None], expected["prompt_codes"])

    made = model.generate_greedy(golden.embeds(piece), voice.embeds, golden.frames)

    assert torch.equal(made.codes[None], expected["codes"])
    assert made.text_ids == expected["text_ids"].tolist()
    assert_close(made.text_logits, expected["thinker_first_logits"][0], "first text logits")
    assert_close(made.backbone_logits, expected["backbone_logits"][0], "backbone logits")
    assert_close(model.codec.decode(made.codes.T[None]), expected["audio"], "audio")


def test_the_first_backbone_input_agrees(golden: Golden) -> None:
    model = golden.model
    voice = model.voice_prompt(golden.transcript, torch.tensor(golden.clip))
    first = golden.expected["prefill_embeds"][0]
    assert_close(voice.embeds, first[: len(voice.embeds)], "voice prompt")
    token = model.embed_tokens(golden.expected["text_ids"].tolist()[:1])
    assert_close(token, first[-1:], "first text token")


@pytest.fixture(params=MODES.values(), ids=MODES.keys())
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> DeviceMode:
    """How the engine's steps run."""
    chosen: DeviceMode = request.param
    monkeypatch.setattr(DeviceMode, "of", lambda device, graphs=True: chosen)
    return chosen


@dataclass
class Recorder:
    """Writes down what the runner makes, row by row."""

    codes: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    audio: list[Tensor] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @classmethod
    def watch_all(cls, engine: Engine) -> dict[Slot, Recorder]:
        """One recorder a reply, in the order in which they begin."""
        assert engine._worker is not None
        runner, frames = engine._worker.runner, engine._worker.frames
        replies: dict[Slot, Recorder] = {}
        logits: dict[int, Tensor] = {}
        step, land, hand_out = runner.step, frames._land, frames._hand_out

        def stepped(batch: int, **settings: Any) -> StepResult:
            result = step(batch, **settings)
            logits[id(result)] = runner.code0_logits[:batch].clone()
            return result

        def landed(flight: Any) -> None:
            scores = logits.pop(id(flight.result), None)
            for slot in frames._speaking(flight) if scores is not None else []:
                reply = replies.setdefault(slot, cls())
                reply.codes.append(flight.result.codes[slot.row])
                reply.logits.append(scores[slot.row])
                if slot in flight.writing:
                    reply.tokens.append(int(flight.result.tokens[slot.row]))
            land(flight)

        def handed_out(flight: Any, ended: dict[int, EndReason]) -> None:
            for slot in frames._speaking(flight) if flight.result.audio is not None else []:
                made = len(reply_of(slot.ticket)._unvoiced) * FRAME_SAMPLES
                replies[slot].audio.append(flight.result.audio[slot.row, :made].clone())
            hand_out(flight, ended)

        runner.step = stepped  # type: ignore[method-assign]
        frames._land, frames._hand_out = landed, handed_out  # type: ignore[method-assign]
        return replies

    def assert_agrees(self, golden: Golden) -> None:
        expected, frames = golden.expected, golden.frames
        assert torch.equal(torch.stack(self.codes)[:frames], expected["codes"][0])
        assert self.tokens == expected["text_ids"].tolist()
        logits = torch.stack(self.logits)[:frames]
        assert_close(logits, expected["backbone_logits"][0], "backbone logits")
        audio = torch.cat(self.audio)[: frames * 1920]
        assert_close(audio, expected["audio"][0, 0], "audio")


async def converse(engine: Engine, golden: Golden) -> Session:
    """Opens the golden conversation, up to the end of its last turn."""
    session = await engine.open_session(
        voice=golden.voice(), sampling=GREEDY, max_reply_s=golden.seconds
    )
    middle = golden.pieces()[1:-1]
    for i, samples in enumerate(golden.audio):
        for start in range(0, len(samples), PIECE):
            session.push_audio(samples[start : start + PIECE])
        if i < len(middle):
            session.commit_audio()
            # what lies between two turns of audio: its first id closes the one, its last opens
            # the other
            session.add_user_text(" ".join(map(str, middle[i][1:-1])))
    return session


async def test_the_engine_agrees(golden: Golden, mode: DeviceMode) -> None:
    async with asyncio.timeout(60):
        engine = Engine(
            golden.config(repeat_stop_frames=10_000), load=lambda config: golden.parts()
        )
        async with engine:
            replies = Recorder.watch_all(engine)
            session = await converse(engine, golden)
            events = [event async for event in session.commit_turn()]
            await session.aclose()
    done = events[-1]
    assert isinstance(done, TurnDone)
    assert done.frames == golden.frames
    (recorder,) = replies.values()
    recorder.assert_agrees(golden)


async def test_a_cached_voice_and_a_kept_conversation_agree(golden: Golden) -> None:
    """A second session of the same engine: the voice comes from the cache, the row was used."""
    async with asyncio.timeout(60):
        engine = Engine(
            golden.config(repeat_stop_frames=10_000, max_sessions=1),
            load=lambda config: golden.parts(),
        )
        async with engine:
            first = await converse(engine, golden)
            [event async for event in first.commit_turn()]
            await first.aclose()
            replies = Recorder.watch_all(engine)
            again = await converse(engine, golden)
            [event async for event in again.commit_turn()]
    (recorder,) = replies.values()
    recorder.assert_agrees(golden)


async def test_rows_of_one_batch_agree_however_they_come_and_go(
    golden: Golden, mode: DeviceMode
) -> None:
    """Three times the same conversation: one from the start, one cancelled in mid-reply, one that
    joins some frames late, all rows of one batch."""
    async with asyncio.timeout(90):
        engine = Engine(  # not far ahead of playback, so that all are still speaking
            golden.config(repeat_stop_frames=10_000, run_ahead_s=0.5),
            load=lambda config: golden.parts(),
        )
        async with engine:
            replies = Recorder.watch_all(engine)
            first, leaving, late = [await converse(engine, golden) for _ in range(3)]
            steady, cut = first.commit_turn(), leaving.commit_turn()
            await anext(cut)
            joined = late.commit_turn()
            await anext(joined)
            leaving.cancel()
            for stream in (steady, joined):
                [event async for event in stream]
    whole = [reply for reply in replies.values() if len(reply.codes) >= golden.frames]
    (part,) = [reply for reply in replies.values() if len(reply.codes) < golden.frames]
    assert len(whole) == 2
    for reply in whole:
        reply.assert_agrees(golden)
    made = len(part.codes)
    assert torch.equal(torch.stack(part.codes), golden.expected["codes"][0, :made])
