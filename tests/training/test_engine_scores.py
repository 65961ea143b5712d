"""What training computes from a whole reply is what the engine computed step by step."""

from __future__ import annotations

import pytest
import torch

from chroma_plugin.audio import INPUT_RATE_HZ, read_audio
from chroma_plugin.config import GREEDY, EngineConfig
from chroma_plugin.engine.parts import Parts, load_parts
from chroma_plugin.reply import TurnDone
from chroma_plugin.session import ReplyStream
from chroma_plugin.training.lessons import SYSTEM, Heard, Lesson, energies
from chroma_plugin.training.lessons import collate as collate_lessons
from chroma_plugin.training.replies import saying
from chroma_plugin.training.speaking import SpeakingPlan, SpeechModule
from chroma_plugin.training.spoken import Spoken, collate
from chroma_plugin.training.thinker import ThinkerModule
from chroma_plugin.voice import Voice
from tests.evaluation.conftest import QUESTION
from tests.miniature import MINIATURE
from tests.training.tape import Tape, taped_engine

FRAMES = 21
SAID = "The capital of France is Paris."


@pytest.fixture
def parts() -> Parts:
    return load_parts(EngineConfig(model=MINIATURE, device="cpu"))


async def end_of(stream: ReplyStream) -> TurnDone:
    events = [event async for event in stream]
    assert isinstance(events[-1], TurnDone)
    return events[-1]


@torch.no_grad()
def taught(parts: Parts, lesson: Lesson, voice: Voice, tape: Tape, frames: int) -> torch.Tensor:
    """How far the scores that training computes of the taped reply are from the taped ones."""
    model, prompt = parts.model, parts.prompt
    thinker = ThinkerModule(model.thinker, model.config.audio_token)
    states, _ = thinker.states(collate_lessons([lesson], model.config.audio_token))
    at, count = lesson.told[0]
    transcript = prompt.encode(voice.transcript)
    reference = model.voice_prompt(transcript, torch.tensor(voice.samples)).codes
    spoken = Spoken(
        transcript,
        reference.numpy(),
        lesson.ids[at : at + count],
        states[0, at - 1 : at - 1 + count].numpy(),
        torch.stack(tape.codes[:frames]).T.numpy(),
    )
    module = SpeechModule(model, SpeakingPlan())
    scores, others = module(collate([spoken], model.config))
    return torch.stack(
        [
            (scores[:frames] - torch.stack(tape.code0[:frames])).abs().max(),
            (others[:frames] - torch.stack(tape.others[:frames])).abs().max(),
        ]
    )


async def test_a_text_that_is_said(parts: Parts) -> None:
    engine, tape = taped_engine(parts, FRAMES)
    voice = Voice.default()
    async with engine:
        session = await engine.open_session(voice=voice, sampling=GREEDY)
        tape.begin()
        done = await end_of(session.say(SAID))
        await session.aclose()
    assert done.frames == FRAMES
    assert taught(parts, saying(parts.prompt, SAID), voice, tape, FRAMES).max() < 1e-4


async def test_an_answer_to_what_is_heard(parts: Parts) -> None:
    """Training keeps spectrograms in half precision, so the scores are a little apart."""
    engine, tape = taped_engine(parts, FRAMES)
    voice, question = Voice.default(), read_audio(QUESTION, INPUT_RATE_HZ)
    async with engine:
        session = await engine.open_session(voice=voice, sampling=GREEDY)
        tape.begin()
        for first in range(0, len(question), 1_000):
            session.push_audio(question[first : first + 1_000])
        done = await end_of(session.commit_turn())
        await session.aclose()
    assert done.frames == FRAMES
    prompt, audio_token = parts.prompt, parts.model.config.audio_token

    def lesson(system: str) -> Lesson:
        asked = Lesson()
        asked.read(prompt.system(system))
        asked.hear(prompt, Heard(energies(parts.mel, question), ""), audio_token)
        asked.read(prompt.reply_open)
        tokens = tape.tokens[: FRAMES // 2 + 1]
        asked.told.append((len(asked.ids), len(tokens)))
        asked.ids += tokens
        asked.learnt += [True] * len(tokens)
        return asked

    apart = taught(parts, lesson(SYSTEM[0]), voice, tape, FRAMES)
    assert apart.max() < 1e-3
    assert taught(parts, lesson("Be brief."), voice, tape, FRAMES).max() > 1e-2
