"""What the tests of the evaluations share: a command line, a voice made on the spot, an ASR."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from chroma_plugin import cli
from chroma_plugin.audio import OUTPUT_RATE_HZ, Samples, float_to_pcm, write_wav

ASSETS = Path(str(files("chroma_plugin") / "assets"))
CLIP = ASSETS / "voices" / "default.flac"
TRANSCRIPT = (ASSETS / "voices" / "default.txt").read_text().strip()
QUESTION = ASSETS / "questions" / "capital.flac"

VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480))
"""Formants in Hz (Peterson and Barney, 1952): a, i, u, e."""


def vowels(
    seconds: float, pitch_hz: float, tract: float, seed: int, rate_hz: int = OUTPUT_RATE_HZ
) -> Samples:
    """A voice that sings vowels in an order of its own: pulses through resonances."""
    rng = np.random.default_rng(seed)
    made: list[Any] = []
    for number in range(round(seconds / 0.2)):
        times = np.arange(round(0.2 * rate_hz)) / rate_hz
        hz = pitch_hz * (1 + 0.1 * rng.uniform(-1, 1))
        formants = np.array(VOWELS[int(rng.integers(4))]) * tract
        piece = np.zeros(len(times))
        for harmonic in range(1, int(0.45 * rate_hz / hz)):
            at = harmonic * hz
            gain = sum(1 / (1 + ((at - f) / (60 + 0.05 * f)) ** 2) for f in formants)
            piece += gain / harmonic * np.sin(2 * np.pi * at * times + harmonic)
        made.append(piece * np.hanning(len(times)) ** 0.3 * (1 + 0 * number))
    whole = np.concatenate(made) + rng.normal(0, 1e-3, sum(map(len, made)))
    return np.asarray(whole * 0.1 / np.sqrt(np.mean(whole**2)), np.float32)


def save(path: Path, samples: Samples, rate_hz: int = OUTPUT_RATE_HZ) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, float_to_pcm(samples), rate_hz)
    return path


def evaluate(*arguments: object) -> dict[str, Any]:
    """The line of JSON of an evaluation that went well; the last of what is printed."""
    result = CliRunner().invoke(cli.app, ["eval", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    line: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    assert {"eval", "version", "date", "settings", "figures", "set_aside"} <= line.keys()
    return line


def refused(*arguments: object) -> str:
    """What an evaluation complains of."""
    result = CliRunner().invoke(cli.app, ["eval", *map(str, arguments)])
    assert result.exit_code in (1, 2), result.output
    return result.stderr


@pytest.fixture
def asr(tmp_path: Path) -> str:
    """A command that writes down a recording: what lies beside it as text, or nothing."""
    script = tmp_path / "asr.py"
    script.write_text(
        "import pathlib, sys\n"
        "beside = pathlib.Path(sys.argv[1]).with_suffix('.txt')\n"
        "print(beside.read_text() if beside.exists() else '')\n"
    )
    return f"{shlex.join([sys.executable, '-S', str(script)])} {{audio}}"


Speak = Callable[[Sequence[Any]], list[Any]]
