"""Voices kept ready: so many and so many bytes, none that a reply holds is lost to it, and codes
that a kept voice brings along."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from chroma_plugin.config import EngineConfig
from chroma_plugin.engine.runner import ReadyVoice
from chroma_plugin.engine.voices import REPLY_POSITIONS, VoiceShelf, codec_identity
from chroma_plugin.errors import VoiceError
from chroma_plugin.model.codec import Codec, CodecConfig
from chroma_plugin.model.layers import KVCache
from chroma_plugin.model.prompt import VoicePrompt
from chroma_plugin.voice import Voice
from chroma_plugin.voice_keeping import Codes, KeptVoice

POSITIONS = 10
BYTES = POSITIONS * (2 * 4 + 4 + 8)  # of a voice of this length: keys and values, embeds, codes
CODEC = "c" * 32


class FakeRunner:
    """Makes voices out of nothing, as long as their names say, and remembers whose."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.given: list[Any] = []
        self.model = SimpleNamespace(
            codec=SimpleNamespace(num_codebooks=1),
            config=SimpleNamespace(codebook_size=16),
            device=torch.device("cpu"),
        )

    def prepare_voice(self, voice: Voice, codes: torch.Tensor | None = None) -> ReadyVoice:
        name, length = voice.name[0], int(voice.name[1:] or POSITIONS)
        self.made.append(name)
        self.given.append(None if codes is None else codes.tolist())
        keys = torch.full((1, 1, 1, length, 1), float(ord(name)))
        codes = torch.zeros(1, length, dtype=torch.int64)
        return ReadyVoice(VoicePrompt(codes, torch.zeros(length, 1)), KVCache(keys, keys.clone()))


def voice(name: str) -> Voice:
    return Voice(name, f"I am {name}.", np.zeros(4, np.float32))


def shelf(**settings: Any) -> tuple[VoiceShelf, FakeRunner]:
    runner = FakeRunner()

    def at_once(command: Callable[[], None]) -> None:
        command()

    config = EngineConfig(**settings)
    return VoiceShelf(runner, config, CODEC, at_once), runner  # type: ignore[arg-type]


def test_a_voice_is_computed_once_and_known_by_what_it_is() -> None:
    voices, runner = shelf()
    ready = voices.ready(voice("a"))
    assert ready.nbytes == BYTES
    assert voices.ready(voice("a")) is ready
    assert (runner.made, len(voices), voices.nbytes) == (["a"], 1, BYTES)


@pytest.mark.parametrize(
    "bound",
    [
        {"voice_cache": 2},
        {"voice_cache_mb": 2 * BYTES / 1e6},
        {"voice_cache_mb": 2.5 * BYTES / 1e6},
    ],
)
def test_the_least_recently_used_goes_first(bound: dict[str, Any]) -> None:
    voices, runner = shelf(**bound)
    for name in "abac":
        voices.ready(voice(name))  # c takes b's place
    assert (len(voices), voices.nbytes) == (2, 2 * BYTES)
    for name in "acb":
        voices.ready(voice(name))
    assert runner.made == ["a", "b", "c", "b"]
    assert (len(voices), voices.nbytes) == (2, 2 * BYTES)


def test_a_long_voice_takes_the_place_of_several() -> None:
    voices, runner = shelf(voice_cache_mb=4 * BYTES / 1e6)
    for name in ("a", "b", "c", "d", "e30", "d", "e30"):
        voices.ready(voice(name))
    assert runner.made == ["a", "b", "c", "d", "e"]
    assert (len(voices), voices.nbytes) == (2, 4 * BYTES)


@pytest.mark.parametrize("bound_mb", [0.0, 1.5 * BYTES / 1e6])
def test_a_voice_beyond_the_bound_is_usable_and_not_kept(bound_mb: float) -> None:
    voices, runner = shelf(voice_cache_mb=bound_mb)
    voices.ready(voice("a"))
    before = len(voices), voices.nbytes
    big = voices.ready(voice("z20"))
    assert big.positions == 20 and float(big.prefix.k.min()) == ord("z")
    assert (len(voices), voices.nbytes) == before  # and takes nobody's place
    voices.ready(voice("z20"))
    assert runner.made == ["a", "z", "z"]


