"""Every row of the doctor's table, for installations that this one is not."""

from __future__ import annotations

import json
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chroma_plugin import cli, doctor
from chroma_plugin.config import DEFAULT_MODEL, RELEASED_MODEL
from chroma_plugin.doctor import Finding, Probe

GPU = {"name": "NVIDIA H200", "free": 140e9, "total": 141e9, "bf16": True}


def torch_probe(*gpus: dict[str, Any], cuda: str | None = "13.0", error: str = "") -> Probe:
    return Probe({"cuda": cuda, "gpus": list(gpus), "gpu_error": error})


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is installed; a test changes it. Nothing is imported."""
    installed = {
        "torch": "2.11.0+cu130", "torchaudio": "2.11.0", "transformers": "5.23.0",
        "pipecat-ai": "1.14.0", "livekit-agents": "1.8.2", "soundfile": "0.13.1", "soxr": "1.0.0",
        "resemble-perth": "1.0.1",
    }  # fmt: skip
    formats = Probe({"formats": ["FLAC", "MP3", "WAV"], "libsndfile": "1.2.2"})
    monkeypatch.setattr(doctor, "version_of", installed.get)
    monkeypatch.setattr(doctor, "available_memory", lambda: 8e9)
    monkeypatch.setattr(doctor, "probe", lambda code: {
        doctor.TORCH_PROBE: torch_probe(GPU), doctor.AUDIO_PROBE: formats,
    }.get(code, Probe({})))  # fmt: skip
    return installed


def broken(monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    monkeypatch.setattr(doctor, "probe", lambda code: Probe(None, error))


def assert_row(finding: Finding, status: str, *said: str) -> None:
    assert finding.status == status, finding
    for words in said:
        assert words in f"{finding.found} | {finding.wrong} | {finding.mend}"
    assert bool(finding.wrong) == bool(finding.mend) == (status != "ok")


# -- the whole table -------------------------------------------------------------------------


def test_a_sound_installation_is_all_ok(versions: dict[str, str]) -> None:
    rows = list(doctor.examine())
    assert {row.status for row in rows} == {"ok"}, rows
    assert [row.name for row in rows] == [
        "Python", "torch", "GPU", "torchaudio", "transformers", "pipecat-ai", "livekit-agents",
        "resemble-perth", "audio", "memory", "disk", "checkpoint", "weights",
    ]  # fmt: skip


def test_the_command_prints_rows_and_ends_well(versions: dict[str, str]) -> None:
    result = CliRunner().invoke(cli.app, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "ok      torch           2.11.0+cu130, CUDA 13.0" in result.stdout


def test_a_problem_is_shown_with_its_command_and_ends_badly(versions: dict[str, str]) -> None:
    versions["transformers"] = "4.57.0"
    result = CliRunner().invoke(cli.app, ["doctor"])
    assert result.exit_code == 1
    lines = [line.strip() for line in result.stdout.splitlines()]
    at = lines.index("problem transformers    4.57.0")
    assert lines[at + 1 : at + 3] == [
        "5.10 or newer, below 6, is needed.",
        "pip install 'transformers>=5.10,<6'",
    ]


def test_json_is_one_line_alone_on_stdout(versions: dict[str, str]) -> None:
    versions.pop("torch")
    result = CliRunner().invoke(cli.app, ["doctor", "--json"])
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 1
    line = json.loads(result.stdout)
    assert (line["model"], line["ok"]) == (DEFAULT_MODEL, False)
    assert line["rows"][1] == {
        "name": "torch", "status": "problem", "found": "not installed",
        "wrong": "Nothing runs without it.", "mend": "pip install 'torch>=2.9'",
    }  # fmt: skip
    assert "problem torch" in result.stderr


def test_warnings_alone_end_well(versions: dict[str, str]) -> None:
    versions["pipecat-ai"] = "1.15.0"
    assert CliRunner().invoke(cli.app, ["doctor"]).exit_code == 0


# -- torch and GPU ---------------------------------------------------------------------------


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_row(doctor.check_python(), "ok")
    for version in ((3, 10, 4), (3, 14, 0)):
        monkeypatch.setattr(sys, "version_info", version)
        assert_row(doctor.check_python(), "problem", "3.11, 3.12 or 3.13", "-m venv")


def test_torch(versions: dict[str, str]) -> None:
    assert_row(doctor.check_torch(torch_probe(cuda=None)), "ok", "for the CPU")
    bad = Probe(None, "OSError: libcudart.so.13: cannot open shared object file")
    assert_row(doctor.check_torch(bad), "problem", "does not load: OSError: libcudart",
               "pip install --force-reinstall 'torch==2.11.0'")  # fmt: skip
    versions["torch"] = "2.8.0"
    assert_row(doctor.check_torch(torch_probe()), "problem", "2.9 or newer", "pip install -U")
    versions.pop("torch")
    assert_row(doctor.check_torch(bad), "problem", "not installed", "pip install 'torch>=2.9'")


@pytest.mark.parametrize(
    ("torch", "driver", "model", "status", "said"),
    [
        (torch_probe(GPU), ("570", (12, 8)), RELEASED_MODEL, "ok", "NVIDIA H200, 140 of 141 GB"),
        (torch_probe(GPU, GPU), None, RELEASED_MODEL, "ok", "(best of 2)"),
        (torch_probe(GPU | {"free": 5e9}), None, DEFAULT_MODEL, "ok", "5 of 141 GB free"),
        (torch_probe(GPU | {"bf16": False}), None, DEFAULT_MODEL, "warning", "no bfloat16"),
        (torch_probe(), None, DEFAULT_MODEL, "ok", "none; chroma-tiny speaks on the CPU"),
        (torch_probe(), None, RELEASED_MODEL, "warning", "slower than speech on a CPU"),
        (torch_probe(cuda=None), ("570.1", (12, 8)), RELEASED_MODEL, "problem",
         "built for the CPU only and cannot use the GPU. | pip install --force-reinstall torch "
         "--index-url https://download.pytorch.org/whl/cu128"),
        (torch_probe(cuda=None), ("570.1", (12, 8)), DEFAULT_MODEL, "warning", "for the CPU only"),
        (torch_probe(), ("550.1", (12, 7)), RELEASED_MODEL, "problem",
         "built for CUDA 13.0, which is newer than the driver. | pip install --force-reinstall "
         "torch --index-url https://download.pytorch.org/whl/cu126"),
        (torch_probe(), ("470.1", (11, 4)), RELEASED_MODEL, "problem", "install a newer driver"),
        (torch_probe(), ("580.1", (13, 1)), RELEASED_MODEL, "problem", "torch sees no GPU"),
        (torch_probe(error="CUDA error: no kernel image"), ("580.1", (13, 0)), RELEASED_MODEL,
         "problem", "CUDA error: no kernel image"),
        (Probe(None, "broken"), ("580.1", (13, 0)), RELEASED_MODEL, "problem", "was not tried"),
    ],
)  # fmt: skip
def test_gpu(
    monkeypatch: pytest.MonkeyPatch, torch: Probe, driver: Any, model: str, status: str, said: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert_row(doctor.check_gpu(torch, driver, model), status, said)


def test_a_hidden_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    row = doctor.check_gpu(torch_probe(), ("580.1", (13, 0)), RELEASED_MODEL)
    assert_row(row, "problem", "unset CUDA_VISIBLE_DEVICES")


def test_the_driver_is_read_from_nvidia_smi(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho '| NVIDIA-SMI 570.86   Driver Version: 570.86   CUDA Version: 12.8  |'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(tool))
    assert doctor.driver() == ("570.86", (12, 8))
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert doctor.driver() is None
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor.driver() is None


# -- libraries -------------------------------------------------------------------------------


def test_torchaudio(versions: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert_row(doctor.check_torchaudio(), "ok", "2.11.0")
    versions["torchaudio"] = "2.10.1"
    assert_row(doctor.check_torchaudio(), "problem", "fits another torch than the 2.11.0",
               "pip install 'torchaudio==2.11.*'")  # fmt: skip
    versions["torchaudio"] = "2.11.3"
    broken(monkeypatch, "OSError: undefined symbol: _ZN3c10")
    assert_row(doctor.check_torchaudio(), "problem", "undefined symbol", "pip uninstall -y")
    versions.pop("torchaudio")
    assert_row(doctor.check_torchaudio(), "ok", "not installed; only training uses it")


@pytest.mark.parametrize(
    ("installed", "status"),
    [("5.9.2", "problem"), ("5.10.0", "ok"), ("5.99", "ok"), ("6.0.0", "problem"),
     ("6.0.0rc1", "problem"), (None, "problem")],
)  # fmt: skip
def test_transformers(versions: dict[str, str], installed: str | None, status: str) -> None:
    versions.pop("transformers")
    if installed:
        versions["transformers"] = installed
    assert_row(doctor.check_transformers(), status)


def test_transformers_that_does_not_load(
    versions: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, "ImportError: tokenizers")
    assert_row(doctor.check_transformers(), "problem", "does not load: ImportError: tokenizers",
               "pip install --force-reinstall 'transformers==5.23.0'")  # fmt: skip


def test_hosts_are_optional(versions: dict[str, str]) -> None:
    for installed, status in (("1.14.9", "ok"), ("1.13.0", "warning"), ("2.0", "warning")):
        versions["pipecat-ai"] = installed
        row = doctor.check_host("pipecat-ai", doctor.PIPECAT, "pipecat-ai==1.14.*")
        assert_row(row, status, installed)
    versions.pop("pipecat-ai")
    row = doctor.check_host("pipecat-ai", doctor.PIPECAT, "pipecat-ai==1.14.*")
    assert_row(row, "ok", "optional: pip install 'pipecat-ai==1.14.*'")


def test_the_mark_on_replies(versions: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert_row(doctor.check_watermark(), "ok", "1.0.1", "the mark found")
    broken(monkeypatch, "ChromaError: there are no weights in /there")
    row = doctor.check_watermark()
    assert_row(row, "warning", "cannot mark: ChromaError: there are no weights", "--force-reinst")
    for other in ("1.0.0", "1.1.0", "2.0"):
        versions["resemble-perth"] = other
        assert_row(doctor.check_watermark(), "warning", other, "resemble-perth>=1.0.1,<1.1")
    versions.pop("resemble-perth")
    row = doctor.check_watermark()
    assert_row(row, "ok", "not installed", "`serve` marks", "pip install 'resemble-perth>=1.0.1")


def test_the_mark_that_is_installed_here_is_tried(capsys: pytest.CaptureFixture[str]) -> None:
    if doctor.version_of("resemble-perth") is None:
        pytest.skip("resemble-perth is not installed")
    exec(doctor.WATERMARK_PROBE, {})
    assert capsys.readouterr().out == "{}\n"


def test_audio(versions: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert_row(doctor.check_audio(), "ok", "soundfile 0.13.1, soxr 1.0.0")
    old = Probe({"formats": ["WAV"], "libsndfile": "1.0.31"})
    monkeypatch.setattr(doctor, "probe", lambda code: old)
    assert_row(doctor.check_audio(), "warning", "1.0.31 is too old to read MP3")
    broken(monkeypatch, "OSError: cannot load library 'libsndfile.so'")
    assert_row(doctor.check_audio(), "problem", "cannot load library", "--force-reinstall")


# -- memory, disk, checkpoint ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "model", "on_gpu", "status"),
    [(8e9, DEFAULT_MODEL, False, "ok"), (1e9, DEFAULT_MODEL, False, "problem"),
     (8e9, RELEASED_MODEL, False, "problem"), (8e9, RELEASED_MODEL, True, "ok"),
     (64e9, RELEASED_MODEL, False, "ok"), (None, RELEASED_MODEL, False, "ok")],
)  # fmt: skip
def test_memory(
    monkeypatch: pytest.MonkeyPatch, free: float | None, model: str, on_gpu: bool, status: str
) -> None:
    monkeypatch.setattr(doctor, "available_memory", lambda: free)
    assert_row(doctor.check_memory(model, on_gpu=on_gpu), status)


def test_this_machine_has_memory() -> None:
    free = doctor.available_memory()
    assert free is None or free > 0


def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 5_000_000))
    assert_row(doctor.check_disk(tmp_path), "problem", "0.0 GB free", "du -sh")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 5_000_000_000))
    assert_row(doctor.check_disk(tmp_path), "ok", "5.0 GB free")


def test_the_packaged_checkpoint_is_whole() -> None:
    row = doctor.check_model(DEFAULT_MODEL, loadable=True)
    assert_row(row, "ok", "chroma-tiny: ", "M parameters")


def test_a_checkpoint_that_is_none_is_named(tmp_path: Path) -> None:
    row = doctor.check_model(str(tmp_path / "nowhere"), loadable=True)
    assert_row(row, "problem", "no such folder", "chroma-plugin doctor --model FOLDER")
    row = doctor.check_model(str(tmp_path), loadable=True)
    assert_row(row, "problem", "config.json")


def test_a_checkpoint_that_was_cut_short_is_named(tmp_path: Path) -> None:
    tiny = Path(doctor.__file__).parent / "assets" / DEFAULT_MODEL
    folder = shutil.copytree(tiny, tmp_path / "cut")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert_row(doctor.check_model(str(folder), loadable=True), "problem", "no whole safetensors")


def test_without_torch_the_checkpoint_is_not_looked_at() -> None:
    assert_row(doctor.check_model(DEFAULT_MODEL, loadable=False), "warning", "torch does not load")


def test_a_hub_model_is_looked_for_but_not_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: dict[str, Any] = {}
    tiny = Path(doctor.__file__).parent / "assets" / DEFAULT_MODEL

    def cached(model: str, **settings: Any) -> str:
        asked.update(settings)
        return str(tiny)

    def missing(model: str, **settings: Any) -> str:
        raise LocalEntryNotFoundError("not here")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert_row(doctor.check_model(RELEASED_MODEL, loadable=True), "ok", RELEASED_MODEL)
    assert asked["local_files_only"] is True
    monkeypatch.setattr(huggingface_hub, "snapshot_download", missing)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 50e9))
    assert_row(doctor.check_model(RELEASED_MODEL, loadable=True), "warning",
               "The first start downloads it", "hf download FlashLabs/Chroma-4B")  # fmt: skip
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 5e9))
    assert_row(doctor.check_model(RELEASED_MODEL, loadable=True), "problem", "5.0 GB are free")


# -- what fits -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "status", "said"),
    [
        (24e9, "ok", "24.0 GB free; 4 replies at a time need 14.5 GB, 9.7 GB as int8"),
        (14.6e9, "ok", "7.8 GB as int4"),
        (12e9, "warning", 'int8 only. | EngineConfig(model="FlashLabs/Chroma-4B", quantize="int'),
        (8e9, "warning", 'only. | EngineConfig(model="FlashLabs/Chroma-4B", quantize="int4")'),
        (7.5e9, "warning", 'quantize="int4", max_replies=4, thinker_rows=4)'),
        (5.6e9, "warning", 'quantize="int4", max_replies=2, thinker_rows=2)'),
        (5e9, "problem", "One conversation needs 5.4 GB as int4. | nvidia-smi"),
    ],
)
def test_which_weights_fit_the_card(free: float, status: str, said: str) -> None:
    row = doctor.check_fit(torch_probe(GPU | {"free": free, "total": 24e9}), RELEASED_MODEL)
    assert_row(row, status, said)


def test_what_fits_is_known_by_a_checkpoints_sizes() -> None:
    row = doctor.check_fit(torch_probe(GPU), DEFAULT_MODEL)
    assert_row(row, "ok", "need 1.1 GB, 1.1 GB as int8")
    old = torch_probe(GPU | {"free": 16e9, "bf16": False})
    assert_row(doctor.check_fit(old, RELEASED_MODEL), "warning", "need 27.7 GB", "fit as int8 only")
    assert_row(doctor.check_fit(torch_probe(cuda=None), RELEASED_MODEL), "ok", "no GPU")
    assert_row(doctor.check_fit(Probe(None, "broken"), RELEASED_MODEL), "ok", "no GPU")
    assert_row(doctor.check_fit(torch_probe(GPU), "no/where"), "ok", "when the checkpoint is here")


# -- probes ----------------------------------------------------------------------------------


def test_a_probe_survives_whatever_it_runs() -> None:
    assert doctor.probe("print('noise'); print('{\"a\": 1}')") == Probe({"a": 1})
    assert doctor.probe("import no_such_module").error.startswith("ModuleNotFoundError")
    assert doctor.probe("import os; os.abort()") == Probe(None, "the process ended with -6")
    assert doctor.probe("raise SystemExit(3)") == Probe(None, "the process ended with 3")


def test_versions() -> None:
    assert doctor.numbers("2.11.0+cu130") == (2, 11, 0)
    assert doctor.numbers("5.0.0rc1") == (5, 0, 0)
    assert doctor.numbers("") == ()
    assert doctor.version_of("no-such-distribution") is None
    assert doctor.version_of("numpy")


def test_torchs_own_probe_runs_here() -> None:
    found = doctor.probe(doctor.TORCH_PROBE)
    assert found.answer is not None, found.error
    assert set(found.answer) == {"cuda", "gpus", "gpu_error"}
