"""Sizes and token ids of a checkpoint, read from its config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chroma_plugin.errors import CheckpointError
from chroma_plugin.model.layers import Llama3Scaling, TransformerConfig
from chroma_plugin.model.thinker import AudioTowerConfig

CODEBOOKS = 8


@dataclass(frozen=True, slots=True)
class ChromaConfig:
    """Everything that the model needs to know before its weights.

    Attributes:
        text, audio, backbone, depth: sizes of the four transformers.
        codec: the checkpoint's own section for the codec.
        text_vocabulary: token ids of the thinker.
        audio_vocabulary: ids per codebook, the special ones at its end included.
        codebook_size: codes that the codec knows; ids from here on are special.
        eos_code: the code that says end of speech, in codebooks 0 to 6 at once.
        text_start, text_end: tokens around the transcript of a voice prompt.
        im_end: the token that ends a message.
        audio_token: the token that stands for one position of audio in a prompt.
        tied_lm_head: the thinker's head may be missing in the file, and is its embedding then.
        weights: what the checkpoint says of its own weights: "random" for an untrained one.
        name: the folder's name, for messages.
    """

    text: TransformerConfig
    audio: AudioTowerConfig
    backbone: TransformerConfig
    depth: TransformerConfig
    codec: Mapping[str, Any]
    text_vocabulary: int
    audio_vocabulary: int
    codebook_size: int
    eos_code: int
    text_start: int
    text_end: int
    im_end: int
    audio_token: int
    tied_lm_head: bool
    weights: str
    name: str

    def is_end_of_speech(self, codes: Sequence[int]) -> bool:
        """Whether a frame of K codes says that speech has ended: codes 0 to 6 are all the end code,
        as the official generation stops (its last codebook does not count)."""
        return all(code == self.eos_code for code in codes[:-1])

    @classmethod
    def from_folder(cls, folder: Path) -> ChromaConfig:
        """Reads `config.json`.

        Raises:
            CheckpointError: no such file, no JSON, another model, or a field that is missing or of
                a kind that this package does not implement; names file and field.
        """
        path = folder / "config.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"{path}: no such file. A checkpoint folder holds config.json, *.safetensors and "
                "the tokenizer's files; download it whole or name another folder."
            ) from None
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{path}: is not readable as JSON ({error}).") from error
        return cls.from_dict(raw, str(path), folder.name)

    @classmethod
    def from_dict(cls, raw: Any, source: str, name: str = "checkpoint") -> ChromaConfig:
        """The same from parsed JSON; `source` is what messages call it."""
        if not isinstance(raw, dict) or raw.get("model_type") != "chroma":
            kind = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
            raise CheckpointError(
                f"{source}: is the configuration of another model (model_type {kind!r}); "
                "Chroma's says 'chroma'."
            )
        root = _Section(raw, source)
        thinker = root.section("thinker_config")
        text, audio = thinker.section("text_config"), thinker.section("audio_config")
        backbone, depth = root.section("backbone_config"), root.section("decoder_config")
        codec = root.section("codec_config")
        for section in (text, backbone, depth):
            section.expect("hidden_act", "silu")
        audio.expect("activation_function", "gelu")
        if audio.integer("n_window") % 2:
            raise CheckpointError(
                f"{audio.where}: n_window is {audio.raw['n_window']}; it must be even, so that "
                "no position spans two blocks."
            )
        codebooks = root.integer("audio_num_codebooks")
        if codebooks != CODEBOOKS:
            raise CheckpointError(
                f"{source}: audio_num_codebooks is {codebooks}; this package speaks {CODEBOOKS}."
            )
        config = cls(
            text=_transformer(text, qkv_bias=True),
            audio=AudioTowerConfig(
                mel_bins=audio.integer("num_mel_bins"),
                hidden_size=audio.integer("d_model"),
                layers=audio.integer("encoder_layers"),
                heads=audio.integer("encoder_attention_heads"),
                intermediate_size=audio.integer("encoder_ffn_dim"),
                output_size=audio.integer("output_dim"),
                max_positions=audio.integer("max_source_positions"),
                block_frames=2 * audio.integer("n_window"),
            ),
            backbone=_transformer(backbone, qkv_bias=False),
            depth=_transformer(depth, qkv_bias=False),
            codec=codec.raw,
            text_vocabulary=text.integer("vocab_size"),
            audio_vocabulary=backbone.integer("vocab_size"),
            codebook_size=codec.integer("codebook_size"),
            eos_code=root.integer("codebook_eos_token_id"),
            text_start=root.integer("text_start_token_id"),
            text_end=root.integer("text_end_token_id"),
            im_end=root.integer("im_end_token_id"),
            audio_token=thinker.integer("audio_token_index"),
            tied_lm_head=bool(
                thinker.raw.get("tie_word_embeddings") or text.raw.get("tie_word_embeddings")
            ),
            weights=str(raw.get("chroma_plugin_weights", "trained")),
            name=name,
        )
        if not config.text.hidden_size == config.backbone.hidden_size == config.audio.output_size:
            raise CheckpointError(
                f"{source}: thinker ({config.text.hidden_size}), audio tower "
                f"({config.audio.output_size}) and backbone ({config.backbone.hidden_size}) must "
                "have the same width."
            )
        return config


@dataclass(frozen=True, slots=True)
class _Section:
    """A part of config.json that knows where it stands, for messages."""

    raw: dict[str, Any]
    where: str

    def section(self, key: str) -> _Section:
        value = self.raw.get(key)
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.where}: the section {key} is missing.")
        return _Section(value, f"{self.where}: {key}")

    def integer(self, key: str) -> int:
        value = self.raw.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise CheckpointError(f"{self.where}: {key} is {value!r}; it must be a whole number.")
        return value

    def number(self, key: str) -> float:
        value = self.raw.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise CheckpointError(f"{self.where}: {key} is {value!r}; it must be a number.")
        return float(value)

    def axes(self, key: str) -> tuple[int, int, int] | None:
        match self.raw.get(key):
            case None:
                return None
            case [int(time), int(height), int(width)]:
                return time, height, width
            case value:
                raise CheckpointError(
                    f"{self.where}: {key} is {value!r}; it must be three whole numbers."
                )

    def expect(self, key: str, wanted: Any) -> None:
        if self.raw.get(key, wanted) != wanted:
            raise CheckpointError(
                f"{self.where}: {key} is {self.raw[key]!r}; only {wanted!r} is implemented."
            )


def _transformer(section: _Section, *, qkv_bias: bool) -> TransformerConfig:
    hidden, heads = section.integer("hidden_size"), section.integer("num_attention_heads")
    section.expect("use_sliding_window", False)
    section.expect("mlp_bias", False)
    if not qkv_bias:
        section.expect("attention_bias", False)
    kv_heads = section.integer("num_key_value_heads")
    if heads % kv_heads:
        raise CheckpointError(
            f"{section.where}: num_attention_heads is {heads}; it must be a multiple of "
            f"num_key_value_heads, {kv_heads}."
        )
    given = section.raw.get("head_dim") is not None
    head_dim = section.integer("head_dim") if given else hidden // heads
    theta, scaling, mrope = _rope(section)
    if head_dim % 2 or (mrope is not None and sum(mrope) != head_dim // 2):
        raise CheckpointError(
            f"{section.where}: head_dim is {head_dim}; it must be even, and mrope_section must "
            f"add up to its half, {head_dim // 2}."
        )
    return TransformerConfig(
        hidden_size=hidden,
        intermediate_size=section.integer("intermediate_size"),
        layers=section.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=section.number("rms_norm_eps"),
        rope_theta=theta,
        rope_scaling=scaling,
        mrope_section=mrope,
        qkv_bias=qkv_bias,
    )


def _rope(
    section: _Section,
) -> tuple[float, Llama3Scaling | None, tuple[int, int, int] | None]:
    """RoPE settings in the layout of transformers 5 (`rope_parameters`) or of before."""
    rope = section.raw.get("rope_parameters") or section.raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"{section.where}: rope is {rope!r}; it must be a section.")
    inner = _Section({"rope_theta": section.raw.get("rope_theta")} | rope, f"{section.where}: rope")
    kind = rope.get("rope_type", rope.get("type", "default"))
    mrope = inner.axes("mrope_section")
    if kind in ("default", "mrope"):
        return inner.number("rope_theta"), None, mrope
    if kind != "llama3":
        raise CheckpointError(
            f"{inner.where}: rope_type is {kind!r}; default, mrope and llama3 are implemented."
        )
    scaling = Llama3Scaling(
        factor=inner.number("factor"),
        low_freq_factor=inner.number("low_freq_factor"),
        high_freq_factor=inner.number("high_freq_factor"),
        original_positions=inner.integer("original_max_position_embeddings"),
    )
    return inner.number("rope_theta"), scaling, mrope
