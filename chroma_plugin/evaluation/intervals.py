"""How sure a figure is: intervals of shares and means, and the odds of a vote."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

Z_95 = 1.959964
"""Standard deviations to either side that hold 95% of a normal distribution."""
DRAWS = 2_000
EXACT = 1_000
"""Beyond so many votes the normal distribution stands for the binomial one."""


def wilson(count: int, of: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's interval of a share, low and high; 0 to 1 of nothing.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference,
    Journal of the American Statistical Association, 1927.
    """
    if not of:
        return 0.0, 1.0
    share, spread = count / of, z * z / of
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / of + spread / (4 * of)) / (1 + spread)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def bootstrap(
    values: Sequence[float], *, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float] | None:
    """95% of the means of samples drawn from the values, with replacement; None of none."""
    return grouped_bootstrap(dict(enumerate([v] for v in values)), seed=seed, draws=draws)


def grouped_bootstrap(
    groups: Mapping[Hashable, Sequence[float]], *, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float] | None:
    """As `bootstrap`, drawing whole groups: votes of one listener are not independent.

    With one group its members are drawn instead.
    """
    held = [np.asarray(group, np.float64) for group in groups.values() if len(group)]
    if len(held) == 1:
        held = [np.asarray([value]) for value in held[0]]
    if not held:
        return None
    sums, counts = np.array([g.sum() for g in held]), np.array([len(g) for g in held])
    picked = np.random.default_rng(seed).integers(len(held), size=(draws, len(held)))
    means = sums[picked].sum(axis=1) / counts[picked].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def fewer(count: int, of: int, other: int, other_of: int) -> float:
    """How often chance alone gives so few out of `of`, or fewer, where all are alike.

    Fisher's exact test, one-sided: all `count + other` are dealt out anew.

    Args:
        count: of the ones in question, out of `of`.
        of: how many these are.
        other: of those to compare with, out of `other_of`.
        other_of: how many those are.
    """
    whole, total = of + other_of, count + other
    ways = sum(
        math.comb(of, k) * math.comb(other_of, total - k)
        for k in range(max(0, total - other_of), count + 1)
    )
    return ways / math.comb(whole, total)


def sign_test(first: int, second: int) -> float:
    """How often chance alone parts so many votes at least as unevenly, two-sided."""
    count = first + second
    if not count:
        return 1.0
    if count > EXACT:
        return (
            math.erfc((abs(first - second) - 1) / math.sqrt(2 * count)) if first != second else 1.0
        )
    tail = float(sum(math.comb(count, k) for k in range(min(first, second) + 1)))
    return min(2 * tail / float(2**count), 1.0)
