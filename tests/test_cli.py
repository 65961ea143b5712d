"""The command line: what it refuses and how, what it prints, and one whole run."""

from __future__ import annotations

import builtins
import json
import math
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import Result
from typer.testing import CliRunner

import chroma_plugin
from chroma_plugin import cli, talk_cli
from chroma_plugin.config import EngineConfig, SamplingParams
from chroma_plugin.errors import CheckpointError, ConfigError, EngineBusy, EngineError
from chroma_plugin.reply import EndReason, Timings
from tests.miniature import MINIATURE

ASSETS = Path(chroma_plugin.__file__).parent / "assets"
QUESTION = ASSETS / "questions" / "capital.flac"
PCM = (np.sin(np.arange(24_000) * 0.05) * 8_000).astype("<i2").tobytes()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


class FakeTalk:
    """Stands in for engine and pipeline; writes down what it was asked."""

    def __init__(self) -> None:
        self.text, self.pcm = "The capital is Paris.", PCM
        self.said = ""
        self.error: BaseException | None = None
        self.config: EngineConfig | None = None
        self.started = self.closed = 0

    def engine(self, config: EngineConfig) -> FakeTalk:
        self.config = config
        return self

    async def start(self) -> None:
        self.started += 1

    async def close(self) -> None:
        self.closed += 1

    async def talk(self, engine: Any, questions: Any, **settings: Any) -> Any:
        from chroma_plugin.talk import TalkReport, TalkTurn

        assert engine is self and self.started
        self.questions, self.settings = [Path(q) for q in questions], settings
        if self.error:
            raise self.error
        turns = []
        for question in self.questions:
            for event in ("question", "user_started", "user_stopped", "first_audio"):
                settings["on_event"](event, 0.0)
            ttfa_ms, rtf = (90.0, 0.25) if self.pcm else (None, None)
            turns.append(TalkTurn(
                question.name, self.text, self.pcm, len(self.pcm) / 48_000, ttfa_ms, rtf,
                EndReason.END_OF_SPEECH, Timings(queued_ms=1.5, depth_ms=77.0), self.said,
            ))  # fmt: skip
        return TalkReport("fake", tuple(turns), ())


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTalk:
    import chroma_plugin.engine.engine
    import chroma_plugin.talk

    talk = FakeTalk()
    monkeypatch.setattr(chroma_plugin.talk, "talk", talk.talk)
    monkeypatch.setattr(chroma_plugin.engine.engine, "Engine", talk.engine)
    monkeypatch.delenv("CHROMA_TEST_AUDIO", raising=False)
    monkeypatch.chdir(tmp_path)
    return talk


