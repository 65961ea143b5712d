"""The page's audio worklet, block by block in Chromium, without a device and without a clock."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.browser import Page, open_page

pytest.importorskip("websockets")

WORKLET = Path(str(files("chroma_plugin") / "assets" / "page" / "worklet.js")).read_text(
    encoding="utf-8"
)
STAGE = """
// A processor of the worklet at a rate; `told` collects what it posts.
function stage(name, rate) {
  const told = [], made = {};
  class AudioWorkletProcessor {
    constructor() { this.port = {postMessage: (data) => told.push(data)}; }
  }
  const register = (known, processor) => { made[known] = processor; };
  new Function("AudioWorkletProcessor", "registerProcessor", "sampleRate", "currentTime", SOURCE)(
    AudioWorkletProcessor, register, rate, 0);
  return {processor: new made[name](), told};
}
const text = (samples) => {
  let bytes = "";
  for (const byte of new Uint8Array(samples.buffer)) bytes += String.fromCharCode(byte);
  return btoa(bytes);
};
// What the microphone's side makes of a tone.
function capture(rate, hz, seconds) {
  const {processor, told} = stage("capture", rate);
  for (let at = 0; at < seconds * rate; at += 128) {
    const block = Float32Array.from({length: 128}, (_, i) =>
      0.5 * Math.sin(2 * Math.PI * hz * (at + i) / rate));
    processor.process([[block, block]]);
  }
  const pcm = new Int16Array(told.reduce((sum, {pcm}) => sum + pcm.length, 0));
  let end = 0;
  for (const piece of told) { pcm.set(piece.pcm, end); end += piece.pcm.length; }
  return {pcm: text(pcm), levels: told.map(({level}) => level)};
}
// Runs the loudspeaker's side: steps are messages, or numbers of blocks to play.
function playback(rate, steps) {
  const {processor, told} = stage("playback", rate), heard = [];
  for (const step of steps) {
    if (typeof step !== "number") {
      if (step.tone) {
        const {hz, from, count} = step.tone;
        step.pcm = Int16Array.from({length: count}, (_, i) =>
          16000 * Math.sin(2 * Math.PI * hz * (from + i) / 24000));
      }
      processor.take(step);
      continue;
    }
    for (let i = 0; i < step; i++) {
      const block = new Float32Array(128);
      processor.process([], [[block]]);
      heard.push(...block);
    }
  }
  return {heard: text(Float32Array.from(heard)), told};
}
"""


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    async with open_page(tmp_path) as page:
        await page.run(f"var SOURCE = {json.dumps(WORKLET)};\n{STAGE}\n0")
        yield page


def samples(text: str, kind: str) -> NDArray[np.float64]:
    return np.frombuffer(base64.b64decode(text), kind).astype(np.float64)


def noise_db(sound: NDArray[np.float64], rate_hz: int, hz: float) -> float:
    """What is no such tone, below what is, in dB."""
    times = np.arange(len(sound)) / rate_hz
    basis = np.stack([np.sin(2 * np.pi * hz * times), np.cos(2 * np.pi * hz * times)])
    fit = basis.T @ np.linalg.lstsq(basis.T, sound, rcond=None)[0]
    return float(10 * np.log10(np.mean((sound - fit) ** 2) / np.mean(fit**2)))


def tone(item: str, count: int, start: int = 0, hz: float = 440.0) -> dict[str, Any]:
    return {"item": item, "tone": {"hz": hz, "from": start, "count": count}}


async def test_the_microphone_is_heard_as_it_is_at_any_rate(page: Page) -> None:
    for rate in (8000, 16000, 24000, 44100, 48000, 96000):
        got = await page.run(f"capture({rate}, 1000, 1)")
        pcm = samples(got["pcm"], "<i2") / 32767
        assert len(pcm) % 960 == 0 and 23000 < len(pcm) <= 24000
        assert noise_db(pcm[2400:], 24000, 1000) < -55, rate
        assert np.abs(pcm).max() == pytest.approx(0.5, abs=0.02)
        assert got["levels"][10] == pytest.approx(0.5 / 2**0.5, abs=0.01)
    for rate, hz in ((48000, 15000), (44100, 14500)):  # above what 24 kHz can hold: it is gone
        pcm = samples((await page.run(f"capture({rate}, {hz}, 0.5)"))["pcm"], "<i2") / 32767
        assert np.abs(pcm[1200:]).max() < 0.5 * 10 ** (-50 / 20)


async def test_a_reply_is_played_whole_whatever_its_pieces(page: Page) -> None:
    for rate in (24000, 44100, 48000):
        pieces, at = [], 0
        for count in (1, 1920, 7, 3840, 960, 5272):
            pieces.append(tone("a", count, at))
            at += count
        result = await page.run(
            f"playback({rate}, {json.dumps([*pieces, {'end': 'a'}, rate // 64])})"
        )
        heard, told = samples(result["heard"], "<f4"), result["told"]
        assert told[0]["started"] == "a"
        assert told[-1]["finished"] == "a" and told[-1]["gaps"] == 0
        assert told[-1]["played"] == pytest.approx(0.5, abs=0.002)
        assert noise_db(heard[rate // 100 : rate // 100 * 45], rate, 440) < -55
        assert not heard[rate // 100 * 51 :].any()
        played = [report["played"] for report in told if "level" in report]
        assert played == sorted(played) and len(played) > 10


async def test_a_cut_is_soft_and_its_place_is_known(page: Page) -> None:
    cut = [tone("a", 24000), 100, {"clear": 7}, tone("a", 2400, 24000), 100]
    result = await page.run(f"playback(48000, {json.dumps(cut)})")
    heard, told = samples(result["heard"], "<f4"), result["told"]
    (cleared,) = [report for report in told if "cleared" in report]
    last = int(np.flatnonzero(heard)[-1])
    assert (cleared["cleared"], cleared["item"]) == (7, "a")
    assert 100 * 128 < last <= 100 * 128 + 240  # 5 ms, and what came after it is not played
    assert cleared["played"] * 48000 == pytest.approx(last, abs=128)
    assert np.abs(np.diff(heard)).max() < 0.04  # a click would be one of 0.5
    nothing = await page.run('playback(48000, [{"clear": 8}, 1])')
    assert nothing["told"] == [{"cleared": 8, "item": None, "played": 0}]
    twice = await page.run(
        f"playback(48000, {json.dumps([tone('a', 9600), {'clear': 1}, tone('b', 960), 20])})"
    )
    assert [r["started"] for r in twice["told"] if "started" in r] == ["b"]
    asleep = [tone("a", 9600), 9, {"clear": 1}, tone("b", 960), {"end": "b"}, 20]
    told = (await page.run(f"playback(48000, {json.dumps(asleep)})"))["told"]
    assert [next(iter(r)) for r in told if "level" not in r] == [
        "started",
        "cleared",
        "started",
        "finished",
    ]


async def test_a_reply_that_runs_dry_waits_until_more_is_in_hand(page: Page) -> None:
    late = [tone("a", 2400), 60, tone("a", 1200, 2400), 20, tone("a", 2400, 3600), 10]
    result = await page.run(f"playback(48000, {json.dumps([*late, {'end': 'a'}, 80])})")
    heard, told = samples(result["heard"], "<f4"), result["told"]
    silent = np.abs(heard.reshape(-1, 128)).max(axis=1) == 0
    assert not silent[:37].any() and silent[38:80].all()  # 50 ms more are not enough to go on
    assert not silent[80:100].any()
    (finished,) = [report for report in told if "finished" in report]
    assert finished["gaps"] == 1
    assert finished["played"] == pytest.approx(0.25, abs=0.004)
