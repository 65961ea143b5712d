"""The benchmarks: each verb in its shortest form, and the arithmetic behind their figures."""

from __future__ import annotations

import asyncio
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import chroma_plugin
from chroma_plugin import cli
from chroma_plugin.audio import OUTPUT_RATE_HZ, Samples
from chroma_plugin.bench import sizes as sizes_module
from chroma_plugin.bench.hearing import Heard, Playback, StepClock, first_sound, speech
from chroma_plugin.bench.load import LoadPlan, Tally, largest, run_load
from chroma_plugin.bench.report import percentile, spread
from chroma_plugin.bench.sizes import Setup, random_model, sizes
from chroma_plugin.bench.soak import Soaked, SoakPlan, slope
from chroma_plugin.engine.engine import EngineStats
from chroma_plugin.engine.worker import Worker
from chroma_plugin.errors import ConfigError
from chroma_plugin.model.codec import CodecConfig
from chroma_plugin.model.memory import weight_bytes

FACTS = {
    "bench", "commit", "version", "date", "device", "threads", "torch_version", "python", "dtype",
    "size", "weights", "parameters", "seed", "settings", "figures", "memory", "violations",
}  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["bench", *(str(a) for a in arguments)])


def figures(result: Result) -> dict[str, Any]:
    """The line of JSON of a run that went well."""
    assert result.exit_code == 0, result.output
    line = json.loads(result.stdout.splitlines()[-1])
    assert line.keys() == FACTS
    assert line["memory"]["rss_mb"] > 1
    assert line["threads"] == 1
    found: dict[str, Any] = line["figures"]
    return found


# -- arithmetic ------------------------------------------------------------------------------


def test_percentiles() -> None:
    values = [float(v) for v in range(101)]
    random.Random(0).shuffle(values)
    assert [percentile(values, p) for p in (0, 50, 95, 99, 100)] == [0, 50, 95, 99, 100]
    assert percentile([1.0, 2.0], 50) == 1.5
    assert percentile([3.0], 99) == 3.0
    assert percentile([], 50) is None
    assert spread([]) == {"p50": None, "p95": None, "p99": None, "max": None, "count": 0}


def noise(frames: int) -> Samples:
    return np.full(frames * 1920, 0.1, np.float32)


def test_an_underrun_is_counted_when_the_playback_runs_dry() -> None:
    play = Playback()
    play.feed(noise(1), 10.0)  # plays until 10.08
    play.feed(noise(2), 10.05)  # until 10.24
    assert play.underruns_s == []
    assert play.heard_s(10.12) == pytest.approx(0.12)
    play.feed(noise(1), 10.30)  # 60 ms late; until 10.38
    play.feed(noise(1), 10.38)  # just in time
    assert play.underruns_s == pytest.approx([0.06])
    assert play.ends_s == pytest.approx(10.46)
    assert play.first_s == 10.0
    # 240 ms had come before the late piece: a playback from 10.06 on would have had no gap
    assert play.playable_s == pytest.approx(10.06)
    assert play.heard_s(99.0) == pytest.approx(play.played_s) == pytest.approx(0.4)


def test_leading_silence_is_no_sound() -> None:
    play = Playback()
    play.feed(np.zeros(1920, np.float32), 5.0)
    assert play.audible_s is None
    half = np.concatenate([np.zeros(960, np.float32), noise(1)[:960]])
    play.feed(half, 5.01)  # its sound is heard when its turn comes, not when it arrives
    assert play.audible_s == pytest.approx(5.0 + 0.08 + 0.04)
    assert first_sound(np.zeros(0, np.float32)) is None
    heard = Heard(asked_s=4.9, playback=play)
    assert heard.after_ms("first_s") == pytest.approx(100)
    assert heard.after_ms("audible_s") == pytest.approx(220)
    assert heard.rtf is None


def test_what_holds() -> None:
    play = Playback()
    play.feed(noise(1), 1.0)
    tally = Tally([Heard(0.9, play)], clock=StepClock([10.0, 20.0]))
    assert tally.holds()
    assert not tally.holds(step_limit_ms=15.0)
    assert not Tally(clock=StepClock([10.0])).holds()  # nobody was answered
    play.feed(noise(1), 2.0)
    assert not tally.holds()
    assert tally.figures()["underrun_longest_ms"] == pytest.approx(920)


