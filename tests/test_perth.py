"""The mark of resemble-perth: what it is, whether it is found, what is said when it cannot be."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from chroma_plugin.audio import OUTPUT_RATE_HZ, float_to_pcm, pcm_to_float, resample
from chroma_plugin.errors import AudioError, ChromaError
from chroma_plugin.perth import THRESHOLD, Perth, Stretch, marked_runs, taps_of
from chroma_plugin.voice import Voice
from chroma_plugin.watermark import FilterMarker

CLIP = Voice.default().samples


@pytest.fixture(scope="module")
def perth() -> Perth:
    return Perth.load()


@pytest.fixture(scope="module")
def marker(perth: Perth) -> FilterMarker:
    return perth.marker()


def test_the_mark_is_a_filter_below_2_khz(perth: Perth) -> None:
    gains = perth.gains_db()
    assert gains.shape == (128,)
    assert np.abs(gains).min() > 1.2 and np.abs(gains).max() < 3.2
    response = 20 * np.log10(np.abs(np.fft.rfft(taps_of(gains), 12288)))  # a bin: 2 Hz
    assert np.abs(response[:1000]).max() > 1.0
    assert np.abs(response[1100:]).max() < 0.1
    assert np.abs(response[:1000]).max() < np.abs(gains).max() + 0.2


def test_it_is_found_in_what_was_marked_and_only_there(perth: Perth, marker: FilterMarker) -> None:
    after = pcm_to_float(float_to_pcm(marker.stream().push(CLIP)))
    assert perth.confidence(after) > 0.9
    assert perth.confidence(CLIP) < 0.3
    telephone = resample(resample(after, OUTPUT_RATE_HZ, 8000), 8000, OUTPUT_RATE_HZ)
    assert perth.confidence(telephone) > 0.9
    assert perth.confidence(resample(after, OUTPUT_RATE_HZ, 16000), 16000) > 0.9
    assert perth.confidence(after[30_000 : 30_000 + OUTPUT_RATE_HZ]) > 0.9


def test_it_changes_little(marker: FilterMarker) -> None:
    change = marker.stream().push(CLIP) - CLIP
    below_db = 10 * np.log10(np.mean(CLIP**2) / np.mean(change**2))
    assert 12 < below_db < 30


def test_the_detector_says_what_the_package_says(perth: Perth) -> None:
    theirs = pytest.importorskip("perth.perth_net.perth_net_implicit.perth_watermarker")
    judge = theirs.PerthImplicitWatermarker()
    for sound in (CLIP, judge.apply_watermark(CLIP, OUTPUT_RATE_HZ).astype(np.float32)):
        said = float(judge.get_watermark(sound, OUTPUT_RATE_HZ, round=False))
        assert perth.confidence(sound) == pytest.approx(said, abs=0.05)  # pauses apart


def test_a_reply_is_found_among_the_words_of_others(perth: Perth, marker: FilterMarker) -> None:
    other, silence = CLIP[:60_000], np.zeros(3 * OUTPUT_RATE_HZ, np.float32)
    reply = marker.stream().push(CLIP[:96_000])
    recording = np.concatenate([other, silence, reply, other])
    (run,) = marked_runs(perth.search(recording))
    begins_s = (len(other) + len(silence)) / OUTPUT_RATE_HZ
    ends_s = begins_s + len(reply) / OUTPUT_RATE_HZ
    assert abs(run.start_s - begins_s) < 3.0 and abs(run.end_s - ends_s) < 3.0
    assert marked_runs(perth.search(other)) == []
    assert list(perth.search(silence)) == []


def test_stretches_that_touch_are_one() -> None:
    stretches = [
        Stretch(0.0, 3.0, THRESHOLD),
        Stretch(1.5, 4.5, 0.9),
        Stretch(3.0, 6.0, 0.1),
        Stretch(9.0, 12.0, 0.7),
    ]
    assert marked_runs(stretches) == [Stretch(0.0, 4.5, 0.9), Stretch(9.0, 12.0, 0.7)]


def test_what_is_too_short_or_silent(perth: Perth) -> None:
    with pytest.raises(AudioError, match=r"0\.20 s of sound"):
        perth.confidence(CLIP[:4800])
    with pytest.raises(AudioError):
        list(perth.search(CLIP[:4800]))
    assert perth.confidence(np.zeros(OUTPUT_RATE_HZ, np.float32)) == 0.0


def test_a_missing_package_is_told_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ChromaError, match=r"pip install.*--watermark off"):
        Perth.load()


@pytest.mark.parametrize(
    ("held", "about"),
    [
        (None, "there are no weights"),
        (b"not a checkpoint", "cannot be read"),
        ({"step": 1}, "cannot be read"),
        ({"model": {}}, "its weights have no 'encoder"),
    ],
)
def test_other_weights_are_refused(
    held: Any, about: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "perth_net" / "pretrained" / "implicit"
    folder.mkdir(parents=True)
    if isinstance(held, bytes):
        (folder / "perth_net_1.pth.tar").write_bytes(held)
    elif held is not None:
        torch.save(held, folder / "perth_net_1.pth.tar")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ChromaError, match=about):
        Perth.load()


def test_a_mark_that_is_not_found_again_is_refused(
    perth: Perth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perth, "confidence", lambda samples: 0.2)
    with pytest.raises(ChromaError, match="does not find the mark"):
        perth.marker()
