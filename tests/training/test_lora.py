"""LoRA: begins as nothing, learns alone, folds away."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from chroma_plugin.errors import ConfigError
from chroma_plugin.model.layers import Transformer
from chroma_plugin.training.lora import LoraLinear, add_lora, fold_lora
from chroma_plugin.training.sequence import read_whole
from tests.training.test_sequence import MULTIMODAL, stack


def test_it_begins_as_the_projection_alone() -> None:
    base = nn.Linear(6, 4)
    x = torch.randn(3, 6)
    assert torch.equal(LoraLinear(base, 2, 4.0)(x), base(x))


def test_only_the_small_matrices_learn_and_fold_into_a_plain_projection() -> None:
    base = nn.Linear(6, 4)
    lora = LoraLinear(base, 2, 4.0)
    assert [name for name, p in lora.named_parameters() if p.requires_grad] == ["down", "up"]
    nn.init.normal_(lora.up)
    x = torch.randn(3, 6)
    folded = lora.folded()
    assert type(folded) is nn.Linear
    torch.testing.assert_close(folded(x), lora(x))
    expected = base.weight + 2.0 * lora.up @ lora.down
    torch.testing.assert_close(folded.weight, expected)


def test_frozen_weights_may_be_bfloat16() -> None:
    base = nn.Linear(6, 4, dtype=torch.bfloat16)
    lora = LoraLinear(base, 2, 4.0)
    assert lora.down.dtype == torch.float32
    assert lora(torch.randn(3, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert lora.folded().weight.dtype == torch.bfloat16


def test_a_stack_keeps_the_names_of_its_weights() -> None:
    made: Transformer = stack(MULTIMODAL)
    names, x = set(made.state_dict()), torch.randn(1, 4, 24)
    with torch.no_grad():
        before = read_whole(made, x)
        add_lora(made, 3)
        assert names < set(made.state_dict())
        for name, parameter in made.named_parameters():
            assert parameter.requires_grad is name.endswith((".down", ".up")), name
        torch.testing.assert_close(read_whole(made, x), before)
        fold_lora(made)
        torch.testing.assert_close(read_whole(made, x), before)
    assert set(made.state_dict()) == names


def test_folding_without_lora_does_nothing() -> None:
    made = stack(MULTIMODAL)
    before = [block.get_submodule("attention.qkv") for block in made.blocks]
    fold_lora(made)
    assert before == [block.get_submodule("attention.qkv") for block in made.blocks]


def test_a_rank_of_nought_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank of LoRA is 0"):
        add_lora(stack(MULTIMODAL), 0)
