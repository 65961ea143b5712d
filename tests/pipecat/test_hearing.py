"""Which of a transport's audio belongs to a turn."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pipecat")

from pipecat.frames.frames import InputAudioRawFrame

from chroma_plugin.audio import INPUT_RATE_HZ, Samples, float_to_pcm
from chroma_plugin.errors import AudioError
from chroma_plugin.pipecat.hearing import FADED_S, VOICE_LIMIT_S, Hearing, Phase


def hear(hearing: Hearing, seconds: float, level: float) -> None:
    samples = np.full(round(seconds * INPUT_RATE_HZ), level, np.float32)
    for i in range(0, len(samples), 320):
        pcm = float_to_pcm(samples[i : i + 320])
        hearing.hear(InputAudioRawFrame(pcm, INPUT_RATE_HZ, 1))


def levels(samples: Samples) -> dict[float, float]:
    """Seconds of each level."""
    found, counts = np.unique(np.round(samples, 2), return_counts=True)
    return {
        round(float(level), 2): float(count) / INPUT_RATE_HZ
        for level, count in zip(found, counts, strict=True)
    }


def test_a_turn_begins_a_little_before_vad_was_sure() -> None:
    hearing = Hearing()
    hearing.vad_starts_in(0.4)
    hear(hearing, 5.0, 0.1)
    hearing.voice_started()
    hearing.turn_started()
    assert levels(hearing.take()) == {0.1: pytest.approx(0.7)}
    hear(hearing, 0.5, 0.2)
    assert levels(hearing.take()) == {0.2: pytest.approx(0.5)}


def test_a_voice_is_kept_until_it_becomes_a_turn() -> None:
    hearing = Hearing()
    hear(hearing, 2.0, 0.1)
    hearing.voice_started()
    hear(hearing, 3.0, 0.2)
    hearing.turn_started()
    assert levels(hearing.take()) == {0.1: pytest.approx(0.5), 0.2: pytest.approx(3.0)}


def test_a_turn_can_be_made_of_a_voice_that_is_silent_again() -> None:
    """The words that make a turn of it come late."""
    hearing = Hearing()
    hear(hearing, 2.0, 0.1)
    hearing.voice_started()
    hear(hearing, 1.0, 0.2)
    hearing.voice_stopped()
    hear(hearing, FADED_S / 2, 0.3)
    assert hearing.phase is Phase.FADED
    hearing.turn_started()
    heard = levels(hearing.take())
    assert heard[0.2] == pytest.approx(1.0) and heard[0.3] == pytest.approx(FADED_S / 2)


def test_a_noise_is_forgotten_after_a_while() -> None:
    hearing = Hearing()
    hearing.voice_started()
    hear(hearing, 1.0, 0.2)
    hearing.voice_stopped()
    hear(hearing, FADED_S + 1.0, 0.3)
    assert hearing.phase is Phase.IDLE
    hearing.turn_started()
    assert levels(hearing.take()) == {0.3: pytest.approx(0.5)}


def test_two_words_of_one_turn() -> None:
    hearing = Hearing()
    for _ in range(2):
        hearing.voice_started()
        hear(hearing, 0.5, 0.2)
        hearing.voice_stopped()
        hear(hearing, 0.5, 0.3)
    hearing.turn_started()
    assert levels(hearing.take()) == {0.2: pytest.approx(1.0), 0.3: pytest.approx(1.0)}


def test_an_endless_voice_is_bounded() -> None:
    hearing = Hearing()
    hearing.voice_started()
    hear(hearing, 2 * VOICE_LIMIT_S, 0.2)
    assert len(hearing.take()) == VOICE_LIMIT_S * INPUT_RATE_HZ


def test_who_guards_is_noticed() -> None:
    hearing = Hearing()
    hear(hearing, 1.0, 0.1)
    assert hearing.unguarded_s == pytest.approx(1.0)
    hearing.vad_starts_in(0.2)
    hear(hearing, 1.0, 0.1)
    assert hearing.unguarded_s == pytest.approx(1.0)


def test_half_a_sample_is_refused() -> None:
    with pytest.raises(AudioError):
        Hearing().hear(InputAudioRawFrame(b"\0\0\0", INPUT_RATE_HZ, 1))
