"""The small world: its size, what is held out, and that follow-ups need the turn before."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from chroma_plugin.training import domain
from chroma_plugin.training.domain import HELD_OUT, answers, dialogue, plain, reference_text


def drawn(split: domain.Split, count: int = 400, turns: int = 4) -> list[domain.Dialogue]:
    rng = np.random.default_rng(7)
    return [dialogue(rng, split, turns) for _ in range(count)]


def keys(row: domain.Dialogue) -> set[tuple[str, str]]:
    """Each question with every topic that it may have been asked on."""
    topics = {before for before, _ in HELD_OUT} | {"*"}
    return {(topic, plain(exchange.question)) for exchange in row for topic in topics}


def test_over_a_hundred_short_answers_of_few_words() -> None:
    everything = answers()
    assert len(everything) == len(set(everything)) > 200
    assert all(2 <= len(answer.split()) <= 9 for answer in everything)
    words = Counter(re.findall(r"[a-z']+", " ".join(everything).lower()))
    assert len(words) < 250


def test_every_answer_is_asked_in_training_and_in_several_phrasings() -> None:
    asked: dict[str, set[str]] = defaultdict(set)
    for topics in domain._askings()["train"].values():
        for answer, row in topics.items():
            asked[answer] |= {asking.question for asking in row}
    assert set(asked) == set(answers())
    assert min(len(questions) for questions in asked.values()) >= 3


def test_no_question_has_two_answers() -> None:
    found: dict[tuple[str, str], str] = {}
    for asking in domain._everything():
        assert found.setdefault(asking.key, asking.answer) == asking.answer, asking


def test_a_fixed_share_of_phrasings_is_held_out_and_every_answer_has_some() -> None:
    every = {asking.key for asking in domain._everything()}
    of_answers = {key for key in HELD_OUT if key[0] != "*"}
    assert of_answers < every
    assert 0.06 < len(of_answers) / len(every) < 0.12
    held = {a for topics in domain._askings()["heldout"].values() for a in topics}
    assert held == set(answers())


def test_training_never_asks_what_is_held_out_and_tests_ask_nothing_else() -> None:
    table = domain._askings()["train"]
    rows = [row for topics in table.values() for row in topics.values()]
    train = {asking.key for row in rows for asking in row}
    assert not train & HELD_OUT
    assert train | HELD_OUT >= {asking.key for asking in domain._everything()}
    again = {plain(question) for question in domain.say.AGAIN}
    told = {(asking.key[1], asking.answer) for row in rows for asking in row}
    for row in drawn("train"):
        assert ("", plain(row[0].question)) in train
        assert all((plain(e.question), e.answer) in told or plain(e.question) in again for e in row)
    for row in drawn("heldout"):
        for exchange in row:
            assert keys((exchange,)) & HELD_OUT, exchange
    assert not again & {plain(question) for question in domain.say.AGAIN_HELD_OUT}


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_dialogues_are_the_same_for_the_same_seed(split: domain.Split) -> None:
    assert drawn(split, 20) == drawn(split, 20)
    assert len({row[0].question for row in drawn(split, 100)}) > 50


def test_answers_of_dialogues_are_answers_of_the_world() -> None:
    known = set(answers())
    assert {
        e.answer for split in ("train", "heldout") for row in drawn(split) for e in row
    } <= known


def test_follow_ups_need_the_turn_before() -> None:
    """The same words get different answers, by what came before."""
    got: dict[str, set[str]] = defaultdict(set)
    for row in drawn("train", 2000):
        for exchange in row[1:]:
            got[plain(exchange.question)].add(exchange.answer)
    assert len(got["and plus two?"]) > 3
    assert len(got["and after that?"]) > 3
    assert len(got["say that again."]) > 3
    on = sum(len(found) > 1 for found in got.values())
    assert on > 10


def test_a_wish_to_hear_it_again_gets_the_answer_before() -> None:
    wishes = {plain(question) for question in (*domain.say.AGAIN, *domain.say.AGAIN_HELD_OUT)}
    seen = 0
    for row in drawn("train"):
        for before, after in pairwise(row):
            if plain(after.question) in wishes:
                assert after.answer == before.answer
                seen += 1
    assert seen > 20


def test_ornaments_are_no_part_of_a_phrasing() -> None:
    assert plain("So, what is the capital of Italy, please?") == "what is the capital of italy?"
    assert plain("Count to five.") == "count to five."


def test_the_packaged_question_and_greetings_are_in_it() -> None:
    asked = {asking.question: asking.answer for asking in domain._everything()}
    assert asked["What is the capital of France?"] == "The capital of France is Paris."
    assert {"Hello.", "Good morning.", "Goodbye."} < set(asked)


def test_what_it_does_not_know_gets_a_polite_answer() -> None:
    assert len(domain.UNKNOWN) > 40
    asked = {asking.question: asking.answer for asking in domain._everything()}
    assert {asked[question] for question in domain.UNKNOWN} == {domain.NOT_KNOWN}


def test_reference_texts_are_sentences_and_no_answers() -> None:
    rng = np.random.default_rng(1)
    texts = [reference_text(rng, 1) for _ in range(50)]
    assert len(set(texts)) > 45
    assert not set(texts) & set(answers())
    assert all(re.fullmatch(r"[A-Z][a-z ,]+\.", text) for text in texts)
    assert not any(re.search(r"\b[Aa] [aeiou]", text) for text in texts)
    assert reference_text(rng, 3).count(".") == 3


def test_a_dialogue_has_a_turn_at_least() -> None:
    with pytest.raises(ValueError, match="0 turns"):
        dialogue(np.random.default_rng(0), "train", 0)
