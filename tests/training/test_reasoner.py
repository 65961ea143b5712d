"""What a frozen thinker gives: the states that serving gives to the backbone, kept in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from chroma_plugin.errors import CheckpointError
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.layers import KVCache
from chroma_plugin.model.listener import Listener, LogMel
from chroma_plugin.model.prompt import ChatPrompt, feature_extractor
from chroma_plugin.model.weights import load_checkpoint
from chroma_plugin.training.lessons import SYSTEM, Asked, Heard, answering, energies
from chroma_plugin.training.reasoner import key_of, load_reasoned, reason, save_reasoned
from chroma_plugin.training.replies import saying
from chroma_plugin.training.thinker import ThinkerModule
from tests.miniature import MINIATURE


@pytest.fixture(scope="module")
def model() -> ChromaModel:
    return load_checkpoint(MINIATURE)


@pytest.fixture(scope="module")
def prompt(model: ChromaModel) -> ChatPrompt:
    return ChatPrompt.from_checkpoint(MINIATURE, model.config.audio_token)


def question(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, 14_000).astype(np.float32)


@torch.inference_mode()
def test_states_are_those_from_which_tokens_are_picked(
    model: ChromaModel, prompt: ChatPrompt
) -> None:
    mel, token = LogMel(feature_extractor(MINIATURE)), model.config.audio_token
    turns = [
        Asked(Heard(energies(mel, question(seed)), ""), answer)
        for seed, answer in enumerate(("It is noon.", "It is Rome."))
    ]
    lesson = answering(prompt, token, SYSTEM[0], turns)
    module = ThinkerModule(model.thinker, token).eval()
    ((first, second),) = reason(module, [lesson])
    assert list(first.tokens) == [*prompt.encode("It is noon."), model.config.im_end]

    # the same by the served stack, token by token
    audio = []
    for seed in range(2):
        listener = Listener(mel, model.thinker.audio_tower)
        listener.push(question(seed))
        listener.update(final=True)
        audio.append(listener.embeds)
    x = model.embed_tokens(lesson.ids)
    x[torch.tensor(lesson.ids) == token] = torch.cat(audio)
    cache = KVCache.empty(model.config.text, 1, len(x))
    states = []
    for place in range(len(x)):
        position = torch.tensor([[place]])
        states.append(model.thinker.transformer(x[None, place : place + 1], position, cache)[0, 0])
    for (at, n), one in zip(lesson.told, (first, second), strict=True):
        served = torch.stack(states[at - 1 : at - 1 + n])
        torch.testing.assert_close(torch.from_numpy(one.states).float(), served, atol=0.05, rtol=0)


def test_what_is_said_word_for_word_has_no_question(model: ChromaModel, prompt: ChatPrompt) -> None:
    lesson = saying(prompt, "It is noon.")
    assert model.config.audio_token not in lesson.ids
    expected = [*prompt.system(SYSTEM[0]), *prompt.reply_open, *prompt.encode("It is noon.")]
    assert lesson.ids == [*expected, *prompt.reply_close]


def test_it_comes_back_from_a_file(model: ChromaModel, prompt: ChatPrompt, tmp_path: Path) -> None:
    module = ThinkerModule(model.thinker, model.config.audio_token).eval()
    made = reason(module, [saying(prompt, text) for text in ("It is noon.", "Yes.", "I am well.")])
    path = tmp_path / "reasoned.npy"
    assert load_reasoned(path, "k") is None
    save_reasoned(path, made, "k")
    assert load_reasoned(path, "another") is None
    loaded = load_reasoned(path, "k")
    assert loaded is not None
    for (one,), (other,) in zip(made, loaded, strict=True):
        assert one.tokens == other.tokens and np.array_equal(one.states, other.states)

    np.save(path, np.zeros((2, 96), np.float16))
    with pytest.raises(CheckpointError, match="Delete it"):
        load_reasoned(path, "k")


def test_progress_is_told(model: ChromaModel, prompt: ChatPrompt) -> None:
    module = ThinkerModule(model.thinker, model.config.audio_token).eval()
    told: list[str] = []
    reason(module, [saying(prompt, "Yes.")] * 3, say=told.append)
    assert told == ["reasoned: 3 of 3 conversations"]


def test_a_key_is_of_the_weights() -> None:
    one, two = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert key_of(one) != key_of(two)
    two.load_state_dict(one.state_dict())
    assert key_of(one) == key_of(two)
