"""Turns found by a scripted voice activity: the network has tests of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chroma_plugin.server.turns import Speech, SpeechStarted, SpeechStopped, TurnDetector
from chroma_plugin.server.vad import WINDOW_SAMPLES


class Script:
    """Takes a window's first sample for its probability."""

    def __init__(self) -> None:
        self.resets = 0

    def probability(self, window: Any) -> float:
        assert len(window) == WINDOW_SAMPLES
        return float(window[0])

    def reset(self) -> None:
        self.resets += 1


def sound(*likely: float) -> Any:
    return np.repeat(np.array(likely, np.float32), WINDOW_SAMPLES)


def detector(**settings: Any) -> TurnDetector:
    return TurnDetector(**{"vad": Script(), "padding_ms": 64.0, "silence_ms": 96.0} | settings)


def test_a_turn_has_its_padding_and_its_silence() -> None:
    events = list(detector().push(sound(0, 0, 0, 0, 0.9, 0.9, 0.9, 0.9, 0, 0, 0, 0)))
    assert [type(e) for e in events[:2]] == [SpeechStarted, Speech]
    assert events[0] == SpeechStarted(2 * 32.0)  # two windows before the voice
    assert isinstance(events[-1], SpeechStopped)
    assert events[-1].end_ms == 11 * 32.0
    heard = np.concatenate([e.samples for e in events if isinstance(e, Speech)])
    assert len(heard) == (11 - 2) * WINDOW_SAMPLES


def test_pieces_of_any_length_make_the_same_turns() -> None:
    heard = sound(*[0] * 5, *[0.8] * 6, *[0] * 5, *[0.8] * 4, *[0] * 6)
    whole = list(detector().push(heard))
    for step in (100, 333, 1000):
        one = detector()
        pieces = [e for i in range(0, len(heard), step) for e in one.push(heard[i : i + step])]
        assert [repr(e) for e in pieces] == [repr(e) for e in whole]
    assert sum(isinstance(e, SpeechStarted) for e in whole) == 2


def test_a_click_is_no_turn_and_a_pause_ends_none() -> None:
    assert not list(detector().push(sound(0, 0.9, 0.9, 0, 0.9, 0, 0)))
    events = list(detector().push(sound(0.9, 0.9, 0.9, 0, 0, 0.4, 0, 0, 0.9, 0)))
    assert not [e for e in events if isinstance(e, SpeechStopped)]


@pytest.mark.parametrize(("threshold", "turns"), [(0.3, 1), (0.7, 0)])
def test_the_threshold_decides(threshold: float, turns: int) -> None:
    events = list(detector(threshold=threshold).push(sound(*[0.5] * 5)))
    assert sum(isinstance(e, SpeechStarted) for e in events) == turns


def test_a_turn_can_be_ended_by_hand() -> None:
    one = detector()
    list(one.push(np.concatenate([sound(0.9, 0.9, 0.9), np.ones(100, np.float32)])))
    assert one.in_turn
    assert len(one.take_rest()) == 100
    assert not one.in_turn
    assert len(one.take_rest()) == 0
    (started, *_) = one.push(sound(0, 0, 0, 0.9, 0.9, 0.9))
    assert started == SpeechStarted(3 * 32.0 + 100 / 16 + 32.0)


def test_the_network_forgets_long_silence_and_no_speech() -> None:
    script = Script()
    list(detector(vad=script).push(sound(*[0.9] * 200)))
    assert script.resets == 0
    list(detector(vad=script).push(sound(*[0.0] * 130)))
    assert script.resets == 2
