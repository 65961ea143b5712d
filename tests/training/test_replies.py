"""Replies are drawn from records as they will be asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chroma_plugin.errors import ChromaError
from chroma_plugin.model.prompt import ChatPrompt
from chroma_plugin.model.weights import load_checkpoint
from chroma_plugin.training.codes import encode_folder
from chroma_plugin.training.data import DataPlan, build
from chroma_plugin.training.reasoner import Reasoned
from chroma_plugin.training.records import Records
from chroma_plugin.training.replies import Replies, texts_of
from tests.miniature import MINIATURE
from tests.training.test_data import Hum

ANSWERED, SAID = 1.0, 2.0  # what the made-up states hold


@pytest.fixture(scope="module")
def replies(tmp_path_factory: pytest.TempPathFactory) -> Replies:
    folder: Path = tmp_path_factory.mktemp("records")
    model = load_checkpoint(MINIATURE)
    plan = DataPlan(train=4, heldout=0, shard_dialogues=4, speaker_dialogues=2, references=2)
    build(plan, folder, speaker=Hum())
    encode_folder(model.codec, folder, variants=2)
    records = Records(folder)
    prompt = ChatPrompt.from_checkpoint(MINIATURE, model.config.audio_token)

    def reasoned(text: str, value: float) -> Reasoned:
        tokens = (*prompt.encode(text), model.config.im_end)
        return Reasoned(tokens, np.full((len(tokens), 96), value, np.float16))

    answered = [
        [reasoned(turn.answer.text, ANSWERED) for turn in records[number].turns]
        for number in records.dialogues
    ]
    said = {text: reasoned(text, SAID) for text in texts_of(records)}
    return Replies(records, prompt, answered, said)


def test_answers_are_drawn_with_a_reference_of_their_voice(replies: Replies) -> None:
    plain = replace(replies, word_for_word=0.0, references=0.0)
    records, prompt = replies.records, replies.prompt
    known = {}
    for number in records.dialogues:
        record = records[number]
        for turn in record.turns:
            for variant in (0, 1):
                codes = turn.answer.codes(variant)
                known[codes.tobytes()] = (turn.answer.text, record.references)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        (spoken,) = plain.draw(rng)
        text, references = known[spoken.codes.tobytes()]
        assert prompt.decode(spoken.tokens) == text
        assert prompt.decode(spoken.transcript) in {clip.text for clip in references}
        assert (spoken.states == ANSWERED).all() and len(spoken.states) == len(spoken.tokens)
        seen.add(spoken.codes.tobytes())
    assert len(seen) > len(known) / 2


def test_replies_drawn_together_are_of_one_voice_and_after_one_clip(replies: Replies) -> None:
    records = replies.records
    voices = {}
    for number in records.dialogues:
        for clip in (*records[number].references, *(t.answer for t in records[number].turns)):
            for variant in (0, 1):
                voices.setdefault(clip.codes(variant).tobytes(), set()).add(records[number].speaker)
    rng = np.random.default_rng(0)
    heard = set()
    for _ in range(20):
        drawn = replies.draw(rng, 5)
        assert len(drawn) == 5
        assert len({(tuple(s.transcript), s.reference.tobytes()) for s in drawn}) == 1
        whose = [voices[s.codes.tobytes()] for s in drawn] + [voices[drawn[0].reference.tobytes()]]
        assert set.intersection(*whose)
        heard |= {s.codes.tobytes() for s in drawn}
    assert len(heard) > 20


def test_some_are_said_word_for_word_and_some_say_a_reference(replies: Replies) -> None:
    rng = np.random.default_rng(0)
    exact = replace(replies, word_for_word=1.0, references=0.0)
    assert all((exact.draw(rng)[0].states == SAID).all() for _ in range(10))
    clips = replace(replies, references=1.0)
    texts = {clip.text for clip in replies.records[0].references}
    texts |= {c.text for n in replies.records.dialogues for c in replies.records[n].references}
    for _ in range(10):
        (spoken,) = clips.draw(rng)
        said, heard = (replies.prompt.decode(ids) for ids in (spoken.tokens, spoken.transcript))
        assert said in texts and heard in texts and said != heard


def test_the_first_ones_are_always_the_same(replies: Replies) -> None:
    turns = len(replies.records)
    first = replies.first(100)
    assert len(first) == turns and len(replies.first(2)) == 2
    record = replies.records[replies.records.dialogues[0]]
    assert np.array_equal(first[0].codes, record.turns[0].answer.codes(0))
    assert np.array_equal(first[0].reference, record.references[0].codes(0))


def test_reasoning_of_other_records_is_refused(replies: Replies) -> None:
    with pytest.raises(ChromaError, match="reason them anew"):
        replace(replies, answered=replies.answered[1:])
