"""What `chroma-plugin talk --web` refuses, and where it finds its bot."""

from __future__ import annotations

import builtins
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

pytest.importorskip("aiortc", reason='no WebRTC here: pip install "chroma-plugin[web]"')

from chroma_plugin import cli, talk_web
from chroma_plugin.config import DEFAULT_MODEL, SamplingParams
from chroma_plugin.errors import ChromaError
from chroma_plugin.voice import Voice


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["talk", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--web", "q.wav"], 2, "without QUESTION.wav"),
        (["--web", "-o", "r.wav", "--fast", "--json"], 2, "without --output, --fast, --json"),
        (["--web", "--plot", "p.png"], 2, "without --plot"),
        (["--web", "--port", "0"], 2, "--port"),
        (["--web", "--voice", "me.wav"], 2, "--voice and --transcript belong together"),
        (["--web", "--device", "tpu"], 2, "device is 'tpu'"),
        (["--web", "--host", "192.0.2.1"], 1, "192.0.2.1:7860 cannot be listened at"),
        ([], 2, "or talk in a browser: --web"),
    ],
)
def test_what_is_refused(arguments: list[str], code: int, says: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert says in " ".join(result.stderr.split())
    assert not result.stdout


def test_settings_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def serve(engine: Any, **settings: Any) -> None:
        asked.update(settings, config=engine.config)
        settings["on_ready"]("http://localhost:8000")

    monkeypatch.setattr(talk_web, "serve", serve)
    result = run(
        "--web", "--port", 8000, "--instructions", "Sing.", "--seed", 7, "--max-seconds", 9
    )
    assert result.exit_code == 0, result.output
    assert "Talk to Chroma: http://localhost:8000" in result.stdout
    assert (asked["config"].model, asked["config"].max_reply_s) == (DEFAULT_MODEL, 9.0)
    assert asked["config"].max_replies > 1  # more than one may call
    assert (asked["host"], asked["port"], asked["verbose"]) == ("localhost", 8000, False)
    assert (asked["instructions"], asked["sampling"]) == ("Sing.", SamplingParams(seed=7))
    assert isinstance(asked["voice"], Voice)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "chroma_plugin.talk_web":
            raise ImportError("No module named 'aiortc'", name="aiortc")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    result = run("--web")
    assert result.exit_code == 1
    assert "pip install 'chroma-plugin[web]'" in result.stderr


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ChromaError, match=f"127.0.0.1:{port} cannot be listened at"):
            talk_web.check_port("127.0.0.1", port)
    talk_web.check_port("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("localhost", "http://localhost:80"),
        ("0.0.0.0", "http://localhost:80"),
        ("::", "http://localhost:80"),
        ("::1", "http://[::1]:80"),
    ],
)
def test_the_address_can_be_opened(host: str, address: str) -> None:
    assert talk_web.page_address(host, 80) == address


def test_the_example_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a checkout, as it is installed, or not at all."""
    assert callable(talk_web.load_example().bot)
    package = tmp_path / "chroma_plugin"
    package.mkdir()
    example = Path(talk_web.__file__).parents[1] / "examples" / talk_web.EXAMPLE
    monkeypatch.setattr(talk_web, "__file__", str(package / "talk_web.py"))
    with pytest.raises(ChromaError, match="missing from this installation"):
        talk_web.load_example()
    (package / "examples").mkdir()
    shutil.copy(example, package / "examples")
    assert talk_web.load_example().__file__.startswith(str(package))
