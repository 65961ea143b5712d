"""What training takes, computed on the meta device."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from chroma_plugin.model.config import ChromaConfig
from chroma_plugin.training.dry_run import PLANS, dry_run, released_config, table
from chroma_plugin.training.speaking import SpeakingPlan
from chroma_plugin.training.tiny import SMALLEST, make_config, make_tokenizer


@pytest.fixture(scope="module")
def small() -> ChromaConfig:
    return ChromaConfig.from_dict(make_config(make_tokenizer(), SMALLEST), "small")


def test_weights_are_counted_by_what_learns(small: ChromaConfig) -> None:
    plan = SpeakingPlan(replies=2)
    both = dry_run(small, plan, frames=10, tokens=6)
    depth = dry_run(small, replace(plan, stage="depth"), frames=10, tokens=6)
    lora = dry_run(small, replace(plan, lora=4), frames=10, tokens=6)
    assert both.trained > depth.trained > lora.trained > 0
    assert both.gradients == 4 * both.trained and both.moments == 8 * both.trained
    assert both.total == both.weights + both.gradients + both.moments + both.activations
    assert both.positions == 2 * (2 + 3 + 5 + 10 + 12)
    assert depth.activations < both.activations and depth.flops < both.flops


def test_recomputing_takes_less_memory_and_more_time(small: ChromaConfig) -> None:
    plan = SpeakingPlan(replies=2)
    plain = dry_run(small, plan, frames=60, tokens=20)
    again = dry_run(small, replace(plan, recompute=True), frames=60, tokens=20)
    assert again.activations < 0.5 * plain.activations
    assert again.flops > plain.flops


def test_twice_the_replies_are_twice_the_activations(small: ChromaConfig) -> None:
    one, two = (dry_run(small, SpeakingPlan(replies=n), frames=40, tokens=10) for n in (2, 4))
    assert two.activations == pytest.approx(2 * one.activations, rel=0.2)


def test_the_table_is_of_the_released_sizes() -> None:
    config = released_config()
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(config, frames=20, tokens=10))
    text = console.export_text()
    assert all(name.strip() in text for name in PLANS)
    assert "1138.9" in text  # the backbone's 0.97 B, its tables and the depth decoder
