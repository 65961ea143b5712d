"""bench agreement: replies made, read again, and the table of kinds."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from chroma_plugin import cli
from chroma_plugin.bench.agreement import Said, dialogue, judge, make_reply, voice_prompt
from chroma_plugin.bench.sizes import Setup, random_model, sizes
from chroma_plugin.engine.parts import Parts
from chroma_plugin.errors import ConfigError
from chroma_plugin.model.quantize import count_weights, named_weights


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Setup(threads=1, device="cpu").load()


def test_a_greedy_reply_is_judged_as_it_was_made(parts: Parts) -> None:
    """The plain loop's own codes are the likeliest in their places, and so is its text."""
    heard, voice = dialogue(parts, 0, 1.0), voice_prompt(parts)
    made = parts.model.generate_greedy(heard, voice, 11)
    judged = judge(parts.model, heard, voice, Said(made.text_ids, made.codes))
    assert judged.picks.tolist() == made.text_ids
    frames = len(made.codes)
    assert judged.codes.shape == (frames, 8, parts.model.config.codebook_size)
    first = made.backbone_logits[:, : parts.model.config.codebook_size].log_softmax(dim=-1)
    assert torch.allclose(judged.codes[:, 0], first, atol=1e-4)
    likeliest = judged.codes.max(dim=-1).values
    spoken = made.codes < parts.model.config.codebook_size  # a special code may be greedy's
    codes = made.codes.clamp(max=judged.codes.shape[-1] - 1)
    given = judged.codes.gather(-1, codes[..., None])[..., 0]
    assert torch.allclose(given[spoken], likeliest[spoken], atol=1e-4)


def test_a_seed_makes_the_same_reply(parts: Parts) -> None:
    heard, voice = dialogue(parts, 1, 1.0), voice_prompt(parts)
    one, same, other = (make_reply(parts.model, heard, voice, 9, seed) for seed in (1, 1, 2))
    assert torch.equal(one.codes, same.codes)
    assert one.text_ids == same.text_ids == other.text_ids
    assert not torch.equal(one.codes, other.codes)
    assert one.codes.shape == (9, 8)
    assert 0 <= int(one.codes.min()) <= int(one.codes.max()) < parts.model.config.codebook_size


def test_an_empty_reply_is_judged_too(parts: Parts) -> None:
    heard, voice = dialogue(parts, 0, 1.0), voice_prompt(parts)
    empty = Said([3], torch.zeros(0, 8, dtype=torch.int64))
    judged = judge(parts.model, heard, voice, empty)
    assert judged.codes.shape == (0, 8, parts.model.config.codebook_size)
    assert len(judged.picks) == 1


def test_the_table() -> None:
    result = CliRunner().invoke(
        cli.app,
        ["bench", "agreement", "--replies", "2", "--reply", "0.4", "--speech", "0.5",
         "--threads", "1", "--device", "cpu"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    line = json.loads(result.stdout.splitlines()[-1])
    rows = line["figures"]["kinds"]
    assert [row["kind"] for row in rows] == ["none", "int8", "fp8", "int4"]
    none, int8, fp8, int4 = rows
    assert (none["text_equal"], none["code_divergence"], none["weights_ratio"]) == (1.0, 0.0, 1.0)
    assert int8["weights_mb"] == fp8["weights_mb"] > int4["weights_mb"]
    assert none["weights_mb"] > int8["weights_mb"]
    assert 0 <= int8["code_divergence"] < fp8["code_divergence"] < int4["code_divergence"] < 0.1
    assert [row["released_gb"] for row in rows] == [10.7, 5.9, 5.9, 3.99]
    assert all(row["code_log_likelihood"] < 0 for row in rows)
    assert line["figures"]["codes"] == 2 * 5 * 8
    assert "kind int4" in result.stdout


@pytest.mark.parametrize("kinds", ["", "int8,int2", "none"])
def test_kinds_that_are_none_are_refused(kinds: str) -> None:
    result = CliRunner().invoke(cli.app, ["bench", "agreement", "--kinds", kinds])
    assert result.exit_code == 2
    assert "give some of int8, fp8 and int4" in result.stderr


def test_a_seed_draws_the_same_weights_whatever_they_are_stored_in() -> None:
    cpu, tiny = torch.device("cpu"), sizes("tiny")
    plain = dict(named_weights(random_model(tiny, cpu, torch.float32, 5)))
    packed = random_model(tiny, cpu, torch.float32, 5, "int8")
    assert count_weights(packed) == sum(weight.detach().numel() for weight in plain.values())
    for name, weight in named_weights(packed):
        one, other = weight.detach(), plain[name].detach()
        assert float((one - other).norm()) <= 0.01 * float(other.norm()), name


def test_verbs_take_quantised_weights() -> None:
    setup = Setup(size="tiny", quantize="int4", threads=1, device="cpu")
    assert setup.engine_config().quantize == "int4"
    assert setup.facts(setup.load()).dtype == "float32, weights int4"
    with pytest.raises(ConfigError, match="use none, int8, fp8 or int4"):
        Setup(quantize="int3").load()  # type: ignore[arg-type]
    for verb in ("latency", "load", "sweep", "soak"):
        result = CliRunner().invoke(cli.app, ["bench", verb, "--quantize", "int3"])
        assert result.exit_code == 2
        assert "--quantize" in result.stderr
