"""The log and the cache that follows it: whatever changes, catching up makes them equal."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from chroma_plugin.config import EngineConfig
from chroma_plugin.engine.dialogue import Dialogue, Entry
from chroma_plugin.engine.runner import Runner
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.config import ChromaConfig
from chroma_plugin.model.layers import KVCache
from chroma_plugin.model.prompt import ChatPrompt
from chroma_plugin.model.weights import load_checkpoint
from tests.miniature import MINIATURE

OPEN, CLOSE = [1001, 1002], [1003]


def embed(ids: list[int]) -> Tensor:
    """A token is a vector that tells it from all others, and from audio."""
    assert ids, "nothing to embed"
    return torch.tensor([[float(i), 0.0] for i in ids])


def sound(*values: int) -> Tensor:
    return torch.tensor([[float(v), 1.0] for v in values]).reshape(-1, 2)


def flat(dialogue: Dialogue) -> Tensor:
    """The log as one row of embeddings, spelt out the long way."""
    rows: list[list[float]] = []
    for entry in dialogue.entries:
        rows += [[float(i), 0.0] for i in entry.before]
        rows += [] if entry.audio is None else entry.audio.tolist()
        rows += [[float(i), 0.0] for i in entry.tokens + entry.after]
    return torch.tensor(rows).reshape(-1, 2)


def system(*ids: int) -> Entry:
    return Entry("system", before=list(ids))


def user(*values: int) -> Entry:
    return Entry("user", before=list(OPEN), audio=sound(*values), after=list(CLOSE))


def said(turn: int, *ids: int) -> Entry:
    return Entry("assistant", turn, before=list(OPEN), tokens=list(ids), after=list(CLOSE))


def talk(cached: int | None = None) -> Dialogue:
    """System prompt 0..3, user 4..9, reply 10..16, user 17..22, reply 23..29; all of it cached."""
    log = [system(1, 2, 3, 4), user(5, 6, 7), said(1, 8, 9, 10, 11), user(12, 13, 14)]
    dialogue = Dialogue(embed, [*log, said(2, 15, 16, 17, 18)])
    dialogue.cached = dialogue.positions if cached is None else cached
    return dialogue


class TestLog:
    def test_positions(self) -> None:
        dialogue = talk()
        assert [e.positions for e in dialogue.entries] == [4, 6, 7, 6, 7]
        assert dialogue.positions == len(flat(dialogue)) == 30
        assert [dialogue.start_of(e) for e in dialogue.entries] == [0, 4, 10, 17, 23]
        assert Entry("listening").positions == 0

    def test_an_entry_is_itself_alone(self) -> None:
        """Two messages of the same words are two messages."""
        dialogue = Dialogue(embed, [system(1)])
        first, second = said(1, 5), said(1, 5)
        dialogue.append(first)
        dialogue.append(second)
        assert dialogue.start_of(second) == 5
        dialogue.remove(second)
        assert dialogue.entries[1] is first
        with pytest.raises(ValueError, match="not of this dialogue"):
            dialogue.start_of(second)

    def test_finding_a_turn(self) -> None:
        dialogue = talk()
        dialogue.entries[3].turn = 2  # the user's message is not the reply
        assert dialogue.find(2) is dialogue.entries[4]
        assert dialogue.find(1) is dialogue.entries[2]
        assert dialogue.find(3) is None
        assert dialogue.heard(2) is dialogue.entries[3]
        assert dialogue.heard(1) is None
        assert dialogue.heard(0) is None  # typed text has no turn


class TestPending:
    @pytest.mark.parametrize("cached", [0, 1, 3, 4, 7, 9, 11, 15, 29])
    @pytest.mark.parametrize("most", [1, 2, 5, 100])
    def test_goes_on_from_the_cache(self, cached: int, most: int) -> None:
        dialogue = talk(cached)
        wanted = flat(dialogue)[cached : cached + most]
        assert torch.equal(dialogue.pending(most), wanted)
        assert dialogue.cached == cached  # it only looks

    def test_looks_at_no_more_than_it_needs(self) -> None:
        asked: list[int] = []

        def counting(ids: list[int]) -> Tensor:
            asked.extend(ids)
            return embed(ids)

        dialogue = Dialogue(counting, talk().entries, cached=2)
        dialogue.pending(1)
        assert asked == [3]

    def test_empty_parts_are_passed_over(self) -> None:
        empty = Entry("listening", audio=sound())
        dialogue = Dialogue(embed, [system(1), empty, Entry("aside"), system(2)])
        assert torch.equal(dialogue.pending(9), embed([1, 2]))


class TestChanges:
    """How far each of them sets the cache back."""

    def test_appending_keeps_it(self) -> None:
        dialogue = talk()
        entry = dialogue.append(user(20))
        assert dialogue.entries[-1] is entry
        assert dialogue.cached == 30
        assert torch.equal(dialogue.pending(99), flat(dialogue)[30:])

    @pytest.mark.parametrize(("entry", "at", "cached"), [(0, 0, 0), (1, 2, 6), (4, 6, 29)])
    def test_changed(self, entry: int, at: int, cached: int) -> None:
        dialogue = talk()
        dialogue.changed(dialogue.entries[entry], at)
        assert dialogue.cached == cached
        dialogue.changed(dialogue.entries[-1], 3)  # a later change does not set it forward
        assert dialogue.cached == min(cached, 26)

    def test_a_cut_reply(self) -> None:
        dialogue = talk()
        dialogue.keep_tokens(dialogue.entries[4], 3)
        assert dialogue.cached == 23 + 2 + 3
        assert dialogue.entries[4].tokens == [15, 16, 17]
        assert dialogue.entries[4].after == CLOSE
        assert torch.equal(dialogue.pending(99), embed(CLOSE))
        dialogue.keep_tokens(dialogue.entries[2], 1)
        assert dialogue.cached == 10 + 2 + 1
        assert torch.equal(dialogue.pending(2), torch.cat([embed(CLOSE), embed(OPEN[:1])]))

    @pytest.mark.parametrize("count", [4, 5, 99])
    def test_a_cut_past_its_end_is_none(self, count: int) -> None:
        dialogue = talk()
        dialogue.keep_tokens(dialogue.entries[2], count)
        assert dialogue.cached == 30
        assert dialogue.entries[2].tokens == [8, 9, 10, 11]

    @pytest.mark.parametrize("count", [0, -1])
    def test_a_reply_of_which_nothing_was_heard_goes(self, count: int) -> None:
        dialogue = talk()
        dialogue.keep_tokens(dialogue.entries[2], count)
        assert [e.kind for e in dialogue.entries] == ["system", "user", "user", "assistant"]
        assert dialogue.cached == 10

    def test_closing(self) -> None:
        dialogue = talk()
        reply = dialogue.append(Entry("assistant", 3, list(OPEN), tokens=[30, 31]))
        dialogue.cached = 30 + 3  # the token said last has not been read
        after = list(CLOSE)
        dialogue.close(reply, after)
        after.append(99)
        assert reply.after == CLOSE
        assert dialogue.cached == 33
        assert torch.equal(dialogue.pending(9), embed([31, *CLOSE]))
        dialogue.cached = dialogue.positions
        dialogue.close(reply, [1004])  # once more, with another end
        assert torch.equal(dialogue.pending(9), embed([1004]))

    def test_a_new_system_prompt(self) -> None:
        dialogue = talk()
        dialogue.set_system([50, 51])
        assert dialogue.cached == 0
        assert torch.equal(dialogue.pending(3), embed([50, 51, OPEN[0]]))
        empty = Dialogue(embed)
        empty.set_system([50])
        assert [e.kind for e in empty.entries] == ["system"]
        assert torch.equal(empty.pending(3), embed([50]))


class TestForgetting:
    def test_what_fits_stays(self) -> None:
        dialogue = talk()
        assert dialogue.forget_beyond(30)
        assert dialogue.cached == dialogue.positions == 30

    @pytest.mark.parametrize("limit", [29, 17])
    def test_the_oldest_exchange_goes(self, limit: int) -> None:
        dialogue = talk()
        kept = [dialogue.entries[i] for i in (0, 3, 4)]
        assert dialogue.forget_beyond(limit)
        assert all(a is b for a, b in zip(dialogue.entries, kept, strict=True))
        assert (dialogue.cached, dialogue.positions) == (4, 17)

    def test_the_last_question_stays(self) -> None:
        dialogue = talk()
        before = list(dialogue.entries)
        assert not dialogue.forget_beyond(16)
        assert all(a is b for a, b in zip(dialogue.entries, before, strict=True))
        assert dialogue.cached == 30

    def test_no_more_than_needed_goes(self) -> None:
        dialogue = talk()
        dialogue.append(user(20, 21, 22))
        assert dialogue.positions == 36
        assert dialogue.forget_beyond(35)
        assert len(dialogue.entries) == 4
        assert dialogue.forget_beyond(22)
        assert [e.kind for e in dialogue.entries] == ["system", "user"]

    def test_a_greeting_goes_before_the_first_question(self) -> None:
        log = [system(1), said(1, 2, 3), user(4, 5), said(2, 6)]
        dialogue = Dialogue(embed, log, cached=14)
        assert dialogue.forget_beyond(11)
        assert [e.kind for e in dialogue.entries] == ["system", "user", "assistant"]
        assert dialogue.cached == 1

    def test_where_nobody_asks_the_oldest_replies_go(self) -> None:
        log = [system(1), user(2), said(1, 3), said(2, 4), said(3, 5), Entry("assistant", 4, OPEN)]
        dialogue = Dialogue(embed, log, cached=19)
        assert dialogue.forget_beyond(12)
        assert [e.turn for e in dialogue.entries] == [0, 0, 3, 4]
        assert dialogue.cached == 5
        assert dialogue.forget_beyond(7)
        assert [e.kind for e in dialogue.entries] == ["system", "user", "assistant"]
        assert not dialogue.forget_beyond(6)

    def test_nothing_but_a_system_prompt(self) -> None:
        dialogue = Dialogue(embed, [system(1, 2, 3)], cached=3)
        assert not dialogue.forget_beyond(2)
        assert (dialogue.positions, dialogue.cached) == (3, 3)


class Conversation(RuleBasedStateMachine):
    """Anything that can happen to a conversation, in any order, beside a cache kept as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.dialogue = Dialogue(embed)
        self.dialogue.set_system([1])
        self.cache: list[Tensor] = []
        self.last = 1  # every token and every sound is another
        self.exchange(4)
        self.exchange(3)

    def new(self, count: int) -> list[int]:
        self.last += count
        return list(range(self.last - count + 1, self.last + 1))

    def some(self, data: Any, *kinds: str) -> Entry | None:
        """One of the entries of these kinds, if there is any."""
        found = [e for e in self.dialogue.entries if e.kind in kinds]
        return found[data.draw(st.integers(0, len(found) - 1), "entry")] if found else None

    def read(self, most: int) -> None:
        """What the engine does between two frames: positions from `cached` on are overwritten."""
        piece = self.dialogue.pending(most)
        assert 0 < len(piece) <= most
        self.cache[self.dialogue.cached :] = list(piece)
        self.dialogue.cached += len(piece)

    @property
    def behind(self) -> bool:
        return self.dialogue.cached < self.dialogue.positions

    @rule(words=st.integers(1, 5))
    def exchange(self, words: int) -> None:
        """A question and its answer, all of it read."""
        heard = sound(*self.new(2))
        self.dialogue.append(Entry("user", before=self.new(1), audio=heard, after=self.new(1)))
        reply = Entry("assistant", self.last, self.new(2), tokens=self.new(words))
        self.dialogue.close(self.dialogue.append(reply), self.new(1))
        while self.behind:
            self.read(9)

    # -- the engine

    @precondition(lambda self: self.behind)
    @rule(most=st.integers(1, 12))
    def catch_up_a_little(self, most: int) -> None:
        self.read(most)

    @precondition(lambda self: self.behind)
    @rule(most=st.integers(1, 12))
    def catch_up(self, most: int) -> None:
        while self.behind:
            self.read(most)
        whole = flat(self.dialogue)
        assert len(self.cache) >= self.dialogue.cached == len(whole)
        assert torch.equal(torch.stack(self.cache[: len(whole)]), whole)

    @rule()
    def lose_the_cache(self) -> None:
        self.dialogue.cached = 0
        self.cache = []

    # -- the user

    @rule(count=st.integers(0, 4))
    def instruct(self, count: int) -> None:
        self.dialogue.set_system(self.new(count))

    @rule(kind=st.sampled_from(["user", "aside"]), count=st.integers(0, 4))
    def type(self, kind: Any, count: int) -> None:
        self.dialogue.append(Entry(kind, before=self.new(count)))

    @rule()
    def begin_to_speak(self) -> None:
        self.dialogue.append(Entry("listening", before=self.new(2), audio=sound()))

    @rule(data=st.data(), count=st.integers(0, 4))
    def go_on_speaking(self, data: Any, count: int) -> None:
        """Some of what was heard sounds different now, and more was heard."""
        entry = self.some(data, "listening")
        if entry is None or entry.audio is None:
            return
        same = data.draw(st.integers(0, len(entry.audio)), "same")
        more = sound(*self.new(len(entry.audio) - same + count))
        self.dialogue.changed(entry, len(entry.before) + same)
        entry.audio = torch.cat([entry.audio[:same], more])

    @rule(data=st.data())
    def end_speaking(self, data: Any) -> None:
        entry = self.some(data, "listening")
        if entry is not None:
            if entry is not self.dialogue.entries[-1]:  # moves to the end, as a new message
                self.dialogue.remove(entry)
                self.dialogue.append(entry)
            entry.kind, entry.after = "user", list(CLOSE)

    # -- the assistant

    @rule()
    def begin_to_reply(self) -> None:
        self.dialogue.append(Entry("assistant", self.last, before=self.new(2)))

    @rule(count=st.integers(1, 3), reads=st.booleans())
    def go_on_replying(self, count: int, reads: bool) -> None:
        entry = self.dialogue.entries[-1]
        if entry.kind != "assistant" or entry.after:
            return
        for token in self.new(count):
            if reads and self.behind:
                self.read(1)  # the token before this one
            entry.tokens.append(token)

    @rule(data=st.data(), end=st.booleans())
    def close(self, data: Any, end: bool) -> None:
        entry = self.some(data, "assistant")
        if entry is not None:
            self.dialogue.close(entry, self.new(2) if end else [])

    @rule(data=st.data(), count=st.integers(0, 5))
    def cut(self, data: Any, count: int) -> None:
        entry = self.some(data, "assistant")
        if entry is not None:
            self.dialogue.keep_tokens(entry, count)

    @rule(data=st.data())
    def remove(self, data: Any) -> None:
        entry = self.some(data, "user", "listening", "assistant", "aside")
        if entry is not None:
            self.dialogue.remove(entry)
            assert all(e is not entry for e in self.dialogue.entries)

    @rule(limit=st.integers(0, 40))
    def forget(self, limit: int) -> None:
        before = list(self.dialogue.entries)
        asked = [e for e in before if e.kind in ("user", "listening")]
        fits = self.dialogue.forget_beyond(limit)
        after = self.dialogue.entries
        assert fits == (self.dialogue.positions <= limit)
        assert after[0] is before[0]
        assert after[-1] is before[-1]
        stayed = [e for e in before if any(e is a for a in after)]
        assert all(a is b for a, b in zip(after, stayed, strict=True))
        if not fits:
            assert len(after) == len(before)
        if asked:
            assert any(e is asked[-1] for e in after)
        if asked and any(e is not asked[-1] and e.kind in ("user", "listening") for e in after):
            cut = len(before) - len(after)  # whole exchanges were enough
            assert all(a is b for a, b in zip(after[1:], before[1 + cut :], strict=True))

    # -- what always holds

    @invariant()
    def what_is_cached_is_what_the_log_says(self) -> None:
        cached, whole = self.dialogue.cached, flat(self.dialogue)
        assert 0 <= cached <= self.dialogue.positions == len(whole)
        assert cached <= len(self.cache)
        if cached:
            assert torch.equal(torch.stack(self.cache[:cached]), whole[:cached])

    @invariant()
    def reading_piece_by_piece_gives_the_rest(self) -> None:
        whole, beside = flat(self.dialogue), dataclasses.replace(self.dialogue)
        while beside.cached < beside.positions:
            piece = beside.pending(3)
            assert torch.equal(piece, whole[beside.cached : beside.cached + 3])
            beside.cached += len(piece)


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=100, stateful_step_count=25)


