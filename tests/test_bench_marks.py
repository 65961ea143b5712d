"""`chroma-plugin bench watermark`, on a short recording."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import soundfile
from typer.testing import CliRunner

from chroma_plugin.audio import OUTPUT_RATE_HZ
from chroma_plugin.bench import marks
from chroma_plugin.bench.cli import app
from chroma_plugin.errors import ChromaError
from chroma_plugin.voice import Voice


def test_it_tells_what_was_found_and_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: marks.ways()[name] for name in ("untouched", "mu-law 8 kHz")}
    monkeypatch.setattr(marks, "ways", lambda: few)
    clip = Voice.default().samples[: 3 * OUTPUT_RATE_HZ]
    soundfile.write(tmp_path / "clip.wav", clip, OUTPUT_RATE_HZ)
    done = CliRunner().invoke(app, ["watermark", str(tmp_path / "clip.wav")])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout.splitlines()[-1])
    for way in few:
        one, two = figures["found"][way]["1 s"], figures["found"][way]["2 s"]
        assert one["pieces"] == one["found"] == 2 and two["found"] == 1
        assert one["mistaken"] == two["mistaken"] == 0
    assert figures["streamed_error"] < 1e-5
    assert figures["seam_step"] <= 1.0
    assert 0 < figures["distance_db"] < 3.0
    assert "found/pieces" in done.stdout


def test_ways_keep_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks.shutil, "which", lambda name: None)
    clip = Voice.default().samples[:OUTPUT_RATE_HZ]
    for name, way in marks.ways().items():
        assert abs(len(way(clip)) - len(clip)) < 0.011 * len(clip), name
    assert "MP3 48 kbit/s" not in marks.ways()


def test_a_codec_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\necho no such codec >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ChromaError, match="no such codec"):
        marks.ways()["MP3 48 kbit/s"](Voice.default().samples[:4800])
