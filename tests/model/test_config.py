"""Reading config.json: sizes and ids as they stand there, and an error that names what is wrong."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from chroma_plugin.errors import CheckpointError
from chroma_plugin.model.config import ChromaConfig
from chroma_plugin.model.layers import Llama3Scaling, TransformerConfig
from chroma_plugin.model.thinker import AudioTowerConfig
from tests.miniature import MINIATURE

GOLDEN = Path(__file__).parents[1] / "assets" / "golden"
RAW = json.loads((MINIATURE / "config.json").read_text(encoding="utf-8"))
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def changed(path: str, value: Any = None, *, drop: bool = False) -> dict[str, Any]:
    """The packaged configuration with one field another, or gone."""
    raw = copy.deepcopy(RAW)
    *sections, key = path.split(".")
    inside = raw
    for section in sections:
        inside = inside[section]
    if drop:
        del inside[key]
    else:
        inside[key] = value
    return raw


def read(raw: Any) -> ChromaConfig:
    return ChromaConfig.from_dict(raw, "here/config.json")


def refused(raw: Any, *words: str) -> None:
    """It is refused, and the message says where and what."""
    with pytest.raises(CheckpointError) as caught:
        read(raw)
    message = str(caught.value)
    assert message.startswith("here/config.json: ")
    for word in words:
        assert word in message


class TestRead:
    def test_a_small_checkpoint(self) -> None:
        config = ChromaConfig.from_folder(MINIATURE)
        assert config.name == MINIATURE.name
        assert config.weights == "random"
        assert config.text.mrope_section == (4, 4, 4)
        assert config.text.qkv_bias
        assert config.text.rope_theta == 1e6
        assert config.backbone.rope_theta == 5e5
        assert not config.backbone.qkv_bias and not config.depth.qkv_bias
        assert config.backbone.mrope_section is None
        assert (config.text_vocabulary, config.audio_vocabulary) == (640, 259)
        assert (config.codebook_size, config.eos_code) == (256, 0)
        assert not config.tied_lm_head
        ids = (config.text_start, config.text_end, config.im_end, config.audio_token)
        tokens = json.loads((MINIATURE / "tokenizer.json").read_text(encoding="utf-8"))[
            "added_tokens"
        ]
        names = {token["id"]: token["content"] for token in tokens}
        assert [names[i] for i in ids] == [
            "<|text_start|>",
            "<|text_end|>",
            "<|im_end|>",
            "<|AUDIO|>",
        ]

    @pytest.mark.parametrize("name", ["single_turn", "two_turn"])
    def test_a_configuration_that_the_official_code_wrote(self, name: str) -> None:
        config = ChromaConfig.from_folder(GOLDEN / name)
        assert config.text == TransformerConfig(
            hidden_size=64,
            intermediate_size=128,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=16,  # not written there: width by heads
            norm_eps=1e-6,
            rope_theta=1e6,
            mrope_section=(2, 3, 3),
            qkv_bias=True,
        )
        assert config.audio == AudioTowerConfig(
            mel_bins=128,
            hidden_size=64,
            layers=2,
            heads=4,
            intermediate_size=128,
            output_size=64,
            max_positions=1500,
            block_frames=200,
        )
        assert config.backbone == TransformerConfig(
            hidden_size=64,
            intermediate_size=160,
            layers=3,
            heads=4,
            kv_heads=2,
            head_dim=16,
            norm_eps=1e-5,
            rope_theta=5e5,
        )
        assert (config.depth.hidden_size, config.depth.head_dim) == (48, 12)
        assert (config.audio_vocabulary, config.codebook_size) == (67, 64)
        assert config.audio_token == 508
        assert config.codec["codebook_size"] == 64
        assert config.weights == "trained"
        assert config.name == name

    def test_frequencies_of_llama3(self) -> None:
        rope = LLAMA3 | {"rope_theta": 500000.0}
        config = read(changed("backbone_config.rope_parameters", rope))
        assert config.backbone.rope_scaling == Llama3Scaling(32.0, 1.0, 4.0, 8192)
        assert config.backbone.rope_theta == 5e5
        assert config.depth.rope_scaling is None

    def test_the_layout_before_transformers_5(self) -> None:
        """`rope_theta` beside `rope_scaling`, which is null, llama3 or the three axes."""
        raw = copy.deepcopy(RAW)
        text = raw["thinker_config"]["text_config"]
        del text["rope_parameters"], raw["backbone_config"]["rope_parameters"]
        del raw["decoder_config"]["rope_parameters"]
        text |= {
            "rope_theta": 1000000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 4, 4]},
        }
        raw["backbone_config"] |= {"rope_theta": 123456, "rope_scaling": LLAMA3}
        raw["decoder_config"] |= {"rope_theta": 500000.0, "rope_scaling": None}
        config = read(raw)
        assert config.text == read(RAW).text
        assert config.backbone.rope_theta == 123456
        assert config.backbone.rope_scaling == Llama3Scaling(32.0, 1.0, 4.0, 8192)
        assert config.depth == read(RAW).depth

    def test_a_head_may_be_wider(self) -> None:
        assert read(changed("backbone_config.head_dim", 48)).backbone.head_dim == 48
        assert read(changed("backbone_config.head_dim", drop=True)).backbone.head_dim == 24

    @pytest.mark.parametrize("section", ["thinker_config", "thinker_config.text_config"])
    def test_a_tied_head(self, section: str) -> None:
        assert read(changed(f"{section}.tie_word_embeddings", True)).tied_lm_head


class TestRefused:
    @pytest.mark.parametrize("kind", ["llama", None, "qwen2_5_omni"])
    def test_another_model(self, kind: str | None) -> None:
        refused(changed("model_type", kind), repr(kind), "'chroma'")

    @pytest.mark.parametrize("raw", [[], "chroma", None, {}])
    def test_no_configuration_at_all(self, raw: Any) -> None:
        refused(raw, "another model")

    @pytest.mark.parametrize(
        "path",
        [
            "thinker_config",
            "backbone_config",
            "decoder_config",
            "codec_config",
            "thinker_config.text_config",
            "thinker_config.audio_config",
        ],
    )
    def test_a_missing_section(self, path: str) -> None:
        *within, name = path.split(".")
        refused(changed(path, drop=True), *within, f"the section {name} is missing")
        refused(changed(path, "none"), *within, f"the section {name} is missing")

    @pytest.mark.parametrize(
        "path",
        [
            "audio_num_codebooks",
            "codebook_eos_token_id",
            "text_start_token_id",
            "text_end_token_id",
            "im_end_token_id",
            "thinker_config.audio_token_index",
            "thinker_config.text_config.vocab_size",
            "thinker_config.text_config.hidden_size",
            "thinker_config.text_config.rms_norm_eps",
            "thinker_config.audio_config.n_window",
            "thinker_config.audio_config.output_dim",
            "backbone_config.vocab_size",
            "backbone_config.num_key_value_heads",
            "decoder_config.num_hidden_layers",
            "decoder_config.intermediate_size",
            "codec_config.codebook_size",
        ],
    )
    def test_a_field_that_is_missing_or_no_number(self, path: str) -> None:
        *within, name = path.split(".")
        for raw in (changed(path, drop=True), changed(path, "12"), changed(path, True)):
            refused(raw, *within, name)
        refused(changed(path, "12"), f"{name} is '12'")

    def test_a_size_with_a_fraction(self) -> None:
        refused(
            changed("decoder_config.hidden_size", 64.5), "decoder_config", "hidden_size is 64.5"
        )

    @pytest.mark.parametrize("section", ["thinker_config.text_config", "backbone_config"])
    @pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic", "longrope"])
    def test_other_scalings_of_positions(self, section: str, kind: str) -> None:
        rope = {"rope_type": kind, "rope_theta": 500000.0, "factor": 4.0}
        raw = changed(f"{section}.rope_parameters", rope)
        refused(raw, section.rpartition(".")[2], repr(kind), "llama3")
        old = changed(f"{section}.rope_parameters", {})
        inside = old
        for key in section.split("."):
            inside = inside[key]
        inside |= {"rope_theta": 5e5, "rope_scaling": {"type": kind, "factor": 4.0}}
        refused(old, section.rpartition(".")[2], repr(kind))

    @pytest.mark.parametrize(
        "field", ["factor", "low_freq_factor", "high_freq_factor", "rope_theta"]
    )
    def test_llama3_without_a_field(self, field: str) -> None:
        rope = LLAMA3 | {"rope_theta": 5e5}
        del rope[field]
        refused(changed("decoder_config.rope_parameters", rope), "decoder_config", "rope", field)

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("thinker_config.text_config.hidden_act", "gelu"),
            ("thinker_config.text_config.use_sliding_window", True),
            ("thinker_config.audio_config.activation_function", "relu"),
            ("thinker_config.audio_config.n_window", 25),
            ("backbone_config.attention_bias", True),
            ("decoder_config.mlp_bias", True),
            ("audio_num_codebooks", 16),
        ],
    )
    def test_what_is_not_implemented(self, path: str, value: Any) -> None:
        *within, name = path.split(".")
        refused(changed(path, value), *within, f"{name} is {value!r}")

    @pytest.mark.parametrize(
        "path",
        [
            "thinker_config.text_config.hidden_size",
            "thinker_config.audio_config.output_dim",
            "backbone_config.hidden_size",
        ],
    )
    def test_unequal_widths(self, path: str) -> None:
        raw = changed(path, 120)
        raw["thinker_config"]["text_config"]["head_dim"] = 24
        refused(raw, "must have the same width", "120", "96")

    @pytest.mark.parametrize("axes", [[4, 4], [4, 4, 4, 4], "4,4,4", [4, 4, 4.0], 12])
    def test_axes_that_are_not_three(self, axes: Any) -> None:
        raw = changed("thinker_config.text_config.rope_parameters.mrope_section", axes)
        refused(raw, "text_config", "mrope_section is", "three whole numbers")

    @pytest.mark.parametrize("axes", [[4, 4, 5], [16, 24, 24]])
    def test_axes_that_do_not_fit_the_heads(self, axes: list[int]) -> None:
        raw = changed("thinker_config.text_config.rope_parameters.mrope_section", axes)
        refused(raw, "text_config", "mrope_section must add up to its half, 12")

    @pytest.mark.parametrize("rope", ["default", ["llama3"]])
    def test_a_rope_that_is_no_section(self, rope: Any) -> None:
        refused(changed("decoder_config.rope_parameters", rope), "decoder_config", "rope")

    @pytest.mark.parametrize("heads", [5, 3])
    def test_heads_that_do_not_share(self, heads: int) -> None:
        raw = changed("backbone_config.num_attention_heads", heads)
        refused(raw, "backbone_config", "num_attention_heads", str(heads))

    @pytest.mark.parametrize("value", [15, "16"])
    def test_an_odd_head(self, value: Any) -> None:
        refused(changed("decoder_config.head_dim", value), "decoder_config", "head_dim")


class TestFolder:
    def test_missing(self, tmp_path: Path) -> None:
        path = re.escape(str(tmp_path / "config.json"))
        with pytest.raises(CheckpointError, match=f"{path}: no such file"):
            ChromaConfig.from_folder(tmp_path)

    @pytest.mark.parametrize("content", [b"", b'{"half": ', b"\xff\xfe"])
    def test_no_json(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(CheckpointError, match="not readable as JSON"):
            ChromaConfig.from_folder(tmp_path)

    def test_a_folder_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").mkdir()
        with pytest.raises(CheckpointError, match="not readable as JSON"):
            ChromaConfig.from_folder(tmp_path)