@pytest.mark.parametrize("most", [1, 5, 64])
@pytest.mark.parametrize("truth", [0, 1, 2, 3, 7, 31, 64, 100])
def test_the_largest_number_is_found(truth: int, most: int) -> None:
    tried: list[int] = []

    async def holds(number: int) -> bool:
        tried.append(number)
        return number <= truth

    assert asyncio.run(largest(holds, most)) == min(truth, most)
    assert len(set(tried)) == len(tried)
    assert all(1 <= number <= most for number in tried)


def test_memory_that_grows_is_a_violation() -> None:
    assert slope([0, 1, 2], [5, 7, 9]) == pytest.approx(2)
    seconds = [float(s) for s in range(100)]
    left = EngineStats(sessions=0, speaking=0, waiting=0, voices=1, evictions=0)
    flat = Soaked(replies=1, left=left, seconds=seconds, rss_mb=[min(s, 40) for s in seconds])
    assert flat.violations(SoakPlan()) == []
    grown = Soaked(replies=1, left=left, seconds=seconds, rss_mb=seconds)
    assert grown.violations(SoakPlan()) == ["memory grew by 49.0 MB in the second half"]


# -- sizes -----------------------------------------------------------------------------------


def test_the_released_sizes() -> None:
    real = sizes("real")
    text, backbone, depth = real.text, real.backbone, real.depth
    assert (text.layers, text.hidden_size, text.intermediate_size) == (36, 2048, 11008)
    assert (text.heads, text.kv_heads, text.head_dim) == (16, 2, 128)
    assert (text.mrope_section, text.rope_theta) == ((16, 24, 24), 1e6)
    assert (backbone.layers, backbone.heads, backbone.kv_heads) == (16, 32, 8)
    assert (backbone.head_dim, backbone.rope_theta) == (64, 5e5)
    assert (depth.layers, depth.hidden_size, depth.intermediate_size) == (4, 1024, 8192)
    assert real.text_vocabulary == 151_936
    assert CodecConfig.from_dict(dict(real.codec)) == CodecConfig()
    cache = 4 * backbone.layers * backbone.kv_heads * backbone.head_dim
    assert cache == 32_768  # bytes a position in bfloat16
    assert weight_bytes(real, torch.bfloat16) == pytest.approx(10.7e9, rel=0.01)


def test_small_weights_speak_soft_noise() -> None:
    model = random_model(sizes("small"), torch.device("cpu"), torch.float32, seed=3)
    count = sum(p.numel() for p in model.parameters())
    assert 30e6 < count < 60e6
    audio = model.codec.decode(torch.randint(2048, (1, 8, 5)))
    assert 0.01 < float(audio.std()) < 0.2


def test_weights_in_bfloat16_keep_codec_and_rotations_whole() -> None:
    model = random_model(sizes("tiny"), torch.device("cpu"), torch.bfloat16, seed=0)
    assert model.dtype == torch.bfloat16
    assert {p.dtype for p in model.codec.parameters()} == {torch.float32}
    assert model.backbone.transformer.rope.frequencies.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes_module, "megabytes_free", lambda device: 5000.0)
    result = run("latency", "--size", "real", "--device", "cpu")
    assert result.exit_code == 1
    assert "--size real: weights and caches of 1 conversations need about" in result.stderr
    assert "5.0 GB are free. Use --size small" in result.stderr


