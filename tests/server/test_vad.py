"""The network in numpy beside onnxruntime's, and what it makes of speech and silence."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chroma_plugin.server.vad import WINDOW_SAMPLES, SileroVad
from tests.contract import question


def windows() -> list[Any]:
    heard = np.concatenate([np.zeros(8000, np.float32), question(), np.zeros(8000, np.float32)])
    count = len(heard) // WINDOW_SAMPLES
    return list(heard[: count * WINDOW_SAMPLES].reshape(count, WINDOW_SAMPLES))


def test_it_is_the_network_that_onnxruntime_runs() -> None:
    onnx = pytest.importorskip("onnxruntime")
    data = pytest.importorskip("pipecat.audio.vad.data")
    model = Path(str(files(data) / "silero_vad.onnx"))
    if not model.exists():
        pytest.skip("this Pipecat brings no Silero VAD")
    reference = onnx.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32)
    vad = SileroVad()
    for window in windows():
        heard = np.concatenate([context, window[None]], axis=1)
        given = {"input": heard, "state": state, "sr": np.array(16000, np.int64)}
        wanted, state = reference.run(None, given)
        context = heard[:, -64:]
        assert vad.probability(window) == pytest.approx(wanted.item(), abs=2e-4)


def test_speech_is_told_from_silence() -> None:
    vad = SileroVad()
    heard = [vad.probability(window) for window in windows()]
    assert max(heard[:15]) < 0.1
    assert np.mean(np.array(heard[18:70]) > 0.5) > 0.6
    assert heard[-1] < 0.2


def test_reset_forgets_everything() -> None:
    vad, fresh = SileroVad(), SileroVad()
    for window in windows()[:40]:
        vad.probability(window)
    vad.reset()
    for window in windows()[20:30]:
        assert vad.probability(window) == fresh.probability(window)
