"""Finding, checking and loading a checkpoint in the released layout.

The released names are translated by the table below, never by a library's loader, so a new
transformers cannot break them. Everything is checked from the files' headers before memory is
taken; then each tensor goes straight from the mapped file into its place on the device. Nothing in
a checkpoint is executed or unpickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from chroma_plugin.config import DEFAULT_MODEL, RELEASED_MODEL, Quantize
from chroma_plugin.errors import CheckpointError
from chroma_plugin.model.backbone import AudioEmbedding
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.config import CODEBOOKS, ChromaConfig
from chroma_plugin.model.layers import Block, Transformer
from chroma_plugin.model.memory import Unallocated, take_memory
from chroma_plugin.model.quantize import QuantRows, named_weights

EMBEDDING, LM_HEAD = "thinker.model.embed_tokens.weight", "thinker.lm_head.weight"
AUDIO_TABLE = "backbone.audio_embedding.embed_audio_tokens.weight"
DEPTH_AUDIO_TABLE = "decoder.audio_embedding.embed_audio_tokens.weight"
TWINS = {LM_HEAD: EMBEDDING, DEPTH_AUDIO_TABLE: AUDIO_TABLE}
"""Keys that a file may leave out or repeat, with the key whose tensor they share then."""

NOT_NEEDED = re.compile(
    r"thinker\.visual\..*"  # eyes: never used for speech
    r"|thinker\.audio_tower\.audio_bos_eos_token\.weight"  # of training; not read in generation
)
ACOUSTIC = re.compile(
    r"codec_model\.quantizer\.acoustic_residual_vector_quantizer\.layers\.(\d+)\..*"
)
KINDS = ("F32", "F16", "BF16")
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a released tensor goes: rows of a tensor of ours."""

    tensor: Tensor | QuantRows
    first_row: int | None = None  # None: all of it
    rows: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        if self.first_row is None:
            return tuple(self.tensor.shape)
        return (self.rows, *self.tensor.shape[1:])

    def fill(self, value: Tensor) -> None:
        target = self.tensor
        if self.first_row is not None:
            target = target[self.first_row : self.first_row + self.rows]
        target.copy_(value)


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as a file's header describes it."""

    file: Path
    shape: tuple[int, ...]
    kind: str  # safetensors' word for the dtype


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """What a check found: a whole checkpoint, its size and what it says of itself."""

    folder: Path
    config: ChromaConfig
    parameters: int
    bytes: int


def find_checkpoint(model: str | Path) -> Path:
    """The folder of a checkpoint: the packaged one, a local folder, or a download of a hub id.

    Raises:
        CheckpointError: there is no such folder, or it could not be downloaded.
    """
    if str(model) == DEFAULT_MODEL:
        return Path(str(files("chroma_plugin") / "assets" / DEFAULT_MODEL))
    try:
        folder = Path(model).expanduser()
    except RuntimeError:  # the ~ of an unknown user
        folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{model}: is a file. Name the folder that it is in.")
    if isinstance(model, Path) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model):
        raise CheckpointError(
            f"{model}: no such folder. Name a checkpoint folder, a hub id such as "
            f"{RELEASED_MODEL}, or {DEFAULT_MODEL}, which is inside this package."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=HUB_FILES))
    except Exception as error:  # network, rights, names: the hub raises many kinds
        raise CheckpointError(
            f"{model}: is no folder here, and cannot be had from the Hugging Face hub "
            f"({type(error).__name__}: {error}). Check the name and the network, run "
            "`hf auth login` if the model asks for it, or download it elsewhere and name the "
            "folder."
        ) from error


