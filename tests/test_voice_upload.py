"""Uploads in a process of their own: its limits, its answers, and the server beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chroma_plugin import voice_upload
from chroma_plugin.errors import VoiceError
from chroma_plugin.voice import Voice
from chroma_plugin.voice_clip import decode_clip
from chroma_plugin.voice_upload import LIMIT_BYTES, decode_upload, limit_process
from tests.test_voice_clip import HOSTILE, hour, sound

CLIP = Voice.default()


def python(code: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=voice_upload._environment(),
        input=given,
        capture_output=True,
        text=True,
    )


def test_a_clip_is_the_same_whoever_decodes_it() -> None:
    clip = sound(form="MP3")
    samples = decode_upload(clip)
    assert samples.dtype == np.float32
    assert np.array_equal(samples, decode_clip(clip))
    samples[0] = 0.0  # the reader's own


@pytest.mark.parametrize("name", ["nothing", "too big", "half a flac", "an hour of silence"])
def test_reasons_come_through(name: str) -> None:
    clip, reason = HOSTILE[name]
    with pytest.raises(VoiceError, match=reason):
        decode_upload(clip)


def test_what_takes_too_long_is_killed() -> None:
    with pytest.raises(VoiceError, match="more memory or time"):
        decode_upload(sound(), limit_s=0.0)


@pytest.mark.parametrize(
    "answer",
    ["b''", "b'+abc'", "b'?'", f"b'+' + bytes({voice_upload._ANSWER_BYTES + 3})"],
    ids=["none", "part of a sample", "of no kind", "too long"],
)
def test_an_answer_that_is_none_is_not_believed(
    answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, code = (
        subprocess.Popen,
        f"import sys; sys.stdin.buffer.read(); sys.stdout.buffer.write({answer})",
    )

    def another(command: list[str], **settings: Any) -> subprocess.Popen[bytes]:
        return real([sys.executable, "-S", "-c", code], **settings)

    monkeypatch.setattr(subprocess, "Popen", another)
    with pytest.raises(VoiceError, match="more memory or time"):
        decode_upload(sound())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems hold to fewer limits")
def test_the_process_has_its_limits(tmp_path: Path) -> None:
    code = f"""
import os
from chroma_plugin.voice_upload import limit_process
limit_process(400 << 20, 1)
bytearray(100 << 20)
for exhaust in (
    lambda: bytearray(500 << 20),
    lambda: os.write(os.open({str(tmp_path / "x")!r}, os.O_CREAT | os.O_WRONLY), b"x"),
):
    try:
        exhaust()
    except (MemoryError, OSError) as error:
        print(type(error).__name__, error, flush=True)
while True:
    pass
"""
    done = python(code)
    assert done.stdout.splitlines() == ["MemoryError ", "OSError [Errno 27] File too large"]
    assert done.returncode < 0


def test_where_there_are_no_limits_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)  # Windows
    limit_process(1, 1)


def test_the_process_is_told_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMA_API_KEY", "k" * 32)
    monkeypatch.setenv("HF_TOKEN", "hf")
    known = voice_upload._environment()
    assert "PYTHONPATH" in known
    assert not {"CHROMA_API_KEY", "HF_TOKEN", "HOME"} & set(known)


@pytest.mark.skipif(sys.platform == "win32", reason="no figures of a process's memory")
def test_the_memory_of_the_server_stays_flat() -> None:
    code = """
import json, resource, sys
from chroma_plugin.errors import VoiceError
from chroma_plugin.voice_upload import decode_upload
def peak(who): return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
clips = json.load(open(0))
decode_upload(bytes.fromhex(clips[0]))
before, refused = peak(resource.RUSAGE_SELF), 0
for clip in clips[1:]:
    try: decode_upload(bytes.fromhex(clip))
    except VoiceError: refused += 1
print(json.dumps([peak(resource.RUSAGE_SELF) - before, peak(resource.RUSAGE_CHILDREN), refused]))
"""
    wide = np.zeros((8000 * 600, 2), np.int16)
    clips = [sound(), hour("FLAC"), sound(wide, 96_000, "FLAC"), HOSTILE["a lie about channels"][0]]
    done = python(code, json.dumps([clip.hex() for clip in clips]))
    grown, child, refused = json.loads(done.stdout)
    assert refused == 3
    assert grown < 8 << 20  # an hour of samples would be 115 MB
    assert child < LIMIT_BYTES // 2
