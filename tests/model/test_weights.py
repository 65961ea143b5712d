"""Checkpoints: released names and shapes, what may be left out, what each defect is called."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from chroma_plugin.config import DEFAULT_MODEL
from chroma_plugin.errors import CheckpointError
from chroma_plugin.model import weights
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.config import ChromaConfig
from chroma_plugin.model.layers import Block, Rope, rope_frequencies
from chroma_plugin.model.prompt import ChatPrompt, feature_extractor
from chroma_plugin.model.weights import (
    AUDIO_TABLE,
    DEPTH_AUDIO_TABLE,
    EMBEDDING,
    LM_HEAD,
    check_checkpoint,
    find_checkpoint,
    load_checkpoint,
    released_layout,
)
from chroma_plugin.training.tiny import save_checkpoint
from tests.miniature import MINIATURE

ASSETS = Path(__file__).parents[1] / "assets"
GOLDEN = ASSETS / "golden" / "single_turn"
ACOUSTIC = "codec_model.quantizer.acoustic_residual_vector_quantizer.layers"

LLAMA = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "intermediate_size": 8192,
    "vocab_size": 2051,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
}
RELEASED: dict[str, Any] = {
    "model_type": "chroma",
    "audio_num_codebooks": 8,
    "codebook_pad_token_id": 2050,
    "codebook_eos_token_id": 0,
    "text_start_token_id": 151665,
    "text_end_token_id": 151666,
    "im_end_token_id": 151645,
    "thinker_config": {
        "audio_token_index": 151646,
        "audio_config": {
            "num_mel_bins": 128,
            "d_model": 1280,
            "encoder_layers": 32,
            "encoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "max_source_positions": 1500,
            "n_window": 100,
            "output_dim": 2048,
        },
        "text_config": {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        },
    },
    "backbone_config": LLAMA
    | {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
    },
    "decoder_config": LLAMA
    | {
        "hidden_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 128,
    },
    "codec_config": {
        "hidden_size": 512,
        "num_filters": 64,
        "codebook_size": 2048,
        "codebook_dim": 256,
        "num_quantizers": 32,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "intermediate_size": 2048,
        "upsample_groups": 512,
        "sliding_window": 250,
    },
}


MANIFEST: dict[str, list[int]] = json.loads((ASSETS / "checkpoint-manifest.json").read_text())
"""The released file's keys and shapes."""


@dataclass
class Checkpoint:
    """A checkpoint to take apart: its files as they would be written."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def index(self) -> Path:
        return self.folder / "model.safetensors.index.json"

    def write(self) -> Path:
        """config.json and one file; returns the folder."""
        (self.folder / "config.json").write_text(json.dumps(self.config))
        save_file({k: v.contiguous() for k, v in self.tensors.items()}, self.file)
        return self.folder

    def write_shards(self, count: int) -> list[Path]:
        """config.json, files of an equal number of tensors and their index."""
        (self.folder / "config.json").write_text(json.dumps(self.config))
        self.file.unlink(missing_ok=True)
        keys, shards, places = sorted(self.tensors), [], {}
        for i in range(count):
            shards.append(self.folder / f"model-{i + 1:05}-of-{count:05}.safetensors")
            part = {k: self.tensors[k] for k in keys[i::count]}
            save_file(part, shards[-1])
            places |= dict.fromkeys(part, shards[-1].name)
        self.index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
        return shards

    def refused(self, *words: str) -> None:
        """Both the check and the load say all of these words."""
        for read in (check_checkpoint, load_checkpoint):
            with pytest.raises(CheckpointError) as caught:
                read(self.folder)
            for word in words:
                assert word in str(caught.value)


@pytest.fixture
def tiny(tmp_path: Path) -> Checkpoint:
    """A copy of chroma-tiny."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(MINIATURE, folder)
    config = json.loads((folder / "config.json").read_text())
    return Checkpoint(folder, config, load_file(folder / "model.safetensors"))


@pytest.fixture
def nan_in_new_memory() -> Iterator[None]:
    """Memory that nothing was written to reads as NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def same_as_stored(model: ChromaModel, tensors: dict[str, Tensor]) -> None:
    """Every place holds its stored tensor, and every tensor of the model is a place's."""
    layout = released_layout(model)
    for key, place in layout.items():
        held = place.tensor
        if place.first_row is not None:
            held = held[place.first_row : place.first_row + place.rows]
        assert torch.equal(held, tensors[key].to(held.dtype)), key
    places = {id(place.tensor) for place in layout.values()}
    ours = [*model.parameters(), *model.codec.state_dict(keep_vars=True).values()]
    assert {id(tensor) for tensor in ours} == places