def check_checkpoint(folder: Path) -> CheckpointReport:
    """Checks a folder by config and headers alone, without loading a weight.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    model, stored = _outline(folder)
    parameters = sum(p.numel() for p in model.parameters())
    sizes = {s.file: s.file.stat().st_size for s in stored.values()}
    return CheckpointReport(folder, model.config, parameters, sum(sizes.values()))


def load_checkpoint(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    quantize: Quantize = "none",
) -> ChromaModel:
    """Loads a checkpoint for inference.

    Tensors are copied one by one from the mapped pages of one shard: for a GPU, host memory holds
    these pages and at most one tensor; on the CPU there is never a second copy of the model. They
    are quantised piece by piece as they are copied.

    Args:
        folder: config.json and one or more model*.safetensors.
        device: where to.
        dtype: of the weights of thinker, backbone and depth decoder; the codec and the frequencies
            of rotary positions stay float32.
        quantize: how the weights of linear layers are stored.

    Raises:
        ConfigError: the device cannot compute with quantised weights, or their sizes do not fit.
        CheckpointError: config.json is of another model; a shard is missing, truncated or no
            safetensors; a key is missing, unknown or there twice; a shape or a dtype is wrong.
            Names file and key.
    """
    model, stored = _outline(folder)
    _part_twins(model, stored)
    take_memory(model, torch.device(device), dtype, quantize)
    layout = released_layout(model)
    for file in sorted({s.file for s in stored.values()}):
        with _opened(file) as tensors:
            for key in tensors.keys():  # noqa: SIM118 (no mapping)
                if key in layout:
                    layout[key].fill(tensors.get_tensor(key))
    model.codec.finalize()
    return model.eval()


def released_layout(model: ChromaModel) -> dict[str, Place]:
    """Every released key that is read, with its place in the model; shared tensors once."""
    return dict(_places(model))


def _places(model: ChromaModel) -> Iterator[tuple[str, Place]]:
    thinker, backbone, depth = model.thinker, model.backbone, model.depth
    for name, tensor in named_weights(thinker.audio_tower):
        name = re.sub(r"\.([qkv]|out)_proj\.", r".self_attn.\1_proj.", name)
        yield f"thinker.audio_tower.{name}", Place(tensor)
    yield EMBEDDING, Place(thinker.embedding.weight)
    if thinker.lm_head.weight is not thinker.embedding.weight:
        yield LM_HEAD, Place(thinker.lm_head.weight)
    yield from _stack("thinker.model", thinker.transformer)
    yield from _stack("backbone.model", backbone.transformer)
    yield "backbone.codebook0_head.weight", Place(backbone.codebook0_head.weight)
    yield AUDIO_TABLE, Place(backbone.audio_embedding.table.weight)
    if depth.audio_embedding is not backbone.audio_embedding:
        yield DEPTH_AUDIO_TABLE, Place(depth.audio_embedding.table.weight)
    yield from _stack("decoder.model", depth.transformer)
    yield "decoder.projection.weight", Place(depth.projection.weight)
    yield "decoder.codebook_head.weight", Place(depth.heads)
    for name, tensor in model.codec.state_dict(keep_vars=True).items():
        yield f"codec_model.{name}", Place(tensor)


def _stack(prefix: str, stack: Transformer) -> Iterator[tuple[str, Place]]:
    yield f"{prefix}.norm.weight", Place(stack.norm.weight)
    for i, block in enumerate(stack.blocks):
        layer = f"{prefix}.layers.{i}"
        assert isinstance(block, Block)
        config, attention = stack.config, block.attention
        wide = [n * config.head_dim for n in (config.heads, config.kv_heads, config.kv_heads)]
        names = [f"{layer}.self_attn.{p}_proj" for p in "qkv"]
        yield from _rows(attention.qkv, names, wide)
        yield f"{layer}.self_attn.o_proj.weight", Place(attention.out.weight)
        half = config.intermediate_size
        yield from _rows(
            block.mlp.gate_up, [f"{layer}.mlp.{p}_proj" for p in ("gate", "up")], [half, half]
        )
        yield f"{layer}.mlp.down_proj.weight", Place(block.mlp.down.weight)
        yield f"{layer}.input_layernorm.weight", Place(block.attention_norm.weight)
        yield f"{layer}.post_attention_layernorm.weight", Place(block.mlp_norm.weight)


def _rows(fused: nn.Linear, names: list[str], sizes: list[int]) -> Iterator[tuple[str, Place]]:
    """Several released projections in one of ours, one below the other."""
    first = 0
    for name, size in zip(names, sizes, strict=True):
        yield f"{name}.weight", Place(fused.weight, first, size)
        if fused.bias is not None:
            yield f"{name}.bias", Place(fused.bias, first, size)
        first += size


def _outline(folder: Path) -> tuple[ChromaModel, dict[str, Stored]]:
    """The model without memory, and what the files hold for it: both checked against each other."""
    source = folder / "config.json"
    try:
        config = ChromaConfig.from_folder(folder)
        with Unallocated():
            model = ChromaModel(config)
    except Exception as error:  # sizes of a wrong kind, or that do not fit each other
        if isinstance(error, CheckpointError) and str(source) in str(error):
            raise
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{source}: describes a model that cannot be built ({type(error).__name__}: {reason}). "
            "Take the config.json that was released with the weights."
        ) from error
    stored = _read_headers(folder)
    _compare(released_layout(model), stored, folder)
    return model, stored


def _opened(file: Path) -> safe_open:
    """A file whose tensors are views of its mapped pages; read straight to a GPU, safetensors would
    stage each in pinned memory, which torch keeps."""
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: is no whole safetensors file ({error}). Download it again; "
            f"it has {file.stat().st_size if file.exists() else 0:,} bytes now."
        ) from error


def _shards(folder: Path) -> list[Path]:
    """The files that hold weights: those of the index, or every one where there is no index."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("model*.safetensors"))
    try:
        listed = {folder / name for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(
            f"{index}: is not a readable index ({type(error).__name__}: {error}). Download it "
            "again."
        ) from error
    missing = sorted(shard for shard in listed if not shard.is_file())
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(listed)} shards are missing, the first is "
            f"{missing[0].name}. Finish the download."
        )
    return sorted(listed)


