from __future__ import annotations

import math

import numpy as np
import pytest

from chroma_plugin.evaluation.intervals import (
    bootstrap,
    fewer,
    grouped_bootstrap,
    sign_test,
    wilson,
)


def test_wilson_agrees_with_the_textbook() -> None:
    low, high = wilson(81, 263)  # Newcombe, 1998, table I, method 3
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_bootstrap_of_a_mean_is_about_two_standard_errors_wide() -> None:
    values = np.random.default_rng(1).normal(3.0, 1.0, 400).tolist()
    found = bootstrap(values)
    assert found is not None
    low, high = found
    assert low < 3.0 < high
    assert high - low == pytest.approx(2 * 1.96 * float(np.std(values)) / math.sqrt(400), rel=0.05)
    assert bootstrap(values) == found
    assert bootstrap([]) is None
    assert bootstrap([2.0]) == (2.0, 2.0)


def test_votes_of_one_listener_are_not_independent() -> None:
    groups = {"ann": [1.0] * 50, "bob": [0.0] * 50, "cy": [1.0] * 50, "di": [0.0] * 50}
    together = grouped_bootstrap(groups)
    apart = bootstrap([value for group in groups.values() for value in group])
    assert together is not None and apart is not None
    assert together[1] - together[0] > 3 * (apart[1] - apart[0])
    assert grouped_bootstrap({"ann": [0.0, 1.0] * 20}) != (0.5, 0.5)  # one listener: her votes


def test_the_sign_test() -> None:
    assert sign_test(5, 5) == 1.0
    assert sign_test(0, 0) == 1.0
    assert sign_test(0, 5) == pytest.approx(2 / 32)
    assert sign_test(8, 2) == pytest.approx(2 * 56 / 1024)
    # many votes: the normal distribution, where the exact one ends
    assert sign_test(540, 462) == pytest.approx(sign_test(539, 461), rel=0.05)
    assert sign_test(501, 501) == 1.0


def test_so_few_by_chance() -> None:
    """Fisher's tea: of four cups taken for "milk first" three are, of the other four one."""
    assert fewer(1, 4, 3, 4) == pytest.approx(17 / 70)
    assert fewer(0, 4, 4, 4) == pytest.approx(1 / 70)
    assert fewer(4, 4, 0, 4) == 1.0
    assert fewer(0, 3, 0, 5) == fewer(3, 3, 5, 5) == 1.0
    assert fewer(0, 0, 3, 5) == 1.0
    assert fewer(70, 100, 95, 100) < 1e-4 < 0.05 < fewer(9, 10, 95, 100)
