"""Loading never holds a second copy of the model.

A child process loads a checkpoint of 2 GB to the CPU, whose pages the kernel counts as two kinds:

- RssAnon, memory of the process's own: the model as it fills up. What is read is not in it, as
  safetensors hands out views of the mapped file. Sampled by the parent every few milliseconds.
- RssFile, touched pages of mapped files: the kernel's cache, which it can drop at any time. They
  leave the count when a file is closed, so they are at most one shard.

VmHWM is the exact peak of both together, so it must stay below model + shard + slack. A loader that
gathers a whole state dict first has the model in it twice, be it in pages of the one kind or of
the other.

By hand, with other sizes (GB), and `bfloat16` for a model of half that size::

    python -m tests.model.test_weights_memory 4 float32
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.config import ChromaConfig
from chroma_plugin.model.weights import (
    AUDIO_TABLE,
    DEPTH_AUDIO_TABLE,
    released_layout,
)
from tests.miniature import MINIATURE

MB = 1_000_000
SLACK = 100 * MB
SHARDS = 8
WIDTH = 1024
STATUS = Path("/proc/self/status")

CHILD = """
import gc, json, sys
from pathlib import Path

import torch

from chroma_plugin.model.weights import find_checkpoint, load_checkpoint, released_layout

def pages(name):
    with open("/proc/self/status") as status:
        return next(int(row.split()[1]) * 1024 for row in status if row.startswith(name + ":"))

load_checkpoint(find_checkpoint("chroma-tiny"))  # what is imported or set up once, is now
gc.collect()
total, own = pages("VmRSS"), pages("RssAnon")
model = load_checkpoint(Path(sys.argv[1]), dtype=getattr(torch, sys.argv[2]))
peak = pages("VmHWM") - total
begins = {tuple(place.tensor[place.first_row or 0].flatten()[:3].tolist())
          for place in released_layout(model).values()
          if place.tensor.dim() > 1 and place.tensor.dtype == model.dtype}
tensors = [*model.parameters(), *model.buffers()]
print(json.dumps({"model": sum(t.nbytes for t in tensors), "peak": peak, "own_before": own,
                  "begins": len(begins)}))
"""


@dataclass(frozen=True)
class Measured:
    """Bytes of one load.

    Attributes:
        peak: of all pages, above what the process had before.
        own: the highest sample of its own pages, likewise.
    """

    model: int
    shard: int
    peak: int
    own: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"model {self.model / MB:.0f} MB, largest shard {self.shard / MB:.0f} MB: peak "
            f"{self.peak / MB:.0f} MB, of it its own at most {self.own / MB:.0f} MB, "
            f"{self.seconds:.1f} s with the imports"
        )


def write_large(folder: Path, gigabytes: float) -> int:
    """A float32 checkpoint of about this size in shards: chroma-tiny's form, wider and deeper.

    Every tensor begins with the same noise and goes on as a hole, which costs no writing; a mapped
    page of it counts as any other.

    Returns:
        Bytes of the largest shard.
    """
    config: dict[str, Any] = json.loads((MINIATURE / "config.json").read_text())
    text, backbone = config["thinker_config"]["text_config"], config["backbone_config"]
    for section in (text, backbone):
        section |= {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "head_dim": WIDTH // 4}
    config["thinker_config"]["audio_config"]["output_dim"] = WIDTH
    del text["rope_parameters"]["mrope_section"]
    layers = round(gigabytes * 1e9 / (15 * WIDTH * WIDTH * 4))  # 3 of attention, 12 of SwiGLU
    text["num_hidden_layers"] = layers - backbone["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config))

    with torch.device("meta"):
        model = ChromaModel(ChromaConfig.from_dict(config, "test"))
    shapes = {key: list(place.shape) for key, place in released_layout(model).items()}
    shapes[DEPTH_AUDIO_TABLE] = shapes[AUDIO_TABLE]  # as in the released files
    noise = torch.randn(3, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
    shards: list[dict[str, Any]] = [{}]
    end = 0
    for key, shape in sorted(shapes.items()):
        if end > gigabytes * 1e9 / SHARDS:
            shards.append({})
            end = 0
        start, end = end, end + 4 * torch.Size(shape).numel()
        shards[-1][key] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    count = len(shards)
    files = [folder / f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for path, header in zip(files, shards, strict=True):
        prefix = json.dumps(header).encode()
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(prefix)) + prefix)
            for entry in header.values():
                start, end = entry["data_offsets"]
                file.seek(8 + len(prefix) + start)
                file.write(noise[: end - start])
            file.truncate(8 + len(prefix) + end)
    places = {key: path.name for path, header in zip(files, shards, strict=True) for key in header}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return max(file.stat().st_size for file in files)


def measure(folder: Path, shard: int, dtype: str) -> Measured:
    """Loads in a child process."""
    began = time.monotonic()
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(folder), dtype]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        own = 0
        while child.poll() is None:
            own = max(own, own_pages(child.pid))
            time.sleep(0.003)
        assert child.stdout is not None
        assert child.returncode == 0
        result = json.loads(child.stdout.read())
    assert result["begins"] == 1  # every tensor of the file is in its place
    return Measured(
        model=result["model"],
        shard=shard,
        peak=result["peak"],
        own=own - result["own_before"],
        seconds=time.monotonic() - began,
    )


def own_pages(pid: int) -> int:
    try:
        rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    except ProcessLookupError:  # it has just ended
        return 0
    return next((int(row.split()[1]) * 1024 for row in rows if row.startswith("RssAnon:")), 0)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    folder = tmp_path_factory.mktemp("large")
    yield folder, write_large(folder, 2.0)
    shutil.rmtree(folder)  # pytest would keep it


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_holds_the_model_once(large: tuple[Path, int], dtype: str) -> None:
    folder, shard = large
    found = measure(folder, shard, dtype)
    print(found)
    assert found.model == pytest.approx(2e9 if dtype == "float32" else 1e9, rel=0.05)
    assert 0.1e9 < shard < 0.3e9
    assert found.own < found.model + SLACK
    assert found.peak < found.model + found.shard + SLACK


def main(gigabytes: float, dtype: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(measure(Path(folder), write_large(Path(folder), gigabytes), dtype))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(float(sys.argv[1]), sys.argv[2])