def _read_headers(folder: Path) -> dict[str, Stored]:
    """Every tensor of every shard, by the files' headers."""
    shards = _shards(folder)
    if not shards:
        raise CheckpointError(
            f"{folder}: holds no model*.safetensors. Download the weights; other formats are not "
            "read, because they can run code."
        )
    stored: dict[str, Stored] = {}
    for shard in shards:
        with _opened(shard) as tensors:
            for key in tensors.keys():  # noqa: SIM118 (no mapping)
                if key in stored:
                    raise CheckpointError(
                        f"{shard}: {key} is in {stored[key].file.name} too. Two checkpoints lie in "
                        "one folder: take one of them out, or download it again."
                    )
                header = tensors.get_slice(key)
                stored[key] = Stored(shard, tuple(header.get_shape()), header.get_dtype())
    return stored


def _compare(layout: dict[str, Place], stored: dict[str, Stored], folder: Path) -> None:
    missing = sorted(layout.keys() - stored.keys())
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} keys are missing, the first is {missing[0]}. The checkpoint "
            "is incomplete or of another version; download it again."
        )
    for key, entry in stored.items():
        place = layout.get(key) or layout.get(TWINS.get(key, ""))
        if place is None:
            if _not_needed(key):
                continue
            raise CheckpointError(
                f"{entry.file}: the key {key} is unknown. The checkpoint is of another model or a "
                "newer version of this one."
            )
        if entry.shape != place.shape:
            raise CheckpointError(
                f"{entry.file}: {key} has shape {list(entry.shape)}, config.json asks for "
                f"{list(place.shape)}. The two are not of one checkpoint."
            )
        if entry.kind not in KINDS:
            raise CheckpointError(
                f"{entry.file}: {key} is of type {entry.kind}; only {', '.join(KINDS)} are read. "
                "Take the checkpoint as it was released, not a quantised one."
            )


def _not_needed(key: str) -> bool:
    acoustic = ACOUSTIC.fullmatch(key)
    beyond = acoustic is not None and int(acoustic[1]) >= CODEBOOKS - 1
    return beyond or NOT_NEEDED.fullmatch(key) is not None


def _part_twins(model: ChromaModel, stored: dict[str, Stored]) -> None:
    """Gives head and depth decoder a tensor of their own where the file's is another one."""
    thinker, depth, shared = model.thinker, model.depth, model.backbone.audio_embedding
    with Unallocated():
        if model.config.tied_lm_head and not _same(stored, LM_HEAD):
            thinker.lm_head.weight = nn.Parameter(torch.empty_like(thinker.embedding.weight))
        if not _same(stored, DEPTH_AUDIO_TABLE):
            size = shared.table.embedding_dim
            depth.audio_embedding = AudioEmbedding(shared.codebooks, shared.vocabulary, size)


def _same(stored: dict[str, Stored], key: str) -> bool:
    """Whether a key's tensor is its twin's, or left out; compared as they lie in the files."""
    if key not in stored:
        return True
    first, second = stored[key], stored[TWINS[key]]
    with _opened(first.file) as a, _opened(second.file) as b:
        return first.kind == second.kind and torch.equal(
            a.get_tensor(key), b.get_tensor(TWINS[key])
        )
