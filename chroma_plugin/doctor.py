"""What an installation needs, row by row: what was found, what is wrong, what mends it.

Looks at versions without importing anything, and imports what could be broken in a process of its
own, so that a broken library is a row of the table and never the end of it. Downloads nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from chroma_plugin.config import DEFAULT_MODEL, RELEASED_MODEL, EngineConfig
from chroma_plugin.errors import CheckpointError

if TYPE_CHECKING:
    from chroma_plugin.model.memory import Needs

Status = Literal["ok", "warning", "problem"]
Version = tuple[int, ...]

PYTHON = ((3, 11), (3, 14))
TORCH = (2, 9)
TRANSFORMERS = ((5, 10), (6,))
PERTH = ((1, 0, 1), (1, 1))
PIPECAT, LIVEKIT = (1, 14), (1, 8)  # the releases that the adapters are tested with
TORCH_WHEELS = {(12, 6): "cu126", (12, 8): "cu128", (13, 0): "cu130"}

GB = 1e9
DOWNLOAD_GB = 12.0
CPU_GB = 24.0  # the released model in float32
TINY_GB = 1.5

TORCH_PROBE = """
import json, torch
found = {"cuda": torch.version.cuda, "gpus": [], "gpu_error": ""}
try:
    for i in range(torch.cuda.device_count()):
        torch.ones(8, 8, device=f"cuda:{i}").matmul(torch.eye(8, device=f"cuda:{i}")).cpu()
        free, total = torch.cuda.mem_get_info(i)
        found["gpus"].append({
            "name": torch.cuda.get_device_name(i), "free": free, "total": total,
            "bf16": torch.cuda.get_device_capability(i) >= (8, 0),
        })
except RuntimeError as error:
    found["gpu_error"] = str(error).strip().splitlines()[0]
print(json.dumps(found))
"""
AUDIO_PROBE = """
import json, soundfile, soxr
print(json.dumps({"formats": sorted(soundfile.available_formats()),
                  "libsndfile": soundfile.__libsndfile_version__}))