def test_a_voice_that_a_reply_holds_stays_valid() -> None:
    voices, runner = shelf(voice_cache=1)
    held = voices.ready(voice("a"))
    voices.ready(voice("b"))
    assert runner.made == ["a", "b"]
    assert torch.equal(held.prefix.k, torch.full((1, 1, 1, POSITIONS, 1), float(ord("a"))))
    again = voices.ready(voice("a"))
    assert again is not held
    assert (len(voices), voices.nbytes) == (1, BYTES)


def test_a_voice_that_leaves_no_room_is_refused_and_not_kept() -> None:
    voices, _ = shelf(backbone_positions=64)
    with pytest.raises(VoiceError, match="takes 33 positions"):
        voices.ready(voice("a33"))
    assert (len(voices), voices.nbytes) == (0, 0)
    voices.ready(voice(f"a{64 - REPLY_POSITIONS}"))
    assert len(voices) == 1


# -- voices that are kept somewhere ----------------------------------------------------------


def kept(codes: dict[str, Codes]) -> tuple[KeptVoice, list[tuple[str, Codes]]]:
    written: list[tuple[str, Codes]] = []
    return KeptVoice(codes, lambda codec, made: written.append((codec, made))), written


def test_codes_that_come_along_are_used_and_new_ones_given_back() -> None:
    keeper, written = kept({CODEC: np.array([[7]])})
    voices, runner = shelf()
    voices.ready(voice("a").kept_by(keeper))
    assert (runner.given, written) == ([[[7]]], [])

    keeper, written = kept({})
    voices.ready(voice("b").kept_by(keeper))
    ((codec, made),) = written
    assert (runner.given[-1], codec, made.shape) == (None, CODEC, (1, POSITIONS))
    voices.ready(voice("b").kept_by(keeper))
    assert len(written) == 1


@pytest.mark.parametrize(
    "codes",
    [
        {"d" * 32: np.array([[7]])},
        {CODEC: np.array([[7, 7]])},
        {CODEC: np.array([[7], [7]])},
        {CODEC: np.array([[16]])},
        {CODEC: np.array([[-1]])},
    ],
    ids=["another codec", "another length", "another depth", "no code", "below"],
)
def test_codes_that_are_not_this_codecs_of_this_clip_are_not_used(codes: dict[str, Codes]) -> None:
    keeper, written = kept(codes)
    voices, runner = shelf()
    voices.ready(voice("a").kept_by(keeper))
    assert runner.given == [None]
    assert [codec for codec, _ in written] == [CODEC]


def test_a_voice_that_is_deleted_leaves_the_shelf_and_is_refused() -> None:
    keeper, _ = kept({})
    voices, runner = shelf()
    held = voice("a").kept_by(keeper)
    voices.ready(held)
    voices.ready(held)
    voices.ready(voice("b"))
    keeper.end()
    assert (len(voices), voices.nbytes) == (1, BYTES)
    with pytest.raises(VoiceError, match="was deleted"):
        voices.ready(held)
    voices.ready(voice("b"))
    assert runner.made == ["a", "b"]


def test_a_codec_is_known_by_what_encodes() -> None:
    config = CodecConfig(num_filters=8, hidden_size=32, codebook_dim=16, upsample_groups=32)

    def codec() -> Codec:
        torch.manual_seed(0)
        made = Codec(config)
        made.finalize()
        return made

    first = codec_identity(codec())
    assert first == codec_identity(codec())
    assert len(first) == 32 and set(first) <= set("0123456789abcdef")
    speaks, hears, searches = codec(), codec(), codec()
    next(speaks.decoder.parameters()).add_(1e-3)
    next(hears.encoder.parameters()).add_(1e-3)
    next(searches.quantizer.buffers()).add_(1e-3)
    assert codec_identity(speaks) == first
    assert len({first, codec_identity(hears), codec_identity(searches)}) == 3
