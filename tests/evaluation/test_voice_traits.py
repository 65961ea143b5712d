"""Statistics of a voice: the pitch that was sung, whatever the level and the silence around it."""

from __future__ import annotations

import numpy as np
import pytest

from chroma_plugin.audio import OUTPUT_RATE_HZ
from chroma_plugin.errors import AudioError
from chroma_plugin.evaluation.voice_traits import CEPSTRA, MIN_S, TRAITS, long_enough, traits
from tests.evaluation.conftest import vowels

PITCH = 4 * (CEPSTRA - 1)
"""Where its quantiles stand, then its spread, its step, two of periodicity and the voiced share."""


@pytest.mark.parametrize("hz", [75.0, 110.0, 200.0, 380.0])
def test_the_pitch_is_that_which_is_sung(hz: float) -> None:
    told = traits(vowels(1.6, hz, 1.0, seed=3))
    assert told.shape == (TRAITS,) and np.isfinite(told).all()
    assert told[PITCH + 2] == pytest.approx(np.log2(hz / 100), abs=0.1)
    assert (np.diff(told[PITCH : PITCH + 5]) >= 0).all()
    assert told[-1] > 0.8 and told[-3] > 0.8


def test_a_longer_tract_and_another_pitch_are_told_by_different_traits() -> None:
    told = [
        traits(vowels(1.6, hz, tract, seed=3)) for hz, tract in ((140, 1), (140, 1.25), (175, 1))
    ]
    timbre = [np.linalg.norm(t[: CEPSTRA - 1] - told[0][: CEPSTRA - 1]) for t in told]
    pitch = [abs(t[PITCH + 2] - told[0][PITCH + 2]) for t in told]
    assert timbre[1] > 2 * timbre[2] and pitch[2] > 10 * pitch[1]


@pytest.mark.parametrize("silence", [(12_000, 12_000), (0, 31_111), (7_777, 100_000)])
def test_level_and_silence_do_not_count(silence: tuple[int, int]) -> None:
    clip = vowels(1.6, 140.0, 1.0, seed=3)
    told = traits(clip)
    assert traits(0.1 * clip) == pytest.approx(told, abs=1e-3)
    assert np.abs(traits(np.pad(clip, silence)) - told).max() < 0.15


def test_a_whisper_has_traits_too() -> None:
    rng = np.random.default_rng(0)
    told = traits((0.05 * rng.normal(size=24_000)).astype(np.float32))
    assert np.isfinite(told).all() and told[-1] < 0.1


def test_what_is_too_short_or_silent_is_refused() -> None:
    enough = np.ones(round(MIN_S * OUTPUT_RATE_HZ), np.float32)
    assert long_enough(enough) is enough
    with pytest.raises(AudioError, match=r"0\.40 s of speech tell no voice; 0\.4 s are needed"):
        long_enough(enough[:-1])
    with pytest.raises(AudioError, match="silent"):
        traits(np.zeros(24_000, np.float32))
    with pytest.raises(AudioError, match="silent"):
        traits(np.full(24_000, 1e-6, np.float32))
