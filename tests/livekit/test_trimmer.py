"""What of a microphone's sound is worth hearing."""

from __future__ import annotations

import numpy as np
import pytest

from chroma_plugin.audio import Samples
from chroma_plugin.livekit.trimmer import AFTER_S, BEFORE_S, Trimmer
from tests.livekit.stage import noise, silence, tone

RATE = 16_000


def heard_s(trimmer: Trimmer, samples: Samples, step: int = 800) -> float:
    pieces = [trimmer.push(samples[i : i + step]) for i in range(0, len(samples), step)]
    return sum(map(len, pieces)) / RATE


def test_silence_is_not_heard() -> None:
    assert heard_s(Trimmer(), silence(30, RATE)) == 0


def test_speech_is_heard_with_what_came_before_and_after() -> None:
    sound = np.concatenate([silence(5, RATE), tone(1, RATE), silence(5, RATE)])
    assert heard_s(Trimmer(), sound) == pytest.approx(1 + BEFORE_S + AFTER_S, abs=0.1)


def test_the_samples_are_those_that_were_said() -> None:
    trimmer, said = Trimmer(), tone(1.0, RATE)
    heard = np.concatenate([trimmer.push(said[i : i + 333]) for i in range(0, len(said), 333)])
    heard = np.concatenate([heard, trimmer.end()])
    assert np.array_equal(heard, said)


def test_a_pause_gets_short() -> None:
    sound = np.concatenate([tone(1, RATE), silence(8, RATE), tone(1, RATE)])
    assert heard_s(Trimmer(), sound) == pytest.approx(2 + BEFORE_S + AFTER_S, abs=0.15)


@pytest.mark.parametrize("loudness", [0.0001, 0.001, 0.01])
def test_steady_noise_is_not_heard_and_speech_over_it_is(loudness: float) -> None:
    trimmer = Trimmer()
    heard_s(trimmer, noise(40, loudness, RATE))
    assert not trimmer.open
    assert heard_s(trimmer, noise(1, loudness, RATE) + tone(1, RATE)) > 0.9


def test_soft_speech_is_heard() -> None:
    assert heard_s(Trimmer(), tone(2, RATE, 0.005)) > 1.9


def test_one_click_is_not_heard() -> None:
    sound = silence(3, RATE)
    sound[RATE] = 1.0
    assert heard_s(Trimmer(), sound) == 0


def test_a_turn_in_which_the_gate_stayed_shut() -> None:
    trimmer = Trimmer()
    assert heard_s(trimmer, noise(6, 0.0005, RATE)) == 0
    assert len(trimmer.end()) / RATE == pytest.approx(4, abs=0.05)
    assert len(trimmer.end()) == 0
    heard_s(trimmer, silence(6, RATE))
    assert len(trimmer.end()) == 0


def test_what_is_known_of_the_noise_stays() -> None:
    trimmer = Trimmer()
    heard_s(trimmer, noise(40, 0.01, RATE))
    trimmer.reset()
    assert heard_s(trimmer, noise(5, 0.01, RATE)) == 0


def test_a_noise_without_a_word_is_told() -> None:
    trimmer = Trimmer()
    heard_s(trimmer, np.concatenate([tone(0.1, RATE), silence(5, RATE)]))
    assert not trimmer.noise_only
    heard_s(trimmer, silence(6, RATE))
    assert trimmer.noise_only
    trimmer.reset()
    heard_s(trimmer, np.concatenate([tone(1.0, RATE), silence(15, RATE)]))
    assert not trimmer.noise_only  # whoever holds a button may think for long
