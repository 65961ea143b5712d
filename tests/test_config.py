"""Settings validate themselves: what is out of range, of another kind or unknown is named."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from chroma_plugin.config import GREEDY, EngineConfig, SamplingParams
from chroma_plugin.errors import ConfigError

NAMES = [field.name for field in dataclasses.fields(SamplingParams)]


class TestSampling:
    def test_the_defaults_are_the_released_models(self) -> None:
        assert SamplingParams() == SamplingParams(1.0, 50, 1.0, None, 1.0)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "0.5", [1], -1, 1e9])
    @pytest.mark.parametrize("name", NAMES)
    def test_what_cannot_be_is_refused_by_name(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=rf"SamplingParams\.{name} is .*must be a") as caught:
            SamplingParams(**{name: value})
        assert repr(value) in str(caught.value)

    @pytest.mark.parametrize("name", sorted(set(NAMES) - {"seed"}))
    def test_nothing_is_not_a_setting(self, name: str) -> None:
        with pytest.raises(ConfigError, match=name):
            SamplingParams(**{name: None})  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("top_k", 1.5),
            ("seed", 0.5),
            ("seed", 2**63),
            ("top_p", 0),
            ("repetition_penalty", 0.99),
            ("repetition_penalty", 5.01),
        ],
    )
    def test_of_each_field(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=name):
            SamplingParams(**{name: value})

    def test_the_ends_are_allowed(self) -> None:
        SamplingParams(0.0, 0, 1e-6, 0, 1)
        SamplingParams(5.0, 1_000_000, 1, 2**63 - 1, 5.0)

    def test_options_from_outside(self) -> None:
        options = {"temperature": 0.5, "top_k": 7, "seed": None, "repetition_penalty": 1.1}
        assert SamplingParams.from_dict(options) == SamplingParams(0.5, 7, 1.0, None, 1.1)
        assert SamplingParams.from_dict({}) == SamplingParams()

    @pytest.mark.parametrize(
        "name", ["min_p", "typical_p", "num_beams", "repetition_window", "Temperature", "", "cls"]
    )
    def test_unknown_options_are_refused_and_the_known_ones_listed(self, name: str) -> None:
        with pytest.raises(ConfigError) as caught:
            SamplingParams.from_dict({"top_k": 5, name: 0.5})
        refused, listed = str(caught.value).split("Those that are:")
        assert repr(name) in refused and "top_k" not in refused
        assert all(known in listed for known in NAMES)

    def test_all_unknown_options_are_named_at_once(self) -> None:
        with pytest.raises(ConfigError, match="'min_p', 'num_beams', 7"):
            SamplingParams.from_dict({"num_beams": 2, "min_p": 0.1, 7: 7})  # type: ignore[dict-item]

    @pytest.mark.parametrize("options", [None, "top_k", [("top_k", 5)], 3])
    def test_options_that_are_no_mapping(self, options: Any) -> None:
        with pytest.raises(ConfigError, match="use a mapping"):
            SamplingParams.from_dict(options)

    def test_a_known_option_is_checked(self) -> None:
        with pytest.raises(ConfigError, match=r"top_p is nan"):
            SamplingParams.from_dict({"top_p": math.nan})

    def test_what_is_argmax(self) -> None:
        assert GREEDY.is_argmax
        assert SamplingParams(temperature=0.0, top_k=7, top_p=0.5, seed=3).is_argmax
        assert not SamplingParams(temperature=0.0, repetition_penalty=1.1).is_argmax
        assert not SamplingParams(temperature=0.1).is_argmax


class TestEngine:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("device", "tpu"),
            ("device", None),
            ("dtype", "float16"),
            ("depth_positions", "both"),
            ("model", ""),
            ("max_replies", 0),
            ("max_replies", True),
            ("max_replies", 2.0),
            ("thinker_rows", 3),
            ("run_ahead_s", 0.4),
            ("run_ahead_s", math.nan),
            ("run_ahead_s", True),
            ("run_ahead_s", "2"),
            ("max_reply_s", math.inf),
            ("max_reply_s", "60"),
            ("queue_timeout_s", math.nan),
            ("voice_cache", 0),
            ("voice_cache_mb", -1),
            ("voice_cache_mb", math.nan),
            ("voice_cache_mb", math.inf),
            ("voice_cache_mb", True),
            ("transcript_instructions", " "),
            ("transcript_instructions", None),
        ],
    )
    def test_what_cannot_be_is_refused_by_name(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=rf"EngineConfig\.{name} "):
            EngineConfig(**{name: value})

    def test_no_bound_on_running_ahead_is_allowed(self) -> None:
        assert EngineConfig(run_ahead_s=math.inf).run_ahead_s == math.inf

    def test_rows_of_the_thinkers_cache(self) -> None:
        assert EngineConfig(max_replies=3).thinker_cache_rows == 12
        assert EngineConfig(max_replies=3, thinker_rows=5).thinker_cache_rows == 5