@pytest.fixture(scope="module")
def model() -> ChromaModel:
    return load_checkpoint(MINIATURE)


class TestOnTheThinker:
    """Turn after turn on the kept cache: the state that a fresh reading of all of it would give."""

    ROW = 1

    def fresh(self, model: ChromaModel, dialogue: Dialogue) -> Tensor:
        whole = Dialogue(dialogue.embed, dialogue.entries).pending(10_000)
        cache = KVCache.empty(model.config.text, 1, len(whole))
        state: Tensor = model.thinker.transformer(
            whole[None], torch.arange(len(whole))[None], cache
        )
        return state[0, -1]

    @torch.inference_mode()
    def same(self, runner: Runner, dialogue: Dialogue, most: int) -> Tensor:
        assert dialogue.cached < dialogue.positions
        while dialogue.cached < dialogue.positions:
            piece = dialogue.pending(most)
            state = runner.prefill(self.ROW, piece, dialogue.cached)
            dialogue.cached += len(piece)
        wanted = self.fresh(runner.model, dialogue)
        assert (state - wanted).abs().max() < 1e-5 * wanted.abs().max()
        logits = runner.model.thinker.lm_head(state)
        assert (logits - runner.model.thinker.lm_head(wanted)).abs().max() < 1e-4
        return state

    @pytest.mark.parametrize("most", [1, 7, 256])
    def test_several_turns(self, model: ChromaModel, most: int) -> None:
        config = ChromaConfig.from_folder(MINIATURE)
        prompt = ChatPrompt.from_checkpoint(MINIATURE, config.audio_token)
        limits = EngineConfig(max_sessions=3, max_replies=1, thinker_positions=600)
        runner = Runner(model, prompt, limits)
        runner.thinker_cache.k.normal_(), runner.thinker_cache.v.normal_()  # somebody was here
        heard = 0.5 * torch.randn(3, 50, config.text.hidden_size)
        dialogue = Dialogue(model.embed_tokens)
        dialogue.set_system(prompt.system("You are brief."))

        def ask(audio: Tensor) -> Entry:
            before, after = list(prompt.audio_before), list(prompt.audio_after)
            dialogue.append(Entry("user", before=before, audio=audio, after=after))
            return dialogue.append(Entry("assistant", 1, before=list(prompt.reply_open)))

        first = ask(heard[0])
        states = [self.same(runner, dialogue, most)]
        first.tokens = prompt.encode("The capital of France is Paris.")
        dialogue.close(first, prompt.reply_close)
        kept = dialogue.cached
        second = ask(heard[1])
        assert dialogue.cached == kept  # what was read stays
        states.append(self.same(runner, dialogue, most))
        second.tokens = prompt.encode("Rome is the capital of Italy.")
        dialogue.close(second, prompt.reply_close)
        dialogue.append(Entry("user", before=prompt.user("And of Spain?")))
        third = dialogue.append(Entry("assistant", 3, before=list(prompt.reply_open)))
        states.append(self.same(runner, dialogue, most))

        dialogue.keep_tokens(second, 2)  # the user had broken in
        assert kept < dialogue.cached < dialogue.positions
        states.append(self.same(runner, dialogue, most))
        dialogue.set_system(prompt.system("You are very polite."))
        states.append(self.same(runner, dialogue, most))
        third.tokens = prompt.encode("Madrid.")
        dialogue.close(third, prompt.reply_close)
        ask(heard[2])
        assert dialogue.forget_beyond(dialogue.positions - 10)
        assert not any(entry is first for entry in dialogue.entries)
        states.append(self.same(runner, dialogue, most))
        for one, state in enumerate(states):  # and each of these changes is one
            for other in states[:one]:
                assert (state - other).abs().max() > 1e-2