# -- the verbs -------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["latency", "--help"], ["soak", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom chroma_plugin.cli import main\n"
        f"sys.argv = ['chroma-plugin', 'bench', *{arguments}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'numpy', 'soundfile'}\n"
        "sys.exit(f'loaded: {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)"
    )
    package = Path(chroma_plugin.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=package, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["soak", "--loud"], 2, "--loud"),
        (["dance"], 2, "dance"),
        (["latency", "--size", "huge"], 2, "--size"),
        (["latency", "--turns", "0"], 2, "--turns"),
        (["load", "--size", "small", "--model", "x"], 2, "--size and --model exclude each other"),
        (["load", "--model", "nowhere"], 1, "nowhere: no such folder"),
        (["load", "--device", "tpu"], 2, "device is 'tpu'; use auto, cpu"),
        (["load", "--plot", "none/p.png"], 1, "name a file in a folder that exists"),
        (["sweep", "--together", "1,x"], 2, "give numbers from 1 on"),
        (["sweep", "--together", "", "--most", "0"], 2, "leave nothing to measure"),
    ],
)
def test_what_is_refused(arguments: list[str], code: int, says: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert says in result.stderr
    assert "Traceback" not in result.output


def test_random_weights_of_a_model() -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        Setup(size="tiny", model="chroma-tiny")
    setup = Setup(model="chroma-tiny", random_weights=True, seed=1)
    drawn, packaged = setup.load().model, Setup().load().model
    assert drawn.config.text == packaged.config.text
    assert not torch.equal(drawn.depth.heads, packaged.depth.heads)
    assert setup.weights == "random"


def test_latency(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    result = run("latency", "--turns", 1, "--speech", 0.5, "--reply", 0.4, "--plain-turns", 1,
                 "--threads", 1, "--device", "cpu", "--plot", picture)  # fmt: skip
    found = figures(result)
    for name in ("first_byte_ms", "first_playable_ms", "first_audible_ms", "rtf", "step_ms",
                 "turn_depth_ms", "at_once_prefill_ms", "plain_rtf"):  # fmt: skip
        assert found[name]["p50"] > 0, name
    for name in ("frame_thinker_ms", "frame_backbone_ms", "frame_depth_ms", "frame_codec_ms",
                 "load_s", "warm_up_s", "queued_ratio_at_once_to_early",
                 "rtf_ratio_plain_to_engine", "frame_ratio_plain_to_engine"):  # fmt: skip
        assert found[name] > 0, name
    assert found["plain_frames"] == 5
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "│ first_byte_ms " in result.stdout


def test_load_of_conversations_that_go_on() -> None:
    result = run("load", "-n", 2, "--seconds", 1.5, "--reply", 0.6, "--speech", 0.4,
                 "--threads", 1, "--device", "cpu", "--json")  # fmt: skip
    assert len(result.stdout.splitlines()) == 1  # the table is on stderr
    found = figures(result)
    assert found["replies"] >= 2
    assert found["errors"] == 0
    assert found["first_byte_ms"]["count"] >= 1
    assert found["step_ms"]["p99"] > 0
    assert {"underruns", "underrun_total_ms", "underrun_longest_ms", "holds"} <= found.keys()
    assert 1 <= found["speaking_at_once"] <= 2
    assert found["plain_rtf"] > 0 and found["frames_ratio_plain_to_engine"] > 0


def test_load_at_a_rate() -> None:
    result = run("load", "-n", 2, "--rate", 4, "--seconds", 1, "--reply", 0.3, "--speech", 0.4,
                 "--threads", 1, "--device", "cpu")  # fmt: skip
    found = figures(result)
    assert found["replies"] >= 1
    assert found["conversations_held"] <= found["replies"]


def test_an_engine_without_room_is_an_error_of_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(threads=1, device="cpu")
    config = setup.engine_config(1, queue_timeout_s=0.0)
    monkeypatch.setattr(Setup, "engine_config", lambda *_, **__: config)
    plan = LoadPlan(3, 1.0, rate=12.0, speech_s=(0.2, 0.3), reply_s=2.0)
    tally = asyncio.run(run_load(setup, setup.load(), plan))
    assert tally.errors.keys() == {"EngineBusy"}
    assert not tally.holds()


def test_sweep() -> None:
    result = run("sweep", "--most", 1, "--seconds", 0.5, "--together", "1,2", "--speech", 0.4,
                 "--reply", 0.4, "--threads", 1, "--device", "cpu", "--json")  # fmt: skip
    found = figures(result)
    assert [row["conversations"] for row in found["together"]] == [1, 2]
    assert all(row["ratio"] > 0 and row["frames_only_ratio"] > 0 for row in found["together"])
    assert all(min(row["step_parts_ms"].values()) > 0 for row in found["together"])
    assert found["largest"] in (0, 1)
    assert found["tried"][0]["conversations"] == 1


SOAK = ("soak", "--minutes", 0.05, "--threads", 1, "--device", "cpu", "--json")


def test_a_short_soak_passes() -> None:
    result = run(*SOAK, "--max-growth-mb", 64)
    found = figures(result)
    assert found["replies"] > 3
    assert (found["late"], found["errors"]) == (0, {})
    assert found["left"]["sessions"] == 0


def test_a_leak_fails_a_soak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "end", lambda self, call: None)
    result = run(*SOAK)
    assert result.exit_code == 1, result.output
    line = json.loads(result.stdout)
    assert any("still holds conversations" in violation for violation in line["violations"])
    assert line["figures"]["left"]["sessions"] > 0
    assert "violated: " in result.stderr


def test_speech_has_the_length_that_was_asked_for() -> None:
    assert len(speech(7.3)) == round(7.3 * 16_000)
    assert math.isclose(len(noise(25)) / OUTPUT_RATE_HZ, 2.0)