# -- before anything is done -----------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--help"], ["talk", "--help"], ["demo", "--help"], ["doctor", "--help"], []]
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom chroma_plugin.cli import main\n"
        f"sys.argv = ['chroma-plugin', *{arguments}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'pipecat', 'livekit', 'numpy', 'soundfile'}\n"
        "sys.exit(f'loaded: {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)"
    )
    package = Path(chroma_plugin.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=package, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_version() -> None:
    assert run("--version").stdout.strip() == chroma_plugin.__version__


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([QUESTION], 2, "--output"),  # -o is missing
        (["-o", "r.wav"], 2, "QUESTION.wav"),
        ([QUESTION, "-o", "r.wav", "--temperature", "9"], 2, "--temperature"),
        ([QUESTION, "-o", "r.wav", "--top-k", "-1"], 2, "--top-k"),
        ([QUESTION, "-o", "r.wav", "--top-p", "2"], 2, "--top-p"),
        ([QUESTION, "-o", "r.wav", "--top-p", "0"], 2, "SamplingParams.top_p is 0"),
        ([QUESTION, "-o", "r.wav", "--max-seconds", "0"], 2, "--max-seconds"),
        ([QUESTION, "-o", "r.wav", "--seed", "x"], 2, "--seed"),
        ([QUESTION, "-o", "r.wav", "--loud"], 2, "--loud"),
        ([QUESTION, "-o", "r.wav", "--device", "tpu"], 2, "device is 'tpu'; use auto, cpu"),
        ([QUESTION, "-o", "r.wav", "--voice", QUESTION], 2, "--voice and --transcript belong"),
        ([QUESTION, "-o", "r.wav", "--transcript", "x"], 2, "--voice and --transcript belong"),
        ([QUESTION, "-o", "r.mp3"], 2, "written as WAV; name it .wav"),
        (["q.wav", "-o", "q.wav"], 2, "is also a question and would be overwritten"),
        (["none.wav", "-o", "r.wav"], 1, "none.wav: no such file"),
        (["words.wav", "-o", "r.wav"], 1, "words.wav: cannot be read as audio"),
        (["long.wav", "-o", "r.wav"], 1, "long.wav: longer than 60 s; cut it first"),
        ([QUESTION, "-o", "none/r.wav"], 1, "its folder does not exist. Make it: mkdir -p 'none'"),
        ([QUESTION, "-o", "."], 1, "is a folder; name a file in it"),
        ([QUESTION, "-o", "r.wav", "--plot", "none/p.png"], 1, "its folder does not exist"),
        ([QUESTION, "-o", "r.wav", "--voice", "q.wav", "--transcript", "hello"], 1,
         "The clip is 1.0 s long; at least 3 s of speech are needed"),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_before_work(
    fake: FakeTalk, arguments: list[object], code: int, says: str
) -> None:
    soundfile.write("q.wav", np.frombuffer(PCM, "<i2"), 24_000)
    soundfile.write("long.wav", np.zeros(61 * 8_000, np.int16), 8_000)
    Path("words.wav").write_text("no audio at all")
    before = sorted(os.listdir())
    result = run("talk", *arguments)
    assert result.exit_code == code, result.output
    assert says in " ".join(result.stderr.split())
    assert not result.stdout
    assert not fake.started
    assert sorted(os.listdir()) == before


def test_a_refusal_of_ours_is_one_line(fake: FakeTalk) -> None:
    assert run("talk", "none.wav", "-o", "r.wav").stderr == (
        "chroma-plugin: none.wav: no such file.\n"
    )


# -- a conversation --------------------------------------------------------------------------


def test_a_question_is_answered(fake: FakeTalk) -> None:
    result = run("talk", QUESTION, "-o", "reply.wav")
    assert result.exit_code == 0, result.output
    assert soundfile.info("reply.wav").samplerate == 24_000
    assert soundfile.read("reply.wav", dtype="int16")[0].tobytes() == PCM
    for said in ("capital.flac: The capital is Paris.", "90 ms", "0.250", "77 ms", "end of speech",
                 "1.00 s written to"):  # fmt: skip
        assert said in result.stdout
    assert "noise" not in result.stdout
    assert result.stderr.splitlines() == [
        "loading chroma-tiny",
        "question 1 of 1: listening",
        "question 1 of 1: thinking",
        "question 1 of 1: speaking",
    ]
    assert fake.closed == 1


def test_random_weights_are_said_to_be_noise(fake: FakeTalk) -> None:
    result = run("talk", QUESTION, "-o", "reply.wav", "--model", MINIATURE)
    assert result.exit_code == 0, result.output
    assert "are random: this is noise" in " ".join(result.stdout.split())


def test_json_is_one_line_and_alone_on_stdout(fake: FakeTalk) -> None:
    result = run("talk", QUESTION, QUESTION, "-o", "reply.wav", "--json")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1
    line = json.loads(result.stdout)
    assert line["text"] == "The capital is Paris.\nThe capital is Paris."
    assert (line["reply_seconds"], line["ttfa_ms"], line["rtf"]) == (2.0, 90.0, 0.25)
    assert (line["sample_rate"], line["model"], line["weights"]) == (
        24_000,
        "chroma-tiny",
        "trained",
    )
    assert [turn["question"] for turn in line["turns"]] == ["capital.flac"] * 2
    assert line["turns"][0]["timings"]["depth_ms"] == 77.0
    assert line["turns"][0]["reason"] == "end_of_speech"
    assert "pcm" not in line["turns"][0]
    assert soundfile.info("reply.wav").frames == 48_000
    assert "The capital is Paris." in result.stderr  # people read on


def test_settings_reach_the_engine(fake: FakeTalk) -> None:
    clip, words = ASSETS / "voices" / "default.flac", ASSETS / "voices" / "default.txt"
    result = run(
        "talk", QUESTION, "-o", "r.wav", "--fast", "--voice", clip, "--transcript",
        words.read_text(), "--model", ASSETS / "chroma-tiny", "--device", "cpu",
        "--instructions", "Be brief.", "--temperature", "0.5", "--top-k", "10", "--top-p", "0.9",
        "--seed", "7", "--repetition-penalty", "1.2", "--max-seconds", "2.5",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert fake.config == EngineConfig(
        str(ASSETS / "chroma-tiny"), "cpu", max_replies=1, max_reply_s=2.5, run_ahead_s=math.inf
    )
    settings = fake.settings
    assert settings["sampling"] == SamplingParams(0.5, 10, 0.9, 7, 1.2)
    assert (settings["instructions"], settings["fast"]) == ("Be brief.", True)
    assert settings["max_reply_s"] == 2.5
    assert settings["voice"].name == "default"


def test_what_the_user_said_is_told_on_request(fake: FakeTalk) -> None:
    fake.said = "What is the\x1b[31m capital?"
    result = run("talk", QUESTION, "-o", "r.wav", "--transcribe")
    assert fake.settings["transcribe"] is True
    assert "capital.flac, understood: What is the [31m capital?" in result.stdout
    result = run("talk", QUESTION, "-o", "r.wav", "--transcribe", "--json")
    assert json.loads(result.stdout)["turns"][0]["said"] == fake.said
    fake.said = ""
    assert "understood: (nothing)" in run("talk", QUESTION, "-o", "r.wav", "--transcribe").stdout
    result = run("talk", QUESTION, "-o", "r.wav")
    assert fake.settings["transcribe"] is False
    assert "understood" not in result.stdout


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3"])
@pytest.mark.parametrize(("rate_hz", "channels"), [(8_000, 1), (48_000, 2)])
def test_questions_of_any_kind_are_taken(
    fake: FakeTalk, kind: str, rate_hz: int, channels: int
) -> None:
    soundfile.write(f"q.{kind}", np.zeros((rate_hz, channels), np.float32), rate_hz)
    assert run("talk", f"q.{kind}", "-o", "r.wav").exit_code == 0


def test_text_of_a_model_cannot_steer_the_terminal(fake: FakeTalk) -> None:
    fake.text = "\x1b[31mred\x07\n[bold]not bold[/bold]"
    result = run("talk", QUESTION, "-o", "r.wav")
    assert "\x1b" not in result.output and "\x07" not in result.output
    assert "[31mred  [bold]not bold[/bold]" in result.output


def test_a_reply_of_no_audio_is_said_so(fake: FakeTalk) -> None:
    fake.pcm, fake.text = b"", ""
    result = run("talk", QUESTION, "-o", "r.wav", "--json", "--plot", "p.png")
    assert result.exit_code == 0, result.output
    assert "There was no audio in the reply." in result.stderr
    assert "(no text)" in result.stderr
    line = json.loads(result.stdout)
    assert (line["ttfa_ms"], line["rtf"], line["reply_seconds"]) == (None, None, 0)


def test_trained_weights_are_not_called_noise(fake: FakeTalk, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert talk_cli.weights_kind(tmp_path) == "trained"
    assert talk_cli.weights_kind(ASSETS / "chroma-tiny") in ("random", "trained")
    result = run("talk", QUESTION, "-o", "r.wav", "--model", tmp_path)
    assert result.exit_code == 0, result.output
    assert "noise" not in result.output


# -- a picture -------------------------------------------------------------------------------


def test_a_picture_is_drawn(fake: FakeTalk) -> None:
    result = run("talk", QUESTION, "-o", "r.wav", "--plot", "p.png")
    assert result.exit_code == 0, result.output
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")
    assert "picture written to" in result.stdout


def test_without_matplotlib_a_picture_is_refused_first(
    fake: FakeTalk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("talk", QUESTION, "-o", "r.wav", "--plot", "p.png")
    assert result.exit_code == 1
    assert "A picture needs matplotlib" in result.stderr
    assert "pip install 'matplotlib>=3.9'" in result.stderr
    assert not fake.started


# -- what goes wrong on the way --------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineBusy("No room."), 1),
        (EngineError("Nothing happened."), 1),
        (CheckpointError("model.safetensors is damaged."), 1),
        (ConfigError("EngineConfig.device is 'cuda', but there is none."), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_a_failure_is_one_line_and_leaves_no_file(
    fake: FakeTalk, error: BaseException, code: int
) -> None:
    fake.error = error
    result = run("talk", QUESTION, "-o", "r.wav", "--json")
    assert result.exit_code == code
    assert result.stderr.splitlines()[-1] == f"chroma-plugin: {str(error) or 'interrupted'}"
    assert "Traceback" not in result.output
    assert not result.stdout
    assert not Path("r.wav").exists()
    assert fake.closed == 1


def test_a_missing_checkpoint_is_named(fake: FakeTalk) -> None:
    result = run("talk", QUESTION, "-o", "r.wav", "--model", "nowhere")
    assert result.exit_code == 1
    assert "nowhere: no such folder" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_is_full_at_the_end_is_one_line(fake: FakeTalk) -> None:
    result = run("talk", QUESTION, "-o", "/dev/full")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "chroma-plugin: /dev/full: cannot be written (No space left on device)."
    )


def test_a_disk_that_is_full_already_is_said_first(
    fake: FakeTalk, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1_000_000))
    result = run("talk", QUESTION, "-o", "r.wav")
    assert result.exit_code == 1
    assert "1 MB are free there, the reply may need 3" in result.stderr
    assert not fake.started
    assert run("talk", QUESTION, "-o", "r.wav", "--max-seconds", "5").exit_code == 0


def test_a_place_without_rights_is_said_first(
    fake: FakeTalk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda _, mode, **__: mode != os.W_OK)
    result = run("talk", QUESTION, "-o", "r.wav")
    assert result.exit_code == 1
    assert "r.wav: cannot be written to; choose another place" in result.stderr
    assert not fake.started


def without(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Makes `chroma_plugin.talk` fail as if a library that it imports were not installed."""
    real: Callable[..., Any] = builtins.__import__

    def importer(wanted: str, *args: Any, **kwargs: Any) -> Any:
        if wanted == "chroma_plugin.talk":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(wanted, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importer)


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("pipecat", "Install it: pip install 'pipecat-ai>=1.14,<2'"),
        ("pipecat.turns.types", "Install it: pip install 'pipecat-ai>=1.14,<2'"),
        ("soxr", "does not load (No module named 'soxr'). Look for the reason: chroma-plugin"),
    ],
)
def test_a_missing_library_is_named_with_its_command(
    fake: FakeTalk, monkeypatch: pytest.MonkeyPatch, missing: str, says: str
) -> None:
    without(monkeypatch, missing)
    result = run("talk", QUESTION, "-o", "r.wav")
    assert result.exit_code == 1, result.output
    assert says in result.stderr
    assert not fake.started


# -- demo ------------------------------------------------------------------------------------


def test_the_demo_needs_nothing(fake: FakeTalk) -> None:
    result = run("demo")
    assert result.exit_code == 0, result.output
    assert fake.questions == [QUESTION]
    assert fake.settings["fast"] is True
    assert str(Path("demo-reply.wav").resolve()) in result.stdout


def test_the_demo_asks_shared_recordings_beside_it(
    fake: FakeTalk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "shared" / "audio").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    soundfile.write(tmp_path / "shared" / "audio" / "hello.flac", np.zeros(8_000), 8_000)
    monkeypatch.chdir(tmp_path / "here")
    assert run("demo").exit_code == 0
    assert [q.name for q in fake.questions] == ["capital.flac", "hello.flac"]


def test_the_demo_asks_the_given_recordings_too(
    fake: FakeTalk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    for name in ("b.wav", "a.WAV"):
        soundfile.write(folder / name, np.frombuffer(PCM, "<i2"), 24_000, format="WAV")
    (folder / "notes.txt").touch()
    monkeypatch.setenv("CHROMA_TEST_AUDIO", str(folder))
    assert run("demo", "-o", "r.wav", "--real-time").exit_code == 0
    assert [q.name for q in fake.questions] == ["capital.flac", "a.WAV", "b.wav"]
    assert fake.settings["fast"] is False
    monkeypatch.setenv("CHROMA_TEST_AUDIO", "nowhere")
    result = run("demo")
    assert result.exit_code == 2
    assert "CHROMA_TEST_AUDIO is nowhere, which is no folder" in result.stderr


# -- the whole of it -------------------------------------------------------------------------


def test_a_real_run_from_question_to_reply(tmp_path: Path) -> None:
    package = Path(chroma_plugin.__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "chroma_plugin.cli", "talk", QUESTION, QUESTION, "-o", "reply.wav",
         "--fast", "--json", "--max-seconds", "1", "--device", "cpu"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert len(done.stdout.splitlines()) == 1
    assert len(line["turns"]) == 2
    assert all(0 < turn["reply_seconds"] <= 1 for turn in line["turns"])
    assert all(turn["ttfa_ms"] > 0 and turn["rtf"] > 0 for turn in line["turns"])
    seconds = soundfile.info(tmp_path / "reply.wav").duration
    assert seconds == pytest.approx(line["reply_seconds"])
    assert os.listdir(tmp_path) == ["reply.wav"]
