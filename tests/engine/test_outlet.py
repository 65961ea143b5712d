"""From frames to chunks."""

from __future__ import annotations

import numpy as np

from chroma_plugin.audio import FRAME_SAMPLES, Samples, pcm_to_float
from chroma_plugin.engine.outlet import KEPT_SILENCE_FRAMES, Outlet
from chroma_plugin.reply import AudioChunk

LOUD = np.full(FRAME_SAMPLES, 0.5, np.float32)
SILENT = np.zeros(FRAME_SAMPLES, np.float32)


def push_all(outlet: Outlet, frames: list[Samples], **options: bool) -> list[AudioChunk]:
    chunks = [outlet.push(f, text_ended=options.get("text_ended", False)) for f in frames]
    return [c for c in chunks if c is not None]


def frames_of(chunks: list[AudioChunk]) -> list[int]:
    return [len(c.pcm) // 2 // FRAME_SAMPLES for c in chunks]


def test_the_first_frame_goes_at_once_and_chunks_grow() -> None:
    chunks = push_all(Outlet(), [LOUD] * 20)
    assert frames_of(chunks) == [1, 1, 2, 2, 4, 4, 4]
    assert [c.start_ms for c in chunks] == [0, 80, 160, 320, 480, 800, 1120]


def test_a_stream_about_to_run_dry_does_not_wait_for_a_full_chunk() -> None:
    outlet = Outlet()
    push_all(outlet, [LOUD] * 6)
    chunk = outlet.push(LOUD, text_ended=False, hurry=True)
    assert chunk is not None and frames_of([chunk]) == [1]


def test_what_is_left_comes_at_the_end() -> None:
    outlet = Outlet()
    push_all(outlet, [LOUD] * 3)
    last = outlet.finish()
    assert last is not None and last.start_ms == 160 and frames_of([last]) == [1]
    assert outlet.finish() is None
    assert outlet.out_ms == 240


def test_a_pause_inside_the_speech_stays() -> None:
    outlet = Outlet()
    chunks = push_all(outlet, [LOUD, SILENT, SILENT], text_ended=False)
    assert frames_of(chunks) == [1, 1]
    outlet = Outlet()
    chunks = push_all(outlet, [LOUD, *[SILENT] * 6, LOUD], text_ended=True)
    assert sum(frames_of(chunks)) == 8  # held back until sound followed


def test_silence_at_the_end_is_trimmed() -> None:
    outlet = Outlet()
    chunks = push_all(outlet, [LOUD] + [SILENT] * 30, text_ended=True)
    assert frames_of(chunks) == [1]
    last = outlet.finish()
    assert last is not None and frames_of([last]) == [KEPT_SILENCE_FRAMES]
    assert outlet.out_ms == (1 + KEPT_SILENCE_FRAMES) * 80


def test_a_cut_is_faded_and_an_end_is_not() -> None:
    outlet = Outlet()
    outlet.push(LOUD, text_ended=False)
    chunk = outlet.push(LOUD, text_ended=False, last=True)
    assert chunk is not None
    samples = pcm_to_float(chunk.pcm)
    assert samples[-1] == 0.0 and np.all(np.diff(samples[-120:]) < 0)
    assert np.allclose(samples[:-120], 0.5, atol=1e-4)
    ended = Outlet()
    push_all(ended, [LOUD] * 3)
    last = ended.finish()
    assert last is not None and pcm_to_float(last.pcm)[-1] > 0.49


def test_a_cut_in_silence_needs_no_fade() -> None:
    outlet = Outlet()
    outlet.push(LOUD, text_ended=True)
    outlet.push(SILENT, text_ended=True)
    chunk = outlet.push(SILENT, text_ended=True, last=True)
    assert chunk is not None and frames_of([chunk]) == [2]
    assert outlet.finish() is None
