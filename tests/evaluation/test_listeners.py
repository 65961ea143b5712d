from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chroma_plugin.errors import ConfigError
from chroma_plugin.evaluation.listeners import (
    Attention,
    Key,
    Listener,
    analyse,
    read_key,
    read_listener,
)
from tests.evaluation.conftest import evaluate, refused

KEY: dict[str, Any] = {
    "test": "abc",
    "question": "naturalness",
    "systems": ["ours", "theirs"],
    "clips": {"c1": "ours", "c2": "theirs", "c3": "ours", "c4": "theirs", "c5": "spoiled"},
    "trials": {
        "t1": {"kind": "pair", "name": "one", "group": "g1"},
        "t2": {"kind": "pair", "name": "two", "group": "g2"},
        "t3": {"kind": "repeat", "name": "one", "group": "g1"},
        "t4": {"kind": "anchor", "name": "one", "group": "g3", "right": "c1"},
    },
}


def answers(one: int, two: int, repeat: int, anchor: int) -> list[dict[str, Any]]:
    """Marks as the page gives them: above 0 is for side b."""
    return [
        {"trial": "t1", "a": "c1", "b": "c2", "score": one},
        {"trial": "t2", "a": "c4", "b": "c3", "score": two},  # the other way round
        {"trial": "t3", "a": "c2", "b": "c1", "score": repeat},
        {"trial": "t4", "a": "c5", "b": "c1", "score": anchor},
    ]


def result(folder: Path, name: str, *marks: int, **changes: Any) -> Path:
    path = folder / f"{name}.json"
    row = {"test": "abc", "question": "naturalness", "listener": name, "answers": answers(*marks)}
    path.write_text(json.dumps(row | changes))
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "page.key.json"
    path.write_text(json.dumps(KEY))
    return path


def test_a_result_is_read_by_the_key(key: Path, tmp_path: Path) -> None:
    known = read_key(key)
    ann = read_listener(result(tmp_path, "ann", -2, -1, 3, 2), known)
    assert ann.marks == {"one": -2, "two": 1}  # ours much better, then theirs slightly
    assert (ann.anchors, ann.repeats) == ([True], [True])
    bob = read_listener(result(tmp_path, "bob", -2, 0, -1, -1), known)
    assert (bob.anchors, bob.repeats) == ([False], [False])
    cy = read_listener(result(tmp_path, "cy", 0, 0, 3, 0), known)
    assert (cy.anchors, cy.repeats) == ([False], [True])  # no preference contradicts nothing
    assert ann.inattentive(Attention()) is None
    assert bob.inattentive(Attention()) == "bob: 0 of 1 anchors answered well, 75% are needed"
    assert bob.inattentive(Attention(0.0, 0.0)) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"test": "other"}, "belongs to another page"),
        ({"answers": [{"trial": "t9", "a": "c1", "b": "c2", "score": 0}]}, "KeyError"),
        ({"answers": [{"trial": "t1", "a": "c1", "b": "c2", "score": 9}]}, "a mark of 9"),
        (
            {"answers": [{"trial": "t1", "a": "c1", "b": "c3", "score": 1}]},
            "a pair of ours and ours",
        ),
        ({"answers": None}, "is no result of this page"),
    ],
)
def test_other_results_are_refused(
    key: Path, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        read_listener(result(tmp_path, "ann", 1, 1, 1, 1, **changes), read_key(key))


def test_other_keys_are_refused(tmp_path: Path) -> None:
    for text, why in (("[]", "no result"), ("{}", "is no key"), ("", "cannot be read")):
        (tmp_path / "key.json").write_text(text)
        with pytest.raises(ConfigError, match=why):
            read_key(tmp_path / "key.json")


def listeners(votes: list[list[int]], **changes: Any) -> list[Listener]:
    return [
        Listener(
            f"l{i}", {f"p{k}": mark for k, mark in enumerate(marks)}, [True], [True], **changes
        )
        for i, marks in enumerate(votes)
    ]


def test_the_articles_form_of_preference() -> None:
    key = Key("abc", "similarity", ("ours", "theirs"), {}, {})
    # 4 of 10 for ours, 4 for theirs, 2 deuce
    votes = [[-1, -2, 1, 2, 0], [-3, -1, 3, 1, 0]]
    outcome = analyse(key, listeners(votes))
    figures = outcome.figures
    assert figures["percent"] == {"ours": 40.0, "theirs": 40.0, "deuce": 20.0}
    low, high = figures["percent_95"]["ours"]
    assert (low, high) == pytest.approx((16.82, 68.73), abs=0.01)  # Wilson, 4 of 10
    assert (figures["cmos"], figures["p"]) == (0.0, 1.0)
    assert (figures["votes"], figures["listeners"]) == (10, 2)
    theirs = {str(row[0]): list(row[1:]) for row in outcome.grids[2].rows}
    assert theirs["similarity"] == [40.6, 42.4, 17.0]


def test_a_clear_preference_is_one() -> None:
    key = Key("abc", "naturalness", ("ours", "theirs"), {}, {})
    outcome = analyse(key, listeners([[-2] * 10, [-1] * 9 + [1]]))
    figures = outcome.figures
    assert figures["percent"]["ours"] == 95.0
    assert figures["cmos"] == pytest.approx((20 + 9 - 1) / 20)  # above 0: ours is better
    assert figures["cmos_95"][0] > 0
    assert figures["p"] == pytest.approx(2 * 21 / 2**20, rel=1e-2)


def test_the_inattentive_do_not_count() -> None:
    key = Key("abc", "naturalness", ("ours", "theirs"), {}, {})
    careful, careless = listeners([[-1] * 4, [1] * 4])
    careless.anchors = [False, False]
    outcome = analyse(key, [careful, careless])
    assert outcome.figures["percent"]["ours"] == 100.0
    assert (outcome.figures["set_aside"], outcome.figures["anchors"]) == (1, 0.3333)
    assert "l1: 0 of 2 anchors" in outcome.set_aside[0]
    with pytest.raises(ConfigError, match=r"No listener is left to count\. l1"):
        analyse(key, [careless])
    with pytest.raises(ConfigError, match="Results of l0 come twice"):
        analyse(key, [careful, careful])


def test_by_the_command(key: Path, tmp_path: Path) -> None:
    files = [
        result(tmp_path, "ann", -2, -1, 3, 2),
        result(tmp_path, "bob", -1, 2, 1, 1),
        result(tmp_path, "cy", 1, 1, 1, -3),
    ]
    line = evaluate("cmos", "score", key, *files, "--plot", tmp_path / "c.png")
    assert line["figures"]["listeners"] == 2
    assert line["figures"]["percent"] == {"ours": 75.0, "theirs": 25.0, "deuce": 0.0}
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    lax = evaluate("cmos", "score", key, *files, "--anchors", 0, "--repeats", 0, "--json")
    assert lax["figures"]["listeners"] == 3
    assert "cannot be read" in refused("cmos", "score", key, tmp_path / "none.json")
