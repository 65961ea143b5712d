"""Silero VAD in numpy: how likely 32 ms of sound are speech. Knows no turns and no protocol.

The network is small (0.3 million weights), so it needs neither ONNX nor torch. Its weights lie in
`assets/silero_vad.safetensors`; a test holds it to what onnxruntime makes of the same weights.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files

import numpy as np
from safetensors.numpy import load_file

from chroma_plugin.audio import Samples

WINDOW_SAMPLES = 512
"""What is judged at a time: 32 ms at 16 kHz."""
WINDOW_MS = 32.0
CONTEXT_SAMPLES = 64
"""So much of the window before is seen again."""
_STRIDES = (1, 2, 2, 1)
_HIDDEN = 128


@cache
def _weights() -> dict[str, Samples]:
    with as_file(files("chroma_plugin") / "assets" / "silero_vad.safetensors") as path:
        weights: dict[str, Samples] = load_file(path)
    weights["stft"] = weights["stft"][:, 0]  # [258, 256]
    for name in (f"encoder.{i}.weight" for i in range(4)):  # [out, in, 3] to [out, 3 x in]
        weights[name] = np.concatenate(list(weights[name].transpose(2, 0, 1)), axis=1)
    weights["lstm"] = np.concatenate([weights["lstm.input"], weights["lstm.state"]], axis=1)
    weights["head.weight"] = weights["head.weight"].ravel()
    return weights


class SileroVad:
    """One stream of sound, judged window by window."""

    def __init__(self) -> None:
        self._weights = _weights()
        self.reset()

    def reset(self) -> None:
        """Forgets what was heard: to be called where nobody speaks, now and then, because long
        noise makes the network deaf to what follows."""
        self._state = np.zeros(_HIDDEN, np.float32)
        self._cell = np.zeros(_HIDDEN, np.float32)
        self._context = np.zeros(CONTEXT_SAMPLES, np.float32)

    def probability(self, window: Samples) -> float:
        """How likely the next window is speech.

        Args:
            window: float32 `[512]`, mono at 16 kHz, in [-1, 1].

        Returns:
            From 0 to 1.
        """
        weights = self._weights
        heard = np.concatenate([self._context, window])
        self._context = heard[-CONTEXT_SAMPLES:]
        heard = np.concatenate([heard, heard[-2 : -2 - CONTEXT_SAMPLES : -1]])  # mirrored
        frames = np.stack([heard[start : start + 256] for start in range(0, 512, 128)], axis=1)
        spectrum = weights["stft"] @ frames  # [258, 4]: real parts over imaginary ones
        spectrum *= spectrum
        x: Samples = np.sqrt(spectrum[:129] + spectrum[129:])
        for i, stride in enumerate(_STRIDES):
            x = _conv(x, weights[f"encoder.{i}.weight"], weights[f"encoder.{i}.bias"], stride)
        gates = weights["lstm"] @ np.concatenate([x[:, 0], self._state]) + weights["lstm.bias"]
        new = np.tanh(gates[2 * _HIDDEN : 3 * _HIDDEN])
        open_ = _sigmoid(gates)
        into, forget, out = open_[:_HIDDEN], open_[_HIDDEN : 2 * _HIDDEN], open_[-_HIDDEN:]
        self._cell = forget * self._cell + into * new
        self._state = out * np.tanh(self._cell)
        logit = weights["head.weight"] @ np.maximum(self._state, 0) + weights["head.bias"]
        return float(_sigmoid(logit)[0])


def _conv(x: Samples, weight: Samples, bias: Samples, stride: int) -> Samples:
    """A convolution of three taps with a rectifier: `[in, time]` to `[out, time / stride]`."""
    length = x.shape[1]
    padded = np.zeros((len(x), length + 2), np.float32)
    padded[:, 1:-1] = x
    taps = [padded[:, tap : tap + length : stride] for tap in range(3)]
    made: Samples = weight @ np.concatenate(taps)  # [3 x in, time / stride]
    made += bias[:, None]
    np.maximum(made, 0, out=made)
    return made


def _sigmoid(x: Samples) -> Samples:
    return np.asarray(1 / (1 + np.exp(-x)), np.float32)
