"""Finding, checking and loading a checkpoint in the released layout.

The released names are translated by the table below, never by a library's loader, so a new
transformers cannot break them. Everything is checked from the files' headers before memory is
taken; then each tensor goes straight from the mapped file into its place on the device.
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

from chroma_plugin.config import DEFAULT_MODEL
from chroma_plugin.errors import CheckpointError
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.config import ChromaConfig
from chroma_plugin.model.layers import Block, Rope, Transformer

SHARED_TABLE = "decoder.audio_embedding.embed_audio_tokens.weight"
"""The depth decoder's audio embeddings: in the file, equal to the backbone's, or left out."""
LM_HEAD = "thinker.lm_head.weight"

NOT_NEEDED = re.compile(
    r"thinker\.visual\..*"  # eyes: never used for speech
    r"|thinker\.audio_tower\.audio_bos_eos_token\.weight"  # of training; not read in generation
    r"|codec_model\.quantizer\.acoustic_residual_vector_quantizer\.layers\.(\d+)\..*"  # if beyond 8
)
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a released tensor goes: rows of a tensor of ours."""

    tensor: Tensor
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
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(model, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise CheckpointError(
            f"{model}: no such folder. Name a checkpoint folder, a hub id such as "
            f"FlashLabs/Chroma-4B, or {DEFAULT_MODEL}, which is inside this package."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=HUB_FILES))
    except Exception as error:  # network, rights, names: the hub raises many kinds
        raise CheckpointError(
            f"{model}: cannot be had from the Hugging Face hub ({type(error).__name__}: {error}). "
            "Check the name and the network, run `hf auth login` if the model asks for it, or "
            "download it elsewhere and name the folder."
        ) from error


def check_checkpoint(folder: Path) -> CheckpointReport:
    """Checks a folder by config and headers alone, without loading a weight.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    config = ChromaConfig.from_folder(folder)
    with torch.device("meta"):
        model = ChromaModel(config)
    stored = _read_headers(folder)
    _compare(released_layout(model), stored, config, folder)
    parameters = sum(p.numel() for p in model.parameters())
    sizes = {s.file: s.file.stat().st_size for s in stored.values()}
    return CheckpointReport(folder, config, parameters, sum(sizes.values()))


def load_checkpoint(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> ChromaModel:
    """Loads a checkpoint for inference.

    One tensor at a time is in flight beside the model itself: on a GPU, host memory holds no more
    than the mapped pages of one shard; on the CPU there is never a second copy of the model.

    Args:
        folder: config.json and one or more model*.safetensors.
        device: where to.
        dtype: of thinker, backbone and depth decoder; the codec stays float32.

    Raises:
        CheckpointError: config.json is of another model; a shard is missing, truncated or no
            safetensors; a key is missing or unknown; a shape is wrong. Names file and key.
    """
    config = ChromaConfig.from_folder(folder)
    stored = _read_headers(folder)
    with torch.device("meta"):
        model = ChromaModel(config)
    _compare(released_layout(model), stored, config, folder)
    for part in (model.thinker, model.backbone, model.depth):
        part.to(dtype)
    model.to_empty(device=device).requires_grad_(False)
    if LM_HEAD not in stored:
        model.thinker.lm_head.weight = model.thinker.embedding.weight
    layout = released_layout(model)
    for file in sorted({s.file for s in stored.values()}):
        with _opened(file, str(device)) as tensors:
            for key in tensors.keys():  # noqa: SIM118 (no mapping)
                if key in layout:
                    layout[key].fill(tensors.get_tensor(key))
    _untie_if_different(model, stored, str(device))
    for module in model.modules():
        if isinstance(module, Rope):
            module.reset()
    model.codec.finalize()
    return model.eval()


def released_layout(model: ChromaModel) -> dict[str, Place]:
    """Every released key that is read, with its place in the model."""
    return dict(_places(model))


def _places(model: ChromaModel) -> Iterator[tuple[str, Place]]:
    thinker, backbone, depth = model.thinker, model.backbone, model.depth
    for name, tensor in thinker.audio_tower.named_parameters():
        name = re.sub(r"\.([qkv]|out)_proj\.", r".self_attn.\1_proj.", name)
        yield f"thinker.audio_tower.{name}", Place(tensor)
    yield "thinker.model.embed_tokens.weight", Place(thinker.embedding.weight)
    yield LM_HEAD, Place(thinker.lm_head.weight)
    yield from _stack("thinker.model", thinker.transformer)
    yield from _stack("backbone.model", backbone.transformer)
    yield "backbone.codebook0_head.weight", Place(backbone.codebook0_head.weight)
    yield (
        "backbone.audio_embedding.embed_audio_tokens.weight",
        Place(backbone.audio_embedding.table.weight),
    )
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


def _opened(file: Path, device: str = "cpu") -> safe_open:
    try:
        return safe_open(file, framework="pt", device=device)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: is no whole safetensors file ({error}). Download it again; "
            f"it has {file.stat().st_size if file.exists() else 0:,} bytes now."
        ) from error


def _read_headers(folder: Path) -> dict[str, Stored]:
    """Every tensor of every shard, by the files' headers; a shard that the index names but that
    is missing is an error."""
    shards = sorted(folder.glob("model*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, OSError) as error:
            raise CheckpointError(f"{index}: is not a readable index ({error}).") from error
        missing = sorted(listed - {s.name for s in shards})
        if missing:
            raise CheckpointError(
                f"{folder}: {len(missing)} of {len(listed)} shards are missing, the first is "
                f"{missing[0]}. Finish the download."
            )
        shards = [s for s in shards if s.name in listed]
    if not shards:
        raise CheckpointError(
            f"{folder}: holds no model*.safetensors. Download the weights; other formats are not read, "
            "because they can run code."
        )
    stored = {}
    for shard in shards:
        with _opened(shard) as tensors:
            for key in tensors.keys():  # noqa: SIM118 (no mapping)
                stored[key] = Stored(shard, tuple(tensors.get_slice(key).get_shape()))
    return stored


def _compare(
    layout: dict[str, Place], stored: dict[str, Stored], config: ChromaConfig, folder: Path
) -> None:
    optional = {LM_HEAD} if config.tied_lm_head else set()
    missing = sorted(k for k in layout if k not in stored and k not in optional)
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} keys are missing, the first is {missing[0]}. The checkpoint "
            "is incomplete or of another version; download it again."
        )
    for key, entry in stored.items():
        if key == SHARED_TABLE:
            place = layout["backbone.audio_embedding.embed_audio_tokens.weight"]
        elif key in layout:
            place = layout[key]
        elif NOT_NEEDED.fullmatch(key):
            continue
        else:
            raise CheckpointError(
                f"{entry.file}: the key {key} is unknown. The checkpoint is of another model or a "
                "newer version of this one."
            )
        if entry.shape != place.shape:
            raise CheckpointError(
                f"{entry.file}: {key} has shape {list(entry.shape)}, config.json asks for "
                f"{list(place.shape)}. The two are not of one checkpoint."
            )


def _untie_if_different(model: ChromaModel, stored: dict[str, Stored], device: str) -> None:
    """Gives the depth decoder a table of its own if the file's differs from the backbone's."""
    if SHARED_TABLE not in stored:
        return
    with _opened(stored[SHARED_TABLE].file, device) as tensors:
        table = tensors.get_tensor(SHARED_TABLE).to(model.dtype)
    shared = model.backbone.audio_embedding
    if torch.equal(table, shared.table.weight):
        return
    own = type(shared)(shared.codebooks, shared.vocabulary, 0)
    own.table = nn.Embedding.from_pretrained(table)
    model.depth.audio_embedding = own
