"""Lessons: the same ids and features as in serving."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chroma_plugin.engine.call import Call
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.listener import Listener, LogMel
from chroma_plugin.model.prompt import ChatPrompt, feature_extractor
from chroma_plugin.model.weights import load_checkpoint
from chroma_plugin.training.lessons import (
    IGNORED,
    LETTERS,
    SYSTEM,
    WRITE_DOWN,
    Asked,
    Heard,
    answering,
    collate,
    disturbed,
    energies,
    features,
    spelt,
    typed,
    words_of,
    writing_down,
)
from chroma_plugin.training.thinker import ThinkerModule
from tests.miniature import MINIATURE


@pytest.fixture(scope="module")
def model() -> ChromaModel:
    return load_checkpoint(MINIATURE)


@pytest.fixture(scope="module")
def prompt(model: ChromaModel) -> ChatPrompt:
    return ChatPrompt.from_checkpoint(MINIATURE, model.config.audio_token)


@pytest.fixture(scope="module")
def mel() -> LogMel:
    return LogMel(feature_extractor(MINIATURE))


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    count = int(seconds * 16_000)
    envelope = np.abs(np.sin(np.arange(count) / 3000))
    return (0.1 * rng.standard_normal(count) * envelope).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.31, 1.0, 2.0, 2.345, 5.0])
def test_what_is_heard_is_what_the_listener_hears(
    model: ChromaModel, mel: LogMel, seconds: float
) -> None:
    samples = sound(seconds)
    listener = Listener(mel, model.thinker.audio_tower)
    for first in range(0, len(samples), 1000):
        listener.push(samples[first : first + 1000])
    listener.update(final=True)
    clip = Heard(energies(mel, samples), "")
    assert clip.positions == listener.positions

    module = ThinkerModule(model.thinker, model.config.audio_token)
    batch = collate([writing_down(prompt_of(model), model.config.audio_token, clip)],
                    model.config.audio_token)  # fmt: skip
    with torch.no_grad():
        audio = module.embed(batch)[1]
    # energies are kept in 16 bits: a step of 0.008 at most, of features of about 1
    torch.testing.assert_close(audio, listener.embeds, atol=0.02, rtol=0)


def prompt_of(model: ChromaModel) -> ChatPrompt:
    return ChatPrompt.from_checkpoint(MINIATURE, model.config.audio_token)


def test_clips_of_all_lengths_find_their_places(
    model: ChromaModel, prompt: ChatPrompt, mel: LogMel
) -> None:
    token = model.config.audio_token
    clips = [Heard(energies(mel, sound(s, i)), "") for i, s in enumerate((0.5, 4.2, 2.0, 3.1))]
    module = ThinkerModule(model.thinker, token)
    lessons = [writing_down(prompt, token, clip) for clip in clips]
    with torch.no_grad():
        together = module.embed(collate(lessons, token))[1]
        alone = torch.cat([module.embed(collate([one], token))[1] for one in lessons])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    batch = collate(lessons, token)
    assert batch.clip_positions.tolist() == [clip.positions for clip in clips]
    assert batch.clip_at[1][: clips[1].positions].tolist() == list(
        range(clips[0].positions, clips[0].positions + clips[1].positions)
    )


def test_a_conversation_is_spelt_as_the_engine_spells_it(
    model: ChromaModel, prompt: ChatPrompt, mel: LogMel
) -> None:
    questions = [sound(1.1), sound(0.7, 1)]
    answers = ["It is Paris.", "It is Rome."]
    call = Call(prompt, model.embed_tokens, lambda: Listener(mel, model.thinker.audio_tower))
    call.set_system(SYSTEM[0])
    for turn, (question, answer) in enumerate(zip(questions, answers, strict=True), 1):
        call.hear(question)
        call.commit(turn)
        call.add_text("assistant", answer)
    ids: list[int] = []
    for entry in call.dialogue.entries:
        heard = 0 if entry.audio is None else len(entry.audio)
        ids += [*entry.before, *[model.config.audio_token] * heard, *entry.tokens, *entry.after]

    turns = [Asked(Heard(energies(mel, q), ""), a) for q, a in zip(questions, answers, strict=True)]
    lesson = answering(prompt, model.config.audio_token, SYSTEM[0], turns)
    assert lesson.ids == ids
    told = [lesson.ids[at : at + n] for at, n in lesson.told]
    assert told == [[*prompt.encode(answer), model.config.im_end] for answer in answers]
    learnt = [i for i, yes in zip(lesson.ids, lesson.learnt, strict=True) if yes]
    assert learnt == [token for row in told for token in row]


def test_typed_questions_are_spelt_as_the_engine_spells_them(
    model: ChromaModel, prompt: ChatPrompt, mel: LogMel
) -> None:
    said = [("Which city?", "It is Paris."), ("And now?", "It is Rome.")]
    call = Call(prompt, model.embed_tokens, lambda: Listener(mel, model.thinker.audio_tower))
    call.set_system(SYSTEM[0])
    for question, answer in said:
        call.add_text("user", question)
        call.add_text("assistant", answer)
    ids = [
        i for entry in call.dialogue.entries for i in (*entry.before, *entry.tokens, *entry.after)
    ]
    lesson = typed(prompt, SYSTEM[0], said)
    assert lesson.ids == ids and not lesson.clips
    told = [prompt.decode(lesson.ids[at : at + n]) for at, n in lesson.told]
    assert told == [answer for _, answer in said]


def test_writing_down_follows_an_instruction_for_one_reply(
    model: ChromaModel, prompt: ChatPrompt, mel: LogMel
) -> None:
    token = model.config.audio_token
    turn = Asked(Heard(energies(mel, sound(0.6)), "What is it?"), "It is noon.")
    lesson = answering(prompt, token, "Be kind.", [turn, turn], write_down=True)
    text = prompt.decode([i for i in lesson.ids if i != token])
    assert text.count(WRITE_DOWN) == 1
    (_, _), (at, n) = lesson.told
    assert prompt.decode(lesson.ids[at : at + n]) == "What is it?"
    before = prompt.decode(lesson.ids[:at]).split(WRITE_DOWN)[0]
    assert "It is noon." in before


def test_next_ids_are_the_tokens_that_are_learnt(
    model: ChromaModel, prompt: ChatPrompt, mel: LogMel
) -> None:
    token = model.config.audio_token
    lesson = writing_down(prompt, token, Heard(energies(mel, sound(0.6)), "What is it?"))
    batch = collate([lesson], token)
    at = [i for i, yes in enumerate(lesson.learnt) if yes]
    assert (batch.next_ids[0] != IGNORED).nonzero()[:, 0].tolist() == [i - 1 for i in at]
    assert batch.next_ids[0, [i - 1 for i in at]].tolist() == [lesson.ids[i] for i in at]


def test_disturbances_change_level_and_noise_but_nothing_at_strength_nought(mel: LogMel) -> None:
    raw = energies(mel, sound(1.0))
    rng = np.random.default_rng(0)
    assert disturbed(rng, raw, 0.0) is raw
    changed = [disturbed(rng, raw) for _ in range(20)]
    assert all(c.shape == raw.shape and np.isfinite(c).all() for c in changed)
    assert len({round(float(c.mean()), 3) for c in changed}) == 20
    again = np.random.default_rng(0)
    assert np.array_equal(disturbed(again, raw), changed[0])


def test_features_have_whispers_floor_and_scale(mel: LogMel) -> None:
    raw = np.full((128, 12), -9.0, np.float16)
    raw[3, 4] = 2.0
    made = features(raw)
    assert made.shape == (128, 10)
    assert made.max() == pytest.approx(1.5) and made.min() == pytest.approx(-0.5)


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert words_of("  Hello,  Chroma: it's \u201cNoon\u201d! ") == "hello chroma it's noon"
    assert words_of("o\u2019clock") == "o'clock"


def test_letters_of_the_hearing_head() -> None:
    assert spelt("A b'") == [1, LETTERS.index(" ") + 1, 2, LETTERS.index("'") + 1]
    assert spelt("3 \u00e9") == [LETTERS.index(" ") + 1]