# -- the released layout -----------------------------------------------------------------------


def test_keys_and_shapes_are_the_released_ones() -> None:
    with torch.device("meta"):
        model = ChromaModel(ChromaConfig.from_dict(RELEASED, "test"))
    layout = {key: list(place.shape) for key, place in released_layout(model).items()}
    left_out = {
        key
        for key in MANIFEST
        if key.startswith("thinker.visual.")
        or key == "thinker.audio_tower.audio_bos_eos_token.weight"
        or key == DEPTH_AUDIO_TABLE
    }
    assert len(left_out) == 520
    assert layout == {k: shape for k, shape in MANIFEST.items() if k not in left_out}


def test_the_released_sizes() -> None:
    with torch.device("meta"):
        model = ChromaModel(ChromaConfig.from_dict(RELEASED, "test"))
    thinker, backbone, depth = model.thinker, model.backbone, model.depth
    assert count(thinker.audio_tower) == 637_672_448
    assert count(thinker.embedding) == count(thinker.lm_head) == 311_164_928
    assert count(thinker.embedding) + count(thinker.transformer) == 3_085_938_688
    assert count(backbone.transformer) == 973_146_112
    assert count(backbone.codebook0_head) == 4_200_448
    assert count(backbone.audio_embedding) == 33_603_584
    assert count(depth) - count(depth.audio_embedding) == 127_956_992
    codebooks = sum(b.numel() for b in model.codec.state_dict().values()) - count(model.codec)
    assert (count(model.codec), codebooks) == (79_308_609, 4_210_696)
    assert count(model) == 5_252_991_809


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_a_checkpoint_of_the_released_size_is_checked_by_its_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 GB of holes: any reading of weights would take its time, and is forbidden besides."""
    (tmp_path / "config.json").write_text(json.dumps(RELEASED))
    keys = sorted(MANIFEST)
    files = [tmp_path / f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    for i, file in enumerate(files):
        write_holes(file, {key: MANIFEST[key] for key in keys[i::3]})
    weight_map = {key: files[i % 3].name for i, key in enumerate(keys)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    if sum(f.stat().st_blocks for f in files) * 512 > 100e6:
        pytest.skip("this file system keeps no holes")

    class HeadersOnly:
        def __init__(self, *args: Any, **options: Any) -> None:
            self._opened = real(*args, **options)

        def __enter__(self) -> HeadersOnly:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def keys(self) -> list[str]:
            return list(self._opened.keys())

        def get_slice(self, key: str) -> Any:
            return self._opened.get_slice(key)

    real = weights.safe_open
    monkeypatch.setattr(weights, "safe_open", HeadersOnly)
    report = check_checkpoint(tmp_path)
    assert report.parameters == 5_252_991_809
    assert report.bytes == sum(f.stat().st_size for f in files) > 11.9e9
    assert report.config.weights == "trained"
    os.truncate(files[1], files[1].stat().st_size - 1)
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        check_checkpoint(tmp_path)


def write_holes(path: Path, shapes: dict[str, list[int]]) -> None:
    """A safetensors file of bfloat16 tensors whose data are holes."""
    header, end = {}, 0
    for key, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


# -- loading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [MINIATURE, GOLDEN], ids=["chroma-tiny", "golden"])
def test_a_loaded_model_holds_what_the_file_holds(folder: Path) -> None:
    same_as_stored(load_checkpoint(folder), load_file(folder / "model.safetensors"))


def test_fused_projections_stand_in_order() -> None:
    """Against the raw tensors, not by way of the layout."""
    model, raw = load_checkpoint(GOLDEN), load_file(GOLDEN / "model.safetensors")
    stacks = {
        "thinker.model": model.thinker.transformer,
        "backbone.model": model.backbone.transformer,
        "decoder.model": model.depth.transformer,
    }
    for prefix, stack in stacks.items():
        for i, block in enumerate(stack.blocks):
            assert isinstance(block, Block)
            layer = f"{prefix}.layers.{i}"
            parts = [raw[f"{layer}.self_attn.{p}_proj.weight"] for p in "qkv"]
            assert torch.equal(block.attention.qkv.weight, torch.cat(parts))
            parts = [raw[f"{layer}.mlp.{p}_proj.weight"] for p in ("gate", "up")]
            assert torch.equal(block.mlp.gate_up.weight, torch.cat(parts))
            if prefix == "thinker.model":
                parts = [raw[f"{layer}.self_attn.{p}_proj.bias"] for p in "qkv"]
                assert torch.equal(block.attention.qkv.bias, torch.cat(parts))
            else:
                assert block.attention.qkv.bias is None


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, kind: torch.dtype) -> None:
    first = load_checkpoint(MINIATURE)
    shutil.copy(MINIATURE / "config.json", tmp_path)
    save_checkpoint(first, tmp_path, kind)
    stored = load_file(tmp_path / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {kind}
    assert stored.keys() == load_file(MINIATURE / "model.safetensors").keys()
    second = load_checkpoint(tmp_path)
    same_as_stored(second, stored)
    if kind != torch.float16:  # chroma-tiny's are bfloat16 values
        again = second.state_dict()
        for name, tensor in first.state_dict().items():
            assert torch.equal(tensor, again[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codec_and_rotary_frequencies_stay_float32(dtype: torch.dtype) -> None:
    model = load_checkpoint(GOLDEN, dtype=dtype)
    same_as_stored(model, load_file(GOLDEN / "model.safetensors"))
    for part in (model.thinker, model.backbone, model.depth):
        assert {p.dtype for p in part.parameters()} == {dtype}
        for rope in (m for m in part.modules() if isinstance(m, Rope)):
            assert torch.equal(rope.frequencies, rope_frequencies(rope.config))
            assert rope.frequencies.dtype == torch.float32
    tensors = [*model.codec.parameters(), *model.codec.buffers()]
    assert {t.dtype for t in tensors} == {torch.float32}
    assert model.dtype == dtype


def test_a_loaded_model_is_for_inference() -> None:
    model = load_checkpoint(MINIATURE)
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(m.training for m in model.modules())


@pytest.mark.usefixtures("nan_in_new_memory")
@pytest.mark.parametrize("tied", [True, False])
def test_nothing_is_left_uninitialised(tiny: Checkpoint, tied: bool) -> None:
    if tied:
        tiny.config["thinker_config"]["tie_word_embeddings"] = True
        del tiny.tensors[LM_HEAD]
    model = load_checkpoint(tiny.write())
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    assert len(tensors) > 200
    for name, tensor in tensors.items():
        assert tensor.isfinite().all(), name


def test_a_loaded_model_does_not_look_at_the_files_again(tiny: Checkpoint) -> None:
    tiny.tensors[DEPTH_AUDIO_TABLE] = tiny.tensors[AUDIO_TABLE] + 1
    tiny.tensors = {k: v.float() for k, v in tiny.tensors.items()}  # no conversion, no copy by it
    model = load_checkpoint(tiny.write())
    with tiny.file.open("r+b") as file:  # in place, as the pages may be mapped
        file.write(bytes(tiny.file.stat().st_size))
    same_as_stored(model, tiny.tensors)


def test_shards_and_index(tiny: Checkpoint) -> None:
    shards = tiny.write_shards(3)
    same_as_stored(load_checkpoint(tiny.folder), tiny.tensors)
    report = check_checkpoint(tiny.folder)
    assert report.bytes == sum(s.stat().st_size for s in shards)
    assert report.parameters == count(load_checkpoint(MINIATURE))
    tiny.index.unlink()  # is only needed to see what is missing
    same_as_stored(load_checkpoint(tiny.folder), tiny.tensors)


def test_files_beside_those_of_the_index_are_left_alone(tiny: Checkpoint) -> None:
    tiny.write_shards(2)
    (tiny.folder / "model.fp8.safetensors").write_text("another format")
    same_as_stored(load_checkpoint(tiny.folder), tiny.tensors)


# -- what a file may leave out, repeat or have too much of -----------------------------------------


@pytest.mark.parametrize("where", ["thinker_config", "text_config"])
@pytest.mark.parametrize("stored", ["no", "the same", "another"])
def test_a_tied_head_is_the_embedding_unless_the_file_has_another(
    tiny: Checkpoint, where: str, stored: str
) -> None:
    thinker = tiny.config["thinker_config"]
    (thinker if where == "thinker_config" else thinker[where])["tie_word_embeddings"] = True
    if stored == "no":
        del tiny.tensors[LM_HEAD]
    elif stored == "the same":
        tiny.tensors[LM_HEAD] = tiny.tensors[EMBEDDING].clone()
    model = load_checkpoint(tiny.write())
    shared = model.thinker.lm_head.weight is model.thinker.embedding.weight
    assert shared == (stored != "another")
    assert (LM_HEAD in released_layout(model)) == (stored == "another")
    same_as_stored(model, tiny.tensors)


def test_an_untied_head_must_be_there(tiny: Checkpoint) -> None:
    del tiny.tensors[LM_HEAD]
    tiny.write()
    tiny.refused(str(tiny.folder), LM_HEAD, "download it again")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", ["no", "the same", "another"])
def test_the_depth_decoder_shares_the_audio_table_unless_the_file_has_another(
    tiny: Checkpoint, stored: str, dtype: torch.dtype
) -> None:
    if stored != "no":
        tiny.tensors[DEPTH_AUDIO_TABLE] = tiny.tensors[AUDIO_TABLE].clone()
    if stored == "another":
        tiny.tensors[DEPTH_AUDIO_TABLE][-1, -1] += 1
    model = load_checkpoint(tiny.write(), dtype=dtype)
    shared = model.depth.audio_embedding is model.backbone.audio_embedding
    assert shared == (stored != "another")
    assert (DEPTH_AUDIO_TABLE in released_layout(model)) == (stored == "another")
    same_as_stored(model, tiny.tensors)
    (again := tiny.folder / "again").mkdir()
    shutil.copy(MINIATURE / "config.json", again)
    save_checkpoint(model, again, torch.bfloat16)
    same_as_stored(load_checkpoint(again, dtype=dtype), tiny.tensors)


def test_twins_may_lie_in_two_files(tiny: Checkpoint) -> None:
    tiny.tensors[DEPTH_AUDIO_TABLE] = tiny.tensors[AUDIO_TABLE].clone()
    tiny.write_shards(len(tiny.tensors))
    model = load_checkpoint(tiny.folder)
    assert model.depth.audio_embedding is model.backbone.audio_embedding


def test_of_32_quantizers_8_are_loaded(tiny: Checkpoint) -> None:
    tiny.config["codec_config"]["num_quantizers"] = 32
    for level in range(7, 31):
        for name in ("cluster_usage", "embed_sum", "initialized"):
            like = tiny.tensors[f"{ACOUSTIC}.0.codebook.{name}"]
            tiny.tensors[f"{ACOUSTIC}.{level}.codebook.{name}"] = torch.full_like(like, 9)
    model, plain = load_checkpoint(tiny.write()), load_checkpoint(MINIATURE)
    same_as_stored(model, tiny.tensors)
    sound = torch.randn(1, 1, 9600) * 0.1
    codes = model.codec.encode(sound)
    assert codes.shape[1] == 8
    assert torch.equal(codes, plain.codec.encode(sound))


def test_eyes_are_not_loaded(tiny: Checkpoint) -> None:
    without = check_checkpoint(tiny.write()).parameters
    tiny.tensors["thinker.visual.blocks.0.attn.qkv.weight"] = torch.ones(4, 4)
    tiny.tensors["thinker.visual.positions"] = torch.arange(4)
    tiny.tensors["thinker.audio_tower.audio_bos_eos_token.weight"] = torch.ones(2, 96)
    same_as_stored(load_checkpoint(tiny.write()), tiny.tensors)
    assert check_checkpoint(tiny.folder).parameters == without


# -- defects, each by its name -----------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        EMBEDDING,
        AUDIO_TABLE,
        "thinker.model.layers.1.self_attn.k_proj.bias",
        "backbone.model.layers.2.mlp.up_proj.weight",
        "decoder.codebook_head.weight",
        f"{ACOUSTIC}.6.codebook.embed_sum",
    ],
)
def test_a_missing_key(tiny: Checkpoint, key: str) -> None:
    del tiny.tensors[key]
    tiny.write()
    tiny.refused(str(tiny.folder), "1 keys are missing", key, "download it again")


@pytest.mark.parametrize(
    "key",
    [
        "lm_head.weight",
        "thinker.model.layers.2.input_layernorm.weight",
        "thinker.visually.weight",
        f"{ACOUSTIC}.3.codebook.embed",  # of a level that is read
        "codec_model.decoder.layers.0.conv.parametrizations.weight.original0",
    ],
)
def test_an_unknown_key(tiny: Checkpoint, key: str) -> None:
    tiny.tensors[key] = torch.ones(2)
    tiny.write()
    tiny.refused(str(tiny.file), key, "unknown", "another model")


@pytest.mark.parametrize("key", [AUDIO_TABLE, DEPTH_AUDIO_TABLE, LM_HEAD, EMBEDDING])
def test_a_wrong_shape(tiny: Checkpoint, key: str) -> None:
    tiny.tensors[key] = torch.ones(3, 5)
    tiny.write()
    wanted = tiny.tensors[AUDIO_TABLE if "audio" in key else "thinker.model.norm.weight"]
    tiny.refused(str(tiny.file), key, "[3, 5]", f"{wanted.shape[-1]}]", "not of one checkpoint")


def test_a_wrong_shape_of_one_projection_of_a_fused_one(tiny: Checkpoint) -> None:
    """What is too much for one must not run over into its neighbour."""
    key = "backbone.model.layers.0.self_attn.k_proj.weight"
    tiny.tensors[key] = torch.cat([tiny.tensors[key]] * 2)
    tiny.write()
    tiny.refused(str(tiny.file), key, "[96, 96]", "[48, 96]")


def test_a_tied_head_of_a_wrong_shape(tiny: Checkpoint) -> None:
    tiny.config["thinker_config"]["tie_word_embeddings"] = True
    tiny.tensors[LM_HEAD] = tiny.tensors[EMBEDDING][:-1].clone()
    tiny.write()
    tiny.refused(str(tiny.file), LM_HEAD, "[639, 96]", "[640, 96]")


@pytest.mark.parametrize(
    ("dtype", "word"),
    [
        (torch.int64, "I64"),
        (torch.int8, "I8"),
        (torch.bool, "BOOL"),
        (torch.float8_e4m3fn, "F8_E4M3"),
    ],
)
def test_numbers_that_are_no_weights(tiny: Checkpoint, dtype: torch.dtype, word: str) -> None:
    key = "backbone.model.layers.0.mlp.down_proj.weight"
    tiny.tensors[key] = tiny.tensors[key].to(dtype)
    tiny.write()
    tiny.refused(str(tiny.file), key, word, "F32, F16, BF16", "quantised")


def test_a_key_in_two_files(tiny: Checkpoint) -> None:
    shards = tiny.write_shards(2)
    tiny.index.unlink()
    tiny.write()
    tiny.refused(str(tiny.folder), tiny.file.name, shards[0].name, "take one of them out")


@pytest.mark.parametrize("left", [0, 5, 8, 1000, -100_000, -1])
def test_a_truncated_file(tiny: Checkpoint, left: int) -> None:
    size = tiny.file.stat().st_size
    left = left if left >= 0 else size + left
    os.truncate(tiny.file, left)
    tiny.refused(str(tiny.file), "no whole safetensors file", "Download it again", f"{left:,}")


def test_a_truncated_shard(tiny: Checkpoint) -> None:
    shards = tiny.write_shards(3)
    shards[1].write_bytes(shards[1].read_bytes()[:-7])
    tiny.refused(str(shards[1]), "Download it again")


class Poison:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        b"<!doctype html>",
    ],
)
def test_a_file_that_is_no_safetensors(tiny: Checkpoint, content: bytes) -> None:
    tiny.file.write_bytes(content)
    tiny.refused(str(tiny.file), "no whole safetensors file", "Download it again")


def test_a_pickle_is_never_opened(tiny: Checkpoint, tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    poison = pickle.dumps(Poison(marker))
    tiny.file.write_bytes(poison)
    tiny.refused(str(tiny.file), "no whole safetensors file")
    tiny.file.unlink()
    torch.save({"weight": Poison(marker)}, tiny.folder / "pytorch_model.bin")
    (tiny.folder / "model.pt").write_bytes(poison)
    tiny.refused(str(tiny.folder), "no model*.safetensors", "other formats are not read")
    assert not marker.exists()
    pickle.loads(poison)
    assert marker.exists()  # the trap works


def test_a_file_that_is_a_folder_or_a_link_to_nothing(tiny: Checkpoint) -> None:
    tiny.file.unlink()
    tiny.file.mkdir()
    tiny.refused(str(tiny.file), "Download it again")
    tiny.file.rmdir()
    tiny.file.symlink_to(tiny.folder / "blob-of-a-broken-download")
    tiny.refused(str(tiny.file), "Download it again")


def test_a_missing_shard(tiny: Checkpoint) -> None:
    shards = tiny.write_shards(4)
    shards[1].unlink()
    shards[3].unlink()
    tiny.refused(str(tiny.folder), "2 of 4 shards", shards[1].name, "Finish the download")
    tiny.index.unlink()  # without an index the keys tell
    tiny.refused(str(tiny.folder), "keys are missing", "download it again")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe\xff",
        b'{"weight_map": []}',
        b'{"weight_map": {"a": 1}}',
        b'{"weight_map": {"a": null}}',
        b'{"weight_map": {"a": ["model.safetensors"]}}',
    ],
)
def test_a_broken_index(tiny: Checkpoint, content: bytes) -> None:
    tiny.write()
    tiny.index.write_bytes(content)
    tiny.refused(str(tiny.index), "not a readable index", "Download it again")


def test_an_index_that_names_nothing(tiny: Checkpoint) -> None:
    tiny.write()
    tiny.index.write_text('{"weight_map": {}}')
    tiny.refused(str(tiny.folder), "no model*.safetensors")


def test_folders_that_are_not_all_there(tiny: Checkpoint, tmp_path: Path) -> None:
    empty = Checkpoint(tmp_path / "empty")
    empty.folder.mkdir()
    empty.refused(str(empty.folder / "config.json"), "no such file", "download it whole")
    tiny.file.unlink()
    tiny.refused(str(tiny.folder), "no model*.safetensors", "Download the weights")
    tiny.write()
    (tiny.folder / "config.json").unlink()
    tiny.refused(str(tiny.folder / "config.json"), "no such file")


@pytest.mark.parametrize("content", ["", "{", "weights", '{"model_type": "chroma"'])
def test_a_config_that_is_no_json(tiny: Checkpoint, content: str) -> None:
    (tiny.folder / "config.json").write_text(content)
    tiny.refused(str(tiny.folder / "config.json"), "JSON")


@pytest.mark.parametrize("model_type", ["qwen2_5_omni", "csm", None])
def test_a_config_of_another_model(tiny: Checkpoint, model_type: str | None) -> None:
    tiny.config["model_type"] = model_type
    tiny.write()
    tiny.refused(str(tiny.folder / "config.json"), "another model", repr(model_type), "chroma")


@pytest.mark.parametrize(
    ("section", "field_name", "value"),
    [
        ("codec_config", "num_quantizers", 4),
        ("codec_config", "kernel_size", 0),
        ("codec_config", "pad_mode", "replicate"),
        ("backbone_config", "vocab_size", -1),
        ("backbone_config", "head_dim", "wide"),
        ("backbone_config", "num_hidden_layers", None),
    ],
)
def test_a_config_of_no_possible_model(
    tiny: Checkpoint, section: str, field_name: str, value: Any
) -> None:
    tiny.config[section][field_name] = value
    tiny.write()
    tiny.refused(str(tiny.folder / "config.json"))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(MINIATURE, folder, dirs_exist_ok=True)
    return folder


HEADER = 8 + struct.unpack("<Q", (MINIATURE / "model.safetensors").read_bytes()[:8])[0]


@settings(max_examples=40)
@given(at=st.integers(0, HEADER - 1), byte=st.integers(0, 255))
def test_a_damaged_header_is_no_crash(scratch: Path, at: int, byte: int) -> None:
    """It is refused as a checkpoint, or what was damaged does not matter."""
    with (scratch / "model.safetensors").open("r+b") as file:
        file.seek(at)
        before = file.read(1)
        file.seek(at)
        file.write(bytes([byte]))
    try:
        check_checkpoint(scratch)
    except CheckpointError as error:
        assert str(scratch) in str(error)
    finally:
        with (scratch / "model.safetensors").open("r+b") as file:
            file.seek(at)
            file.write(before)


# -- finding a checkpoint ------------------------------------------------------------------------


def test_the_packaged_checkpoint_and_folders_are_found(tmp_path: Path) -> None:
    packaged = Path(str(files("chroma_plugin") / "assets" / DEFAULT_MODEL))
    assert find_checkpoint(DEFAULT_MODEL) == find_checkpoint(Path(DEFAULT_MODEL)) == packaged
    assert find_checkpoint(tmp_path) == find_checkpoint(str(tmp_path)) == tmp_path


def test_a_folder_in_the_home_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    assert find_checkpoint("~/models") == tmp_path / "models"


def never(*_: Any, **__: Any) -> str:
    pytest.fail("the hub was asked")


@pytest.mark.parametrize(
    "model",
    [
        "/no/such/folder",
        Path("no/folder"),
        "no-such-folder",
        "./models",
        "../models",
        "a/b/c",
        "~nobody-of-this-name/models",
    ],
)
def test_a_path_that_does_not_exist(monkeypatch: pytest.MonkeyPatch, model: str | Path) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", never)
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(model)
    assert str(model) in str(caught.value)
    assert "no such folder" in str(caught.value)
    assert "FlashLabs/Chroma-4B" in str(caught.value)


def test_a_file_in_place_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", never)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"is a file\. Name the folder"):
        find_checkpoint("models/model.safetensors")


def test_a_hub_id_is_downloaded_without_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def download(repo: str, **options: Any) -> str:
        asked.append((repo, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_checkpoint("FlashLabs/Chroma-4B") == tmp_path
    [(repo, options)] = asked
    assert repo == "FlashLabs/Chroma-4B"
    assert set(options["allow_patterns"]) == {"*.json", "*.safetensors", "*.txt", "*.jinja"}


@pytest.mark.parametrize("error", [OSError("no route to host"), ValueError("401, gated")])
def test_a_hub_id_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint("FlashLabs/Chroma-4B")
    for word in ("FlashLabs/Chroma-4B", str(error), "network", "hf auth login", "name the folder"):
        assert word in str(caught.value)
    assert caught.value.__cause__ is error


def test_a_hub_id_without_a_network() -> None:
    """HF_HUB_OFFLINE is set for every test."""
    with pytest.raises(CheckpointError, match="nobody/has-this: is no folder here"):
        find_checkpoint("nobody/has-this")


# -- a checkpoint's own code ---------------------------------------------------------------------

CODE = "from pathlib import Path\nPath({marker!r}).touch()\n"


def poisoned(tiny: Checkpoint, marker: Path) -> Path:
    """chroma-tiny with code of its own in every place where transformers looks for it."""
    for name in ("modeling_chroma", "configuration_chroma", "tokenization_x", "processing_x"):
        (tiny.folder / f"{name}.py").write_text(CODE.format(marker=str(marker)))
    tiny.config["auto_map"] = {
        "AutoConfig": "configuration_chroma.ChromaConfig",
        "AutoModel": "modeling_chroma.ChromaModel",
        "AutoTokenizer": ["tokenization_x.X", "tokenization_x.XFast"],
    }
    for name, auto_map in {
        "tokenizer_config.json": {"AutoTokenizer": ["tokenization_x.X", "tokenization_x.XFast"]},
        "preprocessor_config.json": {
            "AutoFeatureExtractor": "processing_x.X",
            "AutoProcessor": "processing_x.X",
        },
    }.items():
        file = tiny.folder / name
        content = json.loads(file.read_text()) | {"auto_map": auto_map}
        if name == "tokenizer_config.json":
            content["tokenizer_class"] = "X"
        file.write_text(json.dumps(content))
    return tiny.write()


def test_code_in_a_checkpoint_is_never_run(tiny: Checkpoint, tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    folder = poisoned(tiny, marker)
    check_checkpoint(folder)
    model = load_checkpoint(folder)
    same_as_stored(model, tiny.tensors)
    prompt = ChatPrompt.from_checkpoint(folder, model.config.audio_token)
    plain = ChatPrompt.from_checkpoint(MINIATURE, model.config.audio_token)
    assert prompt.user("Hello.") == plain.user("Hello.")
    assert feature_extractor(folder).feature_size == 128
    assert not marker.exists()


def test_code_is_not_run_where_there_is_no_other_tokenizer(
    tiny: Checkpoint, tmp_path: Path
) -> None:
    marker = tmp_path / "was-run"
    folder = poisoned(tiny, marker)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        ChatPrompt.from_checkpoint(folder, 635)
    assert not marker.exists()


def test_a_chat_template_cannot_reach_out(tiny: Checkpoint, tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    (tiny.folder / "chat_template.jinja").write_text(
        "{{ cycler.__init__.__globals__.os.system('touch " + str(marker) + "') }}"
    )
    with pytest.raises(CheckpointError, match="template"):
        ChatPrompt.from_checkpoint(tiny.folder, 635)
    assert not marker.exists()