"""
TRANSFORMERS_PROBE = "from transformers import AutoTokenizer, WhisperFeatureExtractor; print('{}')"
WATERMARK_PROBE = "from chroma_plugin.perth import Perth; Perth.load().marker(); print('{}')"
TORCHAUDIO_PROBE = "import torchaudio; print('{}')"


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the table.

    Attributes:
        name: what was looked at.
        status: ok, warning (works, but look at it) or problem (does not work).
        found: what is there.
        wrong: what is wrong with it; empty if nothing.
        mend: the command that mends it; empty if nothing is wrong.
    """

    name: str
    status: Status
    found: str
    wrong: str = ""
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a Python process of its own answered, or the last line of its complaint."""

    answer: dict[str, Any] | None
    error: str = ""


def examine(model: str = DEFAULT_MODEL) -> Iterator[Finding]:
    """Every row, in the order in which the parts rest on one another."""
    yield check_python()
    torch = probe(TORCH_PROBE)
    yield check_torch(torch)
    yield check_gpu(torch, driver(), model)
    yield check_torchaudio()
    yield check_transformers()
    yield check_host("pipecat-ai", PIPECAT, "pipecat-ai==1.14.*")
    yield check_host("livekit-agents", LIVEKIT, "livekit-agents==1.8.*")
    yield check_watermark()
    yield check_audio()
    yield check_memory(model, on_gpu=bool(torch.answer and torch.answer["gpus"]))
    yield check_disk(Path.cwd())
    yield check_model(model, loadable=torch.answer is not None)
    yield check_fit(torch, model)


# -- what is looked at, as functions that a test can replace ---------------------------------


def version_of(distribution: str) -> str | None:
    """The installed version, without importing it; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def probe(code: str) -> Probe:
    """Runs a few lines in a process of their own; they print one line of JSON."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, timeout=180, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return Probe(None, str(error))
    if done.returncode == 0:
        return Probe(json.loads(done.stdout.strip().splitlines()[-1]))
    lines = done.stderr.strip().splitlines()
    return Probe(None, lines[-1] if lines else f"the process ended with {done.returncode}")


def driver() -> tuple[str, Version] | None:
    """The NVIDIA driver and the newest CUDA it takes; None without one."""
    if not (command := shutil.which("nvidia-smi")):
        return None
    try:
        text = subprocess.run([command], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r"Driver Version: *([\d.]+)", text)
    cuda = re.search(r"CUDA Version: *([\d.]+)", text)
    return (version[1], numbers(cuda[1])) if version and cuda else None


def available_memory() -> int | None:
    """Bytes that a new process can have, by /proc/meminfo and the container's limit."""
    try:
        text = Path("/proc/meminfo").read_text()
        free = int(re.search(r"MemAvailable: *(\d+)", text)[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        return None
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return min(free, limit - used)
    except (OSError, ValueError):  # no cgroup, or "max"
        return free


def numbers(version: str) -> Version:
    """``2.11.0+cu130`` as (2, 11, 0)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(n) for n in found[0].split(".")) if found else ()


# -- rows ------------------------------------------------------------------------------------


def check_python() -> Finding:
    """The interpreter."""
    found = sys.version.split()[0]
    if PYTHON[0] <= sys.version_info[:2] < PYTHON[1]:
        return Finding("Python", "ok", found)
    return Finding(
        "Python", "problem", found, "Python 3.11, 3.12 or 3.13 is needed.",
        "python3.12 -m venv .venv && .venv/bin/pip install chroma-plugin",
    )  # fmt: skip


def check_torch(torch: Probe) -> Finding:
    """Whether torch is installed, new enough, and loads."""
    installed = version_of("torch")
    if installed is None:
        return Finding("torch", "problem", "not installed", "Nothing runs without it.",
                       "pip install 'torch>=2.9'")  # fmt: skip
    if numbers(installed)[:2] < TORCH:
        return Finding("torch", "problem", installed, "torch 2.9 or newer is needed.",
                       "pip install -U 'torch>=2.9'")  # fmt: skip
    if torch.answer is None:
        return Finding("torch", "problem", installed, f"It does not load: {torch.error}",
                       f"pip install --force-reinstall 'torch=={installed.split('+')[0]}'"
                       )  # fmt: skip
    cuda = torch.answer["cuda"]
    return Finding("torch", "ok", f"{installed}, " + (f"CUDA {cuda}" if cuda else "for the CPU"))


def check_gpu(torch: Probe, host: tuple[str, Version] | None, model: str) -> Finding:
    """Whether torch can use the GPU; `check_fit` says whether it is large enough."""
    gpus = torch.answer["gpus"] if torch.answer else []
    if gpus:
        return _check_gpus(gpus)
    tiny = model == DEFAULT_MODEL
    if host is None:
        if tiny:
            return Finding("GPU", "ok", "none; chroma-tiny speaks on the CPU")
        return Finding("GPU", "warning", "none", "This model is slower than speech on a CPU.",
                       "chroma-plugin doctor   # on a machine with an NVIDIA GPU of 8 GB or more"
                       )  # fmt: skip
    found = f"driver {host[0]} for CUDA up to {'.'.join(map(str, host[1]))}"
    wheel = next((w for cuda, w in sorted(TORCH_WHEELS.items(), reverse=True) if cuda <= host[1]),
                 None)  # fmt: skip
    mend = (
        f"pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/{wheel}"
        if wheel
        else "nvidia-smi   # then install a newer driver: https://www.nvidia.com/drivers"
    )
    built = torch.answer["cuda"] if torch.answer else None
    if torch.answer is None:
        wrong, mend = "torch does not load, so the GPU was not tried.", "chroma-plugin doctor"
    elif built is None:
        wrong = "torch was built for the CPU only and cannot use the GPU."
    elif numbers(built) > host[1]:
        wrong = f"torch was built for CUDA {built}, which is newer than the driver."
    elif "CUDA_VISIBLE_DEVICES" in os.environ:
        wrong, mend = "CUDA_VISIBLE_DEVICES hides it.", "unset CUDA_VISIBLE_DEVICES"
    else:
        wrong = torch.answer["gpu_error"] or "torch sees no GPU."
        mend = "python -c 'import torch; torch.cuda.init()'   # says why"
    return Finding("GPU", "problem" if not tiny else "warning", found, wrong, mend)


def _most_free(gpus: list[dict[str, Any]]) -> dict[str, Any]:
    return max(gpus, key=lambda gpu: int(gpu["free"]))


def _check_gpus(gpus: list[dict[str, Any]]) -> Finding:
    best = _most_free(gpus)
    found = f"{best['name']}, {best['free'] / GB:.0f} of {best['total'] / GB:.0f} GB free" + (
        f" (best of {len(gpus)})" if len(gpus) > 1 else ""
    )
    if not best["bf16"]:
        return Finding("GPU", "warning", found, "It has no bfloat16: the model runs in float32.",
                       "chroma-plugin talk QUESTION.wav -o REPLY.wav --device cpu")  # fmt: skip
    return Finding("GPU", "ok", found)


def check_torchaudio() -> Finding:
    """Optional, but one that does not fit torch breaks `import transformers`."""
    installed, torch = version_of("torchaudio"), version_of("torch")
    if installed is None:
        return Finding("torchaudio", "ok", "not installed; only training uses it")
    mend = "pip uninstall -y torchaudio   # only training uses it"
    if torch and numbers(torch)[:2] != numbers(installed)[:2]:
        fitting = ".".join(map(str, numbers(torch)[:2]))
        return Finding("torchaudio", "problem", installed,
                       f"It fits another torch than the {torch} that is installed, and can break "
                       "`import transformers`.",
                       f"pip install 'torchaudio=={fitting}.*'   # or: pip uninstall -y torchaudio"
                       )  # fmt: skip
    tried = probe(TORCHAUDIO_PROBE)
    if tried.answer is None:
        return Finding("torchaudio", "problem", installed, f"It does not load: {tried.error}", mend)
    return Finding("torchaudio", "ok", installed)


def check_transformers() -> Finding:
    """The tokenizer and the features of what is heard."""
    installed, mend = version_of("transformers"), "pip install 'transformers>=5.10,<6'"
    if installed is None:
        return Finding("transformers", "problem", "not installed", "Nothing runs without it.", mend)
    if not TRANSFORMERS[0] <= numbers(installed) < TRANSFORMERS[1]:
        return Finding(
            "transformers", "problem", installed, "5.10 or newer, below 6, is needed.", mend
        )
    tried = probe(TRANSFORMERS_PROBE)
    if tried.answer is None:
        mend = f"pip install --force-reinstall 'transformers=={installed}'"
        wrong = f"It does not load: {tried.error}"
        return Finding("transformers", "problem", installed, wrong, mend)
    return Finding("transformers", "ok", installed)


def check_host(distribution: str, tested: Version, requirement: str) -> Finding:
    """A host is optional; one that the adapter was not tested with is named."""
    installed = version_of(distribution)
    mend = f"pip install '{requirement}'"
    if installed is None:
        return Finding(distribution, "ok", f"not installed; optional: {mend}")
    if numbers(installed)[: len(tested)] != tested:
        wanted = ".".join(map(str, tested))
        wrong = f"The adapter is tested with {wanted}.x."
        return Finding(distribution, "warning", installed, wrong, mend)
    return Finding(distribution, "ok", installed)


def check_watermark() -> Finding:
    """Optional: the weights of the mark that a server puts on replies, and of its detector."""
    name, installed = "resemble-perth", version_of("resemble-perth")
    mend = "pip install 'resemble-perth>=1.0.1,<1.1'"
    if installed is None:
        about = "`serve` marks replies with it, `voices detect` looks for the mark"
        return Finding(name, "ok", f"not installed; {about}: {mend}")
    if not PERTH[0] <= numbers(installed) < PERTH[1]:
        wrong = "The mark on replies was made with 1.0.x, from 1.0.1 on."
        return Finding(name, "warning", installed, wrong, mend)
    tried = probe(WATERMARK_PROBE)
    if tried.answer is None:
        mend = f"pip install --force-reinstall --no-deps 'resemble-perth=={installed}'"
        return Finding(name, "warning", installed, f"`serve` cannot mark: {tried.error}", mend)
    return Finding(name, "ok", f"{installed}: replies can be marked, and the mark found")


def check_audio() -> Finding:
    """Reading files and resampling."""
    tried = probe(AUDIO_PROBE)
    mend = "pip install --force-reinstall 'soundfile>=0.13' 'soxr>=1.0'"
    found = f"soundfile {version_of('soundfile')}, soxr {version_of('soxr')}"
    if tried.answer is None:
        return Finding("audio", "problem", found, f"They do not load: {tried.error}", mend)
    if "MP3" not in tried.answer["formats"]:
        wrong = f"libsndfile {tried.answer['libsndfile']} is too old to read MP3."
        return Finding("audio", "warning", found, wrong, mend)
    return Finding("audio", "ok", found)


def check_memory(model: str, *, on_gpu: bool) -> Finding:
    """Host memory; on a GPU the weights do not stay in it."""
    needed = TINY_GB if model == DEFAULT_MODEL or on_gpu else CPU_GB
    free = available_memory()
    if free is None:
        return Finding("memory", "ok", "unknown on this system")
    found = f"{free / GB:.1f} GB free"
    if free < needed * GB:
        return Finding("memory", "problem", found, f"About {needed:g} GB are needed.",
                       "ps aux --sort=-rss | head   # shows who uses it")  # fmt: skip
    return Finding("memory", "ok", found)


def check_disk(folder: Path) -> Finding:
    """Room for what is written here."""
    free = shutil.disk_usage(folder).free
    found = f"{free / GB:.1f} GB free in {folder}"
    if free < 0.1 * GB:
        return Finding("disk", "problem", found, "Replies may not fit.", "du -sh ./* | sort -h")
    return Finding("disk", "ok", found)


def check_model(model: str, *, loadable: bool) -> Finding:
    """Whether the checkpoint is whole, by its headers; nothing is downloaded or loaded."""
    name = "checkpoint"
    if not loadable:
        return Finding(name, "warning", model, "Not looked at, since torch does not load.",
                       "chroma-plugin doctor")  # fmt: skip
    try:
        from chroma_plugin.model.weights import check_checkpoint, find_checkpoint

        if _on_the_hub(model):
            return _check_hub(model)
        report = check_checkpoint(find_checkpoint(model))
    except CheckpointError as error:
        return Finding(name, "problem", model, str(error), "chroma-plugin doctor --model FOLDER")
    except Exception as error:  # a broken library: its own row has the command
        wrong = f"It could not be looked at: {type(error).__name__}: {error}"
        return Finding(name, "problem", model, wrong, "pip install --force-reinstall chroma-plugin")
    found = f"{model}: {report.parameters / 1e6:,.1f} M parameters, {report.bytes / 1e6:,.0f} MB"
    random = ", random weights: it speaks noise" if report.config.weights == "random" else ""
    return Finding(name, "ok", found + random)


def check_fit(torch: Probe, model: str) -> Finding:
    """Which kind of weights fits the GPU, beside the caches of an engine's default limits."""
    name, limits = "weights", EngineConfig()
    gpus = torch.answer["gpus"] if torch.answer else []
    if not gpus:
        return Finding(name, "ok", "no GPU that they have to fit")
    best = _most_free(gpus)
    free, needs = best["free"], _needs(model, bf16=best["bf16"])
    if needs is None:
        return Finding(name, "ok", "their sizes are known when the checkpoint is here and whole")
    totals = {kind: needs.total(kind, limits) / GB for kind in needs.weights}
    found = f"{free / GB:.1f} GB free; {limits.max_replies} replies at a time need " + ", ".join(
        f"{total:.1f} GB" + (f" as {kind}" if kind != "none" else "")
        for kind, total in totals.items()
    )
    kind = needs.fitting(free, limits)
    if kind == "none":
        return Finding(name, "ok", found)
    if kind is not None:
        return Finding(name, "warning", found, f"They fit as {kind} only.",
                       f'EngineConfig(model="{model}", quantize="{kind}")')  # fmt: skip
    for rows in range(limits.max_replies, 0, -1):
        kind = needs.fitting(free, EngineConfig(max_replies=rows, thinker_rows=rows))
        if kind is not None:
            return Finding(
                name, "warning", found, f"They fit as {kind}, with smaller caches, only.",
                f'EngineConfig(model="{model}", quantize="{kind}", max_replies={rows}, '
                f"thinker_rows={rows})",
            )  # fmt: skip
    least = needs.total("int4", EngineConfig(max_replies=1, thinker_rows=1)) / GB
    return Finding(name, "problem", found, f"One conversation needs {least:.1f} GB as int4.",
                   "nvidia-smi   # shows who uses the GPU's memory")  # fmt: skip


def _needs(model: str, *, bf16: bool) -> Needs | None:
    """By the checkpoint's sizes, which for the released one are known without it; None if it is
    not here or cannot be looked at, which its own row says."""
    try:
        import torch
        from huggingface_hub import snapshot_download

        from chroma_plugin.model.config import ChromaConfig
        from chroma_plugin.model.memory import RELEASED, Needs
        from chroma_plugin.model.weights import find_checkpoint

        dtype = torch.bfloat16 if bf16 else torch.float32
        if model == RELEASED_MODEL:
            return RELEASED[dtype]
        if _on_the_hub(model):
            found = snapshot_download(model, allow_patterns="*.json", local_files_only=True)
            return Needs.of(ChromaConfig.from_folder(Path(found)), dtype)
        return Needs.of(ChromaConfig.from_folder(find_checkpoint(model)), dtype)
    except Exception:
        return None


def _on_the_hub(model: str) -> bool:
    return model != DEFAULT_MODEL and not Path(model).expanduser().exists() and bool(
        re.fullmatch(r"[\w.-]+/[\w.-]+", model)
    )  # fmt: skip


def _check_hub(model: str) -> Finding:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from chroma_plugin.model.weights import HUB_FILES, check_checkpoint

    mend = f"hf download {model}"
    try:
        folder = Path(snapshot_download(model, allow_patterns=HUB_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        cache = Path(constants.HF_HUB_CACHE)
        while not cache.exists():
            cache = cache.parent
        free = shutil.disk_usage(cache).free
        if free < DOWNLOAD_GB * GB:
            wrong = f"About {DOWNLOAD_GB:g} GB will be downloaded, {free / GB:.1f} GB are free."
            mend = f"HF_HOME=/a/larger/disk hf download {model}"
            return Finding("checkpoint", "problem", f"{model}: not downloaded", wrong, mend)
        wrong = "The first start downloads it."
        return Finding("checkpoint", "warning", f"{model}: not downloaded", wrong, mend)
    try:
        report = check_checkpoint(folder)
    except CheckpointError as error:
        return Finding("checkpoint", "problem", model, str(error), mend)
    return Finding("checkpoint", "ok", f"{model}: {report.bytes / GB:.1f} GB in {folder}")


def as_json(model: str, findings: list[Finding]) -> str:
    """One line: the model, whether all is well, and the rows."""
    rows = [{key: getattr(f, key) for key in Finding.__slots__} for f in findings]
    return json.dumps(
        {"model": model, "ok": not any(f.status == "problem" for f in findings), "rows": rows}
    )
