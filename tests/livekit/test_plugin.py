"""The plugin object, and what importing it costs a process."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys

import pytest
from livekit.agents import Plugin
from typer.testing import CliRunner

import chroma_plugin
from chroma_plugin import livekit as chroma

LIGHT = """
import sys
import chroma_plugin.livekit
heavy = {"torch", "transformers", "chroma_plugin.engine", "chroma_plugin.model", "fastapi"}
print(sorted(heavy & set(sys.modules)))
"""


def _look(pipe) -> None:  # type: ignore[no-untyped-def]
    import chroma_plugin.livekit as chroma  # as a job does

    chroma.RealtimeModel()
    pipe.send("torch" in sys.modules or "transformers" in sys.modules)


def plugin() -> Plugin:
    [found] = [p for p in Plugin.registered_plugins if isinstance(p, chroma.ChromaPlugin)]
    return found


def test_the_plugin_is_registered_once_on_import() -> None:
    found = plugin()
    assert found.title == "chroma_plugin.livekit" and found.package == "chroma_plugin.livekit"
    assert found.version == chroma_plugin.__version__ == chroma.__version__
    assert found.logger is not None and found.logger.name == "chroma_plugin.livekit"


def test_importing_it_loads_neither_torch_nor_an_engine() -> None:
    command = [sys.executable, "-c", LIGHT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_job_from_the_forkserver_loads_no_torch() -> None:
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    job = context.Process(target=_look, args=(there,))
    job.start()
    assert here.poll(60) and here.recv() is False
    job.join(60)
    assert job.exitcode == 0


def test_download_files_fetches_what_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.delenv("CHROMA_MODEL", raising=False)
    plugin().download_files()
    assert not commands  # the default model is inside the package
    monkeypatch.setenv("CHROMA_MODEL", "FlashLabs/Chroma-4B")
    plugin().download_files()
    assert commands[0][-2:] == ["download", "FlashLabs/Chroma-4B"]


def test_download_says_where_the_weights_are() -> None:
    from chroma_plugin.cli import app

    done = CliRunner().invoke(app, ["download", "chroma-tiny"])
    assert done.exit_code == 0 and "GB in" in done.stdout and "chroma-tiny" in done.stdout
    assert CliRunner().invoke(app, ["download", "nobody/has such a name"]).exit_code == 1
