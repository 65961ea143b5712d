"""Small checkpoints: the packaged one, the smallest one, and those of other sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chroma_plugin.config import DEFAULT_MODEL
from chroma_plugin.errors import ConfigError
from chroma_plugin.model.codec import CodecConfig
from chroma_plugin.model.prompt import ChatPrompt
from chroma_plugin.model.weights import check_checkpoint, find_checkpoint, load_checkpoint
from chroma_plugin.training.codec import small_config
from chroma_plugin.training.dry_run import RELEASED
from chroma_plugin.training.tiny import (
    SMALLEST,
    TRAINABLE,
    StackSizes,
    make_config,
    make_tiny,
    make_tokenizer,
    ready_to_learn,
    save_checkpoint,
    sharpen,
)


def test_a_checkpoint_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one", "other"):
        save_checkpoint(make_tiny(tmp_path / name), tmp_path / name, torch.bfloat16)
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert "model.safetensors" in files and "tokenizer.json" in files
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_the_packaged_checkpoint_was_trained_and_is_small_enough() -> None:
    packaged = find_checkpoint(DEFAULT_MODEL)
    assert sum(file.stat().st_size for file in packaged.iterdir()) < 25e6
    report = check_checkpoint(packaged)
    assert report.config.weights == "trained"
    assert report.config.text.hidden_size == TRAINABLE.text.hidden_size
    assert report.config.text_vocabulary == TRAINABLE.vocabulary


def test_a_trainable_one_is_small_enough_to_ship(tmp_path: Path) -> None:
    model = make_tiny(tmp_path, TRAINABLE, ["What is it?", "It is noon."])
    save_checkpoint(model, tmp_path, torch.bfloat16, torch.float32)
    report = check_checkpoint(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 25e6
    assert report.config.text.hidden_size == report.config.backbone.hidden_size == 192
    assert model.codec.config == small_config()
    loaded = load_checkpoint(tmp_path)
    for name, tensor in model.codec.state_dict().items():
        assert torch.equal(loaded.codec.state_dict()[name], tensor), name


def test_a_sharpened_model_draws_at_one_as_it_did_at_less(tmp_path: Path) -> None:
    model = make_tiny(tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sharpen(model, 0.5)
    after = model.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert changed == {"backbone.codebook0_head.weight", "depth.heads"}
    for name in changed:  # halving is exact
        assert torch.equal(after[name].softmax(-1), (before[name] / 0.5).softmax(-1)), name
    sharpen(model, 1.0)
    assert all(torch.equal(model.state_dict()[name], after[name]) for name in after)


def test_a_tokenizer_learns_its_texts() -> None:
    few = make_tokenizer(["noon and midnight"] * 50, 400)
    assert len(few) == 400
    assert few.tokenize("noon and midnight") == ["noon", "\u0120and", "\u0120midnight"]


def test_released_sizes_have_the_released_layout() -> None:
    raw = make_config(make_tokenizer(), RELEASED)
    text = raw["thinker_config"]["text_config"]
    assert text["rope_parameters"]["mrope_section"] == [16, 24, 24]
    assert raw["backbone_config"]["vocab_size"] == 2051
    assert replace(CodecConfig.from_dict(raw["codec_config"]), num_quantizers=32) == CodecConfig()


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="they must be equal"):
        replace(SMALLEST, backbone=StackSizes(64, 128, 1, 4, 2))
    with pytest.raises(ConfigError, match=r"depth: hidden_size 64 must be a multiple .* 5"):
        replace(SMALLEST, depth=StackSizes(64, 128, 1, 5, 5))


def test_ready_to_learn_is_the_chat_model_with_gentle_weights(tmp_path: Path) -> None:
    model = make_tiny(tmp_path)
    loud = model.backbone.transformer.blocks[0].attention.out.weight.std()
    ready = ready_to_learn(model)
    assert ready is model and ready.training
    assert all(p.requires_grad for p in model.parameters())
    gentle = float(model.backbone.transformer.blocks[0].attention.out.weight.detach().std())
    assert gentle == pytest.approx(float(loud) * 6**-0.5, rel=1e-4)
    assert float(model.thinker.embedding.weight.detach().std()) == pytest.approx(0.3, rel=0.05)
    ChatPrompt.from_checkpoint(tmp_path, model.config.audio_token)
