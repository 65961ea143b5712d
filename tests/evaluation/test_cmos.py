from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from chroma_plugin.audio import OUTPUT_RATE_HZ, level_dbfs
from chroma_plugin.errors import ConfigError
from chroma_plugin.evaluation.cmos import LEVEL_DBFS, Page, TestPlan, levelled, make_page, spoiled
from chroma_plugin.evaluation.listeners import read_key, read_listener
from tests.browser import chromium
from tests.evaluation.conftest import evaluate, refused, save, vowels

NAMES = ("one", "two", "three", "four")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        save(tmp_path / "pairs" / "ours" / f"{name}.wav", vowels(0.4, 120, 1.0, number))
        save(tmp_path / "pairs" / "theirs" / f"{name}.wav", 0.3 * vowels(0.4, 150, 1.0, number))
        save(tmp_path / "pairs" / "reference" / f"{name}.wav", vowels(0.6, 120, 1.0, number + 9))
    save(tmp_path / "pairs" / "ours" / "alone.wav", vowels(0.4, 120, 1.0, 7))
    return tmp_path / "pairs"


def plan_of(page: Page) -> dict[str, Any]:
    (text,) = re.findall(r'<script id="plan"[^>]*>(.*?)</script>', page.html, re.DOTALL)
    found: dict[str, Any] = json.loads(text)
    return found


def made(folder: Path, **changes: Any) -> Page:
    return make_page(folder, TestPlan(**({"systems": ("ours", "theirs"), "repeats": 2} | changes)))


def test_a_page_holds_everything_and_tells_nothing(folder: Path) -> None:
    page = made(folder)
    plan = plan_of(page)
    assert not re.search(r"ours|theirs|anchor\b|\bpair\b|https?://", json.dumps(plan))
    assert not re.search(r'(src|href)="(?!#)', page.html)
    assert page.left_out == ["alone"] and page.pairs == 4
    kinds = [page.key["trials"][trial["id"]]["kind"] for trial in plan["trials"]]
    assert sorted(kinds) == ["anchor"] * 3 + ["pair"] * 4 + ["repeat"] * 2
    firsts = [page.key["clips"][trial["first"]] for trial in plan["trials"]]
    assert {"ours", "theirs"} <= set(firsts)  # neither system is always the first
    groups = [trial["group"] for trial in plan["trials"]]
    for trial, kind in zip(plan["trials"], kinds, strict=True):
        assert groups.count(trial["group"]) == 1 + (
            "repeat" in [k for g, k in zip(groups, kinds, strict=True) if g == trial["group"]]
        )
        owners = {page.key["clips"][trial[side]] for side in ("first", "second")}
        assert owners == {"ours", "theirs"} or (kind == "anchor" and "spoiled" in owners)


def test_clips_are_all_as_loud(folder: Path) -> None:
    plan, key = plan_of(made(folder)), made(folder).key
    for clip, data in plan["clips"].items():
        assert data.startswith("data:audio/flac;base64,")
        samples, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(data.split(",")[1])))
        assert rate_hz == OUTPUT_RATE_HZ
        if key["clips"][clip] != "spoiled":
            assert level_dbfs(samples.astype(np.float32)) == pytest.approx(LEVEL_DBFS, abs=0.1)
    silence = np.zeros(10, np.float32)
    assert levelled(silence) is silence
    click = np.zeros(24_000, np.float32)
    click[0] = 0.5
    assert np.abs(levelled(click)).max() == pytest.approx(0.98)  # not cut


def test_a_seed_makes_the_same_page(folder: Path) -> None:
    assert made(folder).html == made(folder).html
    assert made(folder).key != made(folder, seed=1).key


def test_similarity_has_references(folder: Path) -> None:
    page = made(folder, question="similarity")
    plan = plan_of(page)
    owners = {page.key["clips"][trial["reference"]] for trial in plan["trials"]}
    assert owners == {"reference"}
    assert all("reference" not in trial for trial in plan_of(made(folder))["trials"])


def test_anchors_are_plainly_worse() -> None:
    clip = vowels(0.8, 120, 1.0, 1)
    noisy, other = (spoiled(clip, question, 0) for question in ("naturalness", "similarity"))
    assert noisy.shape == clip.shape
    signal, noise = np.mean(clip**2), np.mean((noisy - clip) ** 2)
    assert 10 * np.log10(signal / noise) < 3
    assert len(other) == pytest.approx(len(clip) / 1.35, rel=0.01)


def test_folders_that_cannot_be_used_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        made(folder, systems=("ours", "nobody"))
    with pytest.raises(ConfigError, match="with itself"):
        made(folder, systems=("ours", "ours"))
    shutil.rmtree(folder / "reference")
    with pytest.raises(ConfigError, match="and `reference`"):
        made(folder, question="similarity")
    (folder / "empty").mkdir()
    with pytest.raises(ConfigError, match="no recording of the same name"):
        made(folder, systems=("ours", "empty"))


def test_by_the_command(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    line = evaluate(
        "cmos", "page", folder, "-o", page, "--first", "ours", "--second", "theirs", "--repeats", 2
    )
    assert line["figures"]["trials"] == 9
    assert line["set_aside"] == ["alone: not in every folder"]
    assert read_key(tmp_path / "page.key.json").systems == ("ours", "theirs")
    assert page.stat().st_size == line["figures"]["bytes"]
    assert "in a folder that exists" in refused("cmos", "page", folder, "-o", tmp_path / "x" / "y")


# -- in a browser ----------------------------------------------------------------------------


def session(page: Path, listener: str) -> dict[str, Any]:
    """What came of a session that the page went through by itself."""
    command = [
        chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=20000", "--dump-dom",
        f"{page.resolve().as_uri()}?selftest={listener}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    (outcome,) = re.findall(r'<pre id="outcome">(.*?)</pre>', done.stdout, re.DOTALL) or [""]
    assert outcome, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(outcome)
    return found


def test_a_session_in_chromium(folder: Path, tmp_path: Path) -> None:
    chromium()
    page = made(folder, question="similarity")
    path = tmp_path / "page.html"
    page.write(path)
    key = read_key(tmp_path / "page.key.json")
    orders = {}
    for listener in ("ann", "bob"):
        found = session(path, listener)
        assert found["refused"] == 9  # no answer before both were heard
        assert len(found["seconds"]) == len(key.clips)
        assert all(0.25 < seconds < 0.7 for seconds in found["seconds"].values())
        assert [answer["score"] for answer in found["answers"]] == [i % 7 - 3 for i in range(9)]
        orders[listener] = [answer["trial"] for answer in found["answers"]]
        assert set(orders[listener]) == set(key.trials)
        sides: dict[str, dict[str, Any]] = {}
        for answer in found["answers"]:
            trial = key.trials[answer["trial"]]
            if trial["kind"] == "repeat":
                first = sides[trial["group"]]  # it came before
                assert (first["a"], first["b"]) == (answer["b"], answer["a"])
            sides.setdefault(trial["group"], answer)
        result = tmp_path / f"{listener}.json"
        result.write_text(json.dumps(found))
        read = read_listener(result, key)
        assert (len(read.marks), len(read.anchors), len(read.repeats)) == (4, 3, 2)
    assert orders["ann"] != orders["bob"]
