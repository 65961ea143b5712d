"""An upload decoded in a process of its own, so that no file can exhaust the server or end it.

A process for each upload: Python with numpy and libsndfile is there after 0.12 s of CPU time and
takes 33 MB (65 MB with a clip of 29 s), and what a file has broken is gone with it. It gets the
clip on its standard input, none of the server's environment, and limits: of memory and CPU time by
the kernel (`resource.setrlimit`; Windows has none, and macOS does not hold to that of memory), of
time and of the length of its answer by the server, everywhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress

import numpy as np

from chroma_plugin.audio import OUTPUT_RATE_HZ, Samples
from chroma_plugin.errors import VoiceError
from chroma_plugin.voice import MAX_SECONDS
from chroma_plugin.voice_clip import MARGIN_S, MAX_CLIP_BYTES, decode_clip

LIMIT_BYTES = 512 << 20
"""Of address space: 110 MB for Python and its libraries, at most 60 MB for a clip."""
LIMIT_S = 60.0
"""For all of it, on a machine that is busy with speech; a clip of 30 s takes a third of a second
of an idle one."""
LIMIT_CPU_S = 10
_ANSWER_BYTES = 1 + 4 * int((MAX_SECONDS + MARGIN_S) * OUTPUT_RATE_HZ)
_GOOD, _BAD = b"+", b"-"
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")


def decode_upload(clip: bytes, *, limit_s: float = LIMIT_S) -> Samples:
    """What `decode_clip` makes of a clip, in a process of its own and within its limits.

    Blocks for about a third of a second; to be called in a thread.

    Raises:
        VoiceError: as `decode_clip`, or it took more memory or time than a clip does.
    """
    if len(clip) > MAX_CLIP_BYTES:
        decode_clip(clip)  # says so, before anything is copied
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "chroma_plugin.voice_upload"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
    )
    killer = threading.Timer(limit_s, process.kill)
    killer.start()
    assert process.stdin is not None and process.stdout is not None
    try:
        with suppress(OSError), process.stdin:
            process.stdin.write(clip)
        answer = process.stdout.read(_ANSWER_BYTES + 1)
    finally:
        killer.cancel()
        process.kill()
        process.stdout.close()
        process.wait()
    kind, rest = answer[:1], answer[1:]
    if kind == _BAD:
        raise VoiceError(rest.decode("utf-8", "replace"))
    if kind != _GOOD or len(answer) > _ANSWER_BYTES or len(rest) % 4:
        raise VoiceError(
            "The clip took more memory or time to decode than a clip of "
            f"{MAX_SECONDS:g} s does. Convert it: `ffmpeg -i FILE out.wav`."
        )
    return np.frombuffer(rest, dtype=np.float32).copy()


def _environment() -> dict[str, str]:
    """What the process needs to find its libraries, and no secret."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    path = os.pathsep.join(place or os.getcwd() for place in sys.path)
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def main() -> None:
    """The process: a clip on its standard input, samples or a reason on its standard output."""
    import soundfile  # noqa: F401 (before files and memory are limited)
    import soxr  # noqa: F401

    limit_process(LIMIT_BYTES, LIMIT_CPU_S)
    clip = sys.stdin.buffer.read(MAX_CLIP_BYTES + 1)
    try:
        answer = _GOOD + decode_clip(clip).tobytes()
    except VoiceError as error:
        answer = _BAD + str(error).encode()
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()


def limit_process(memory_bytes: int, cpu_s: int) -> None:
    """Bounds what this process may take from now on, as far as its system knows how."""
    try:
        import resource
    except ImportError:  # Windows: time and answer are limited by who waits for them
        return
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        with suppress(ValueError, OSError):  # macOS refuses some
            resource.setrlimit(kind, (limit, limit))


if __name__ == "__main__":
    main()
