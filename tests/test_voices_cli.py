"""`chroma-plugin voices`, as it is typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import soundfile
from typer.testing import CliRunner

from chroma_plugin.audio import OUTPUT_RATE_HZ
from chroma_plugin.errors import ChromaError, VoiceError
from chroma_plugin.perth import Perth
from chroma_plugin.voice import Voice
from chroma_plugin.voices_cli import NOT_FOUND, app, default_folder

CLIP = Voice.default()


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHROMA_VOICES", str(tmp_path / "voices"))
    path = tmp_path / "clip.wav"
    soundfile.write(path, CLIP.samples, OUTPUT_RATE_HZ)
    return path


def run(*words: Any) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def consented(*words: Any) -> tuple[Any, ...]:
    said = ("--transcript", CLIP.transcript)
    return (*words, *said, "--consent-by", "Ada L.", "--statement", "Use my voice.")


def test_a_voice_from_its_clip_to_its_end(clip: Path, tmp_path: Path) -> None:
    assert "consent cons_" in run(*consented("add", "ada", clip, "--recording", clip))
    listed = run("list")
    assert "ada" in listed and "Ada L." in listed
    run("play", "ada", "-o", tmp_path / "out.wav")
    heard, _ = soundfile.read(tmp_path / "out.wav")
    assert len(heard) == len(CLIP.samples)
    assert "gone" in run("remove", "ada")
    assert "ada" not in run("list")


def test_a_clip_is_checked_with_reasons(clip: Path, tmp_path: Path) -> None:
    assert run("check", clip, "--transcript", CLIP.transcript).startswith("usable: ")
    soundfile.write(tmp_path / "short.wav", CLIP.samples[:24000], OUTPUT_RATE_HZ)
    with pytest.raises(VoiceError, match="at least 3 s"):
        run("check", tmp_path / "short.wav", "--transcript", "One word.")
    with pytest.raises(ChromaError, match="cannot be read"):
        run("check", tmp_path / "missing.wav", "--transcript", "x")


def test_a_voice_that_is_refused_leaves_no_consent(clip: Path) -> None:
    run(*consented("add", "ada", clip))
    with pytest.raises(VoiceError, match="There is a voice"):
        run(*consented("add", "ada", clip))
    assert len(list((default_folder() / "consents").iterdir())) == 1  # the first one


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CHROMA_VOICES", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "chroma-plugin" / "voices"


def test_a_mark_is_looked_for(tmp_path: Path) -> None:
    plain, marked = tmp_path / "plain.wav", tmp_path / "marked.flac"
    soundfile.write(plain, CLIP.samples, OUTPUT_RATE_HZ)
    reply = Perth.load().marker().stream().push(CLIP.samples)
    soundfile.write(marked, reply, OUTPUT_RATE_HZ)
    assert "marked: 0.0 to 6.4 s" in run("detect", marked)
    done = CliRunner().invoke(app, ["detect", str(plain)])
    assert done.exit_code == NOT_FOUND == 3
    assert "no mark found in 6.4 s" in done.output
    with pytest.raises(ChromaError, match="no such file"):
        run("detect", tmp_path / "missing.wav")
