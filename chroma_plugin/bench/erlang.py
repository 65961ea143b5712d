"""How full a number of places may be: Erlang's formulas, and how many calls share rows.

Calls come at random, and none knows of another. How long they last may follow any distribution.
"""

from __future__ import annotations

import math


def erlang_b(erlangs: float, places: int) -> float:
    """The share of calls that find every place taken and go away.

    Args:
        erlangs: calls that there would be at the same time, on average, with room for all.
        places: that there are.
    """
    blocked = 1.0
    for n in range(1, places + 1):
        blocked = erlangs * blocked / (n + erlangs * blocked)
    return blocked


def erlang_c(erlangs: float, places: int) -> float:
    """The share of calls that have to wait where they wait instead of going away; 1 if the line
    grows without end."""
    if erlangs >= places:
        return 1.0
    blocked = erlang_b(erlangs, places)
    return blocked / (1 - erlangs / places * (1 - blocked))


def erlangs_for(places: int, blocking: float) -> float:
    """The most calls at the same time, on average, of which no larger share is refused."""
    low, high = 0.0, places / (1 - blocking) + 1
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if erlang_b(middle, places) <= blocking else (low, middle)
    return low


def calls_for_rows(rows: int, speaking: float, late: float) -> int:
    """Calls of one GPU whose replies hardly ever wait for a row.

    Args:
        rows: replies that it makes at the same time.
        speaking: the share of a call in which a reply is made.
        late: the share of moments in which more than `rows` may be wanted.

    Returns:
        The largest n for which P(Binomial(n, speaking) > rows) <= late; at least `rows`.
    """
    calls = rows
    while _more_than(rows, calls + 1, speaking) <= late:
        calls += 1
        if calls >= 100 * rows:
            break
    return calls


def _more_than(rows: int, calls: int, speaking: float) -> float:
    odds = math.log(speaking), math.log1p(-speaking)
    whole = math.lgamma(calls + 1)
    return math.fsum(
        math.exp(
            whole
            - math.lgamma(n + 1)
            - math.lgamma(calls - n + 1)
            + n * odds[0]
            + (calls - n) * odds[1]
        )
        for n in range(rows + 1, calls + 1)
    )
