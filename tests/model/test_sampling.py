"""Choosing codes: greedy or drawn as softmax says, every row by its own settings and seed alone."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chroma_plugin.config import GREEDY, SamplingParams
from chroma_plugin.model.sampling import (
    REPEAT_WINDOW,
    RowSampling,
    frame_noise,
    gumbel,
    pick_codes,
    repetition_guard,
)
from tests.host_reads import NoHostReads

SIZE = 16  # codes that the codec knows
SPECIAL = 3


def logits(rows: int, seed: int = 0, spread: float = 1.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(rows, SIZE + SPECIAL, generator=generator)


def drawing(
    rows: int, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0
) -> RowSampling:
    """Rows of the same settings, each with a seed of its own."""
    sampling = RowSampling.greedy(rows)
    sampling.temperature[:] = temperature
    sampling.top_k[:] = top_k
    sampling.top_p[:] = top_p
    sampling.seed[:] = torch.arange(seed, seed + rows)
    return sampling


def pick(scores: Tensor, sampling: RowSampling, codebook: int = 0) -> Tensor:
    codes = pick_codes(scores, codebook, sampling, SIZE)
    assert codes.dtype == torch.int64
    assert codes.shape == (len(scores),)
    return codes


def chi_square(codes: Tensor, probabilities: Tensor) -> float:
    """Pearson's statistic, per degree of freedom: about 1 for codes drawn so."""
    counts = torch.bincount(codes, minlength=len(probabilities)).double()
    likely = probabilities > 0
    assert not counts[~likely].any()
    expected = probabilities[likely].double() * len(codes)
    assert expected.min() > 20  # or the statistic means nothing
    value = (counts[likely] - expected).square().div(expected).sum()
    return float(value / (int(likely.sum()) - 1))


class TestGreedy:
    def test_takes_the_likeliest_id(self) -> None:
        scores = logits(200)
        codes = pick(scores, RowSampling.greedy(200))
        assert torch.equal(codes, scores.argmax(dim=-1))
        assert (codes >= SIZE).any()  # special ones included

    def test_other_settings_do_not_matter(self) -> None:
        scores, sampling = logits(50), drawing(50, temperature=0, top_k=2, top_p=0.1, seed=9)
        assert torch.equal(pick(scores, sampling), scores.argmax(dim=-1))

    def test_in_bfloat16(self) -> None:
        scores = logits(200).bfloat16()
        assert torch.equal(pick(scores, RowSampling.greedy(200)), scores.argmax(dim=-1))
        drawn = pick(scores, drawing(200))
        assert torch.equal(drawn, pick(scores.float(), drawing(200)))


class TestSpecialIds:
    @pytest.mark.parametrize("temperature", [0.01, 1.0, 5.0])
    @pytest.mark.parametrize("top_k", [0, 1, 5, SIZE, SIZE + 1, 1_000_000])
    @pytest.mark.parametrize("top_p", [1.0, 0.5, 1e-6])
    def test_are_never_drawn(self, temperature: float, top_k: int, top_p: float) -> None:
        scores = logits(500)
        scores[:, SIZE:] += 1000
        codes = pick(scores, drawing(500, temperature=temperature, top_k=top_k, top_p=top_p))
        assert codes.min() >= 0
        assert codes.max() < SIZE

    def test_take_no_probability(self) -> None:
        scores, sampling = logits(500), drawing(500, top_p=0.6)
        other = scores.clone()
        other[:, SIZE:] = 50.0
        assert torch.equal(pick(scores, sampling), pick(other, sampling))


class TestCuts:
    def test_one_code_is_greedy_among_normal_ids(self) -> None:
        scores = logits(300)
        best = scores[:, :SIZE].argmax(dim=-1)
        assert torch.equal(pick(scores, drawing(300, top_k=1)), best)
        assert torch.equal(pick(scores, drawing(300, top_p=1e-6)), best)
        assert not torch.equal(pick(scores, drawing(300)), best)

    @pytest.mark.parametrize("k", [2, 3, 7])
    def test_top_k(self, k: int) -> None:
        scores = logits(1).expand(8000, -1)
        best = scores[0, :SIZE].topk(k)
        probabilities = torch.zeros(SIZE)
        probabilities[best.indices] = best.values.softmax(dim=-1)
        assert chi_square(pick(scores, drawing(8000, top_k=k)), probabilities) < 3

    @pytest.mark.parametrize("p", [0.3, 0.7, 0.9])
    def test_top_p(self, p: float) -> None:
        """The fewest codes whose probabilities reach p; what is left adds up to one."""
        scores = logits(1).expand(8000, -1)
        ranked = scores[0, :SIZE].softmax(dim=-1).sort(descending=True)
        count = int((ranked.values.cumsum(dim=-1) < p).sum()) + 1
        assert 1 < count < SIZE
        probabilities = torch.zeros(SIZE)
        kept = ranked.values[:count]
        probabilities[ranked.indices[:count]] = kept / kept.sum()
        assert chi_square(pick(scores, drawing(8000, top_p=p)), probabilities) < 3

    @pytest.mark.parametrize(
        ("p", "kept"), [(0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.89, 3), (0.91, 4)]
    )
    def test_top_p_ends_where_it_is_reached(self, p: float, kept: int) -> None:
        scores = torch.full((2000, SIZE + SPECIAL), -torch.inf)
        scores[:, [9, 3, 12, 0]] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
        codes = pick(scores, drawing(2000, top_p=p))
        assert set(codes.tolist()) == {9, 3, 12, 0} - set([9, 3, 12, 0][kept:])

    def test_top_p_counts_within_top_k(self) -> None:
        scores = torch.full((4000, SIZE + SPECIAL), -50.0)
        scores[:, :4] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
        # of the best two the first has 4/7, which is more than 0.5
        codes = pick(scores, drawing(4000, top_k=2, top_p=0.5))
        assert not codes.any()
        codes = pick(scores, drawing(4000, top_k=2, top_p=0.6))
        assert sorted(set(codes.tolist())) == [0, 1]
        codes = pick(scores, drawing(4000, top_p=0.6))
        assert sorted(set(codes.tolist())) == [0, 1]
        codes = pick(scores, drawing(4000, top_p=0.75))
        assert sorted(set(codes.tolist())) == [0, 1, 2]


class TestDistribution:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    def test_of_many_seeds(self, temperature: float) -> None:
        scores = logits(1)
        wanted = (scores[0, :SIZE] / temperature).softmax(dim=-1)
        codes = pick(scores.expand(40_000, -1), drawing(40_000, temperature=temperature))
        if temperature == 0.5:  # what is too rare to be counted is left out
            rare = wanted * len(codes) < 25
            codes = codes[~rare[codes]]
            wanted = wanted.masked_fill(rare, 0) / wanted[~rare].sum()
        assert chi_square(codes, wanted) < 2.5

    @pytest.mark.parametrize("codebook", [0, 7])
    def test_of_many_frames(self, codebook: int) -> None:
        """One conversation alone: its frames are independent draws, too."""
        scores = logits(1, seed=codebook, spread=0.3)
        sampling = drawing(40_000)
        sampling.seed[:] = 1234
        sampling.frame[:] = torch.arange(40_000)
        codes = pick(scores.expand(40_000, -1), sampling, codebook)
        wanted = scores[0, :SIZE].softmax(dim=-1)
        assert chi_square(codes, wanted) < 2.5
        following = codes[:-1] * SIZE + codes[1:]  # and no frame knows of the one before
        assert chi_square(following, torch.outer(wanted, wanted).flatten()) < 1.3

    def test_of_many_codebooks(self) -> None:
        scores = logits(1, spread=0.3)
        books = [pick(scores.expand(5000, -1), drawing(5000), k) for k in range(8)]
        wanted = scores[0, :SIZE].softmax(dim=-1)
        assert chi_square(torch.cat(books), wanted) < 2.5
        pair = torch.outer(wanted, wanted).flatten()
        pairs = [books[k] * SIZE + books[k + 1] for k in range(7)]
        assert chi_square(torch.cat(pairs), pair) < 1.3

    def test_this_test_can_fail(self) -> None:
        scores = logits(1)
        codes = pick(scores.expand(40_000, -1), drawing(40_000, temperature=1.05))
        assert chi_square(codes, scores[0, :SIZE].softmax(dim=-1)) > 2.5


def sampling_of(
    rows: list[tuple[float, int, float, int, int]],
) -> RowSampling:
    temperature, top_k, top_p, seed, frame = zip(*rows, strict=True)
    sampling = RowSampling.greedy(len(rows))
    sampling.temperature[:] = torch.tensor(temperature)
    sampling.top_k[:] = torch.tensor(top_k)
    sampling.top_p[:] = torch.tensor(top_p)
    sampling.seed[:] = torch.tensor(seed)
    sampling.frame[:] = torch.tensor(frame)
    return sampling


row_settings = st.tuples(
    st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.0]),
    st.sampled_from([0, 1, 3, 50]),
    st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    st.integers(0, 2**63 - 1),
    st.integers(0, 100_000),
)


class TestRows:
    @settings(max_examples=60)
    @given(rows=st.lists(row_settings, min_size=1, max_size=6), codebook=st.integers(0, 7))
    def test_as_one_row_by_hand(
        self, rows: list[tuple[float, int, float, int, int]], codebook: int
    ) -> None:
        """Mixed settings in one batch, each row as the plainest code would do it."""
        scores = logits(len(rows), seed=len(rows))
        codes = pick(scores, sampling_of(rows), codebook)
        for row, (temperature, top_k, top_p, seed, frame) in enumerate(rows):
            one = scores[row]
            if temperature == 0:
                assert int(codes[row]) == int(one.argmax())
                continue
            ranked = sorted(range(SIZE), key=lambda code: -one[code])[: top_k or SIZE]
            weights = (one[ranked] / temperature).softmax(dim=-1).tolist()
            kept = [c for i, c in enumerate(ranked) if sum(weights[:i]) < top_p]
            every = torch.arange(SIZE)[None]
            noise = gumbel(torch.tensor([seed]), torch.tensor([frame]), codebook, every)[0]
            best = max(kept, key=lambda code: float(one[code] / temperature + noise[code]))
            assert int(codes[row]) == best

    def test_the_same_in_any_row_of_any_batch(self) -> None:
        rows = [(1.0, 0, 1.0, 7, 3), (0.7, 5, 0.9, 2**62, 0), (0.0, 0, 1.0, 1, 1), (2, 0, 1, 8, 9)]
        scores = logits(4)
        together = pick(scores, sampling_of(rows), 2)
        for order in ([3, 2, 1, 0], [1, 1, 3], [2], [0]):
            codes = pick(scores[order], sampling_of([rows[i] for i in order]), 2)
            assert torch.equal(codes, together[order])
        wide = sampling_of(rows + [(5.0, 0, 1.0, i, i) for i in range(60)])
        assert torch.equal(pick(torch.cat([scores, logits(60, 1)]), wide, 2)[:4], together)

    def test_seed_frame_and_codebook_all_count(self) -> None:
        scores = logits(1, spread=0.1).expand(300, -1)
        base = drawing(300)
        first = pick(scores, base)
        assert torch.equal(pick(scores, base), first)
        others = {
            "seed": pick(scores, dataclasses.replace(base, seed=base.seed + 300)),
            "frame": pick(scores, dataclasses.replace(base, frame=base.frame + 1)),
            "codebook": pick(scores, base, 1),
        }
        for name, codes in others.items():
            same = float((codes == first).float().mean())
            assert same < 0.15, name  # chance: 1 in 16

    def test_first_rows_are_a_view(self) -> None:
        sampling = RowSampling.greedy(5, end_code=3)
        first = sampling.first(2)
        for field in dataclasses.fields(RowSampling):
            if field.name != "end_code":
                assert len(getattr(first, field.name)) == 2
        assert first.end_code == 3
        first.advance(torch.tensor([7, 8]), torch.tensor([True, True]))
        assert sampling.frame.tolist() == [1, 1, 0, 0, 0]
        assert sampling.recent[:, 0].tolist() == [7, 8, 3, 3, 3]
        assert (sampling.recent[:, 1:] == 3).all()

    def test_nothing_is_read_back(self) -> None:
        scores, sampling = logits(4), drawing(4, top_k=3, top_p=0.5)
        with NoHostReads():
            sampling.set_row(1, SamplingParams(repetition_penalty=1.5), 8)
            for codebook in (0, 3):
                codes = pick_codes(scores, codebook, sampling, SIZE)
            sampling.advance(codes, sampling.frame < 9)

    def test_a_row_is_set_whole(self) -> None:
        sampling = drawing(3, temperature=0.3, top_k=9, top_p=0.4)
        sampling.penalty[:] = 1
        for code in (5, 6, 7):
            sampling.advance(torch.full((3,), code), torch.tensor([True, True, True]))
        sampling.set_row(1, SamplingParams(0.5, 7, 0.9, None, 1.25), 2**63 - 1)
        assert sampling.temperature.tolist() == pytest.approx([0.3, 0.5, 0.3])
        assert sampling.top_k.tolist() == [9, 7, 9]
        assert sampling.top_p.tolist() == pytest.approx([0.4, 0.9, 0.4])
        assert sampling.seed.tolist() == [0, 2**63 - 1, 2]
        assert sampling.frame.tolist() == [3, 0, 3]
        assert sampling.penalty.tolist() == pytest.approx([1, math.log(1.25), 1])
        assert not sampling.recent[1].any()  # its history is gone, that of the others is not
        assert sampling.recent[[0, 2], :3].tolist() == [[5, 6, 7]] * 2
        sampling.set_row(2, SamplingParams(), 5)
        assert float(sampling.top_p[2]) == math.inf  # 1 is all, and no sum's rounding says less

    @settings(max_examples=40)
    @given(
        rows=st.lists(
            st.builds(
                SamplingParams,
                st.sampled_from([0.0, 0.3, 1.0, 2.0]),
                st.sampled_from([0, 1, 50, 63, 64, 65, 200, 5000]),
                st.sampled_from([0.05, 0.5, 0.9, 0.99, 1.0]),
            ),
            min_size=1,
            max_size=5,
        ),
        seed=st.integers(0, 1000),
    )
    def test_short_rankings_change_nothing(self, rows: list[SamplingParams], seed: int) -> None:
        """A row draws the same code whether its neighbours need a longer ranking or not."""
        size = 300
        scores = 2 * torch.randn(
            len(rows), size + SPECIAL, generator=torch.Generator().manual_seed(seed)
        )
        cut, whole = RowSampling.greedy(len(rows)), RowSampling.greedy(len(rows))
        for row, params in enumerate(rows):
            for sampling in (cut, whole):
                sampling.set_row(row, params, seed + row)
        whole.ranks[0] = size
        codes = pick_codes(scores, 0, cut, size)
        assert torch.equal(codes, pick_codes(scores, 0, whole, size))
        for row, params in enumerate(rows):
            alone = RowSampling.greedy(1)
            alone.set_row(0, params, seed + row)
            assert torch.equal(pick_codes(scores[row : row + 1], 0, alone, size), codes[[row]])


def speak(scores: Tensor, sampling: RowSampling, frames: int) -> list[list[int]]:
    """Codes of codebook 0, frame by frame, where the model always thinks the same."""
    said = []
    for _ in range(frames):
        codes = pick(scores, sampling)
        sampling.advance(codes, torch.ones(len(scores), dtype=torch.bool))
        said.append(codes.tolist())
    return said


SILENCE, SPEECH, END = 9, 3, 0


def stuck(rows: int = 1) -> Tensor:
    """A model that prefers silence to speech by 2 nats, and speech to the end by 1."""
    scores = torch.full((rows, SIZE + SPECIAL), -20.0)
    scores[:, [SILENCE, SPEECH, END]] = torch.tensor([3.0, 1.0, 0.0])
    return scores


def guarded(rows: int = 1, penalty: float = 1.2, temperature: float = 0.0) -> RowSampling:
    sampling = RowSampling.greedy(rows)
    for row in range(rows):
        sampling.set_row(row, SamplingParams(temperature, 0, repetition_penalty=penalty), row)
    return sampling


class TestRepetitionGuard:
    @given(st.lists(st.integers(0, SIZE + SPECIAL - 1), max_size=3 * REPEAT_WINDOW))
    def test_each_use_in_the_window_divides_the_odds(self, said: list[int]) -> None:
        scores, sampling = logits(1), guarded(penalty=1.3)
        for code in said:
            sampling.advance(torch.tensor([code]), torch.tensor([True]))
        wanted = scores[0].clone()
        for code in said[-REPEAT_WINDOW:]:
            if code != END:
                wanted[code] -= math.log(1.3)
        torch.testing.assert_close(repetition_guard(scores, sampling)[0], wanted)

    def test_off_is_the_same_to_the_last_bit(self) -> None:
        scores, sampling = logits(3), guarded(3, penalty=1.0)
        speak(scores, sampling, 2 * REPEAT_WINDOW)
        assert torch.equal(repetition_guard(scores, sampling), scores)

    def test_a_greedy_row_leaves_a_silence(self) -> None:
        assert speak(stuck(), guarded(penalty=1.0), 100) == [[SILENCE]] * 100
        said = speak(stuck(), guarded(), 100)
        # 2 nats are 10.97 uses at log(1.2) = 0.182 each
        assert said[:12] == [[SILENCE]] * 11 + [[SPEECH]]

    def test_nothing_is_forbidden(self) -> None:
        """What is out of the window costs nothing; what is in it still wins by a wide margin."""
        scores = torch.full((1, SIZE + SPECIAL), -20.0)
        scores[0, SILENCE] = 30.0
        assert speak(scores, guarded(), 100) == [[SILENCE]] * 100
        sampling = guarded()
        speak(scores, sampling, 5)
        assert repetition_guard(scores, sampling)[0, SILENCE] < 30
        scores[0, SPEECH] = 60.0
        speak(scores, sampling, REPEAT_WINDOW)
        assert repetition_guard(scores, sampling)[0, SILENCE] == 30

    def test_the_end_is_never_put_off(self) -> None:
        scores, sampling = stuck(), guarded(penalty=5.0)
        before = scores.softmax(dim=-1)[0, END]
        for _ in range(2 * REPEAT_WINDOW):  # code 0 in frames that are no end
            sampling.advance(torch.tensor([END]), torch.tensor([True]))
        assert torch.equal(repetition_guard(scores, sampling), scores)
        said = [codes[0] for codes in speak(scores, sampling, 100)]
        assert said.count(END) > 50  # a model that is stuck comes to it
        assert repetition_guard(scores, sampling).softmax(dim=-1)[0, END] > before

    def test_another_end_code(self) -> None:
        sampling = RowSampling.greedy(1, end_code=5)
        sampling.set_row(0, SamplingParams(0.0, repetition_penalty=2.0), 0)
        for code in (5, 0, 5):
            sampling.advance(torch.tensor([code]), torch.tensor([True]))
        cost = repetition_guard(torch.zeros(1, SIZE), sampling)[0]
        assert cost.nonzero().tolist() == [[0]]

    def test_only_codebook_0_is_guarded(self) -> None:
        scores, sampling = stuck(), guarded()
        speak(scores, sampling, 20)
        assert pick(scores, sampling, 1).tolist() == [SILENCE]

    def test_a_drawing_row_repeats_less(self) -> None:
        scores = logits(1, spread=3.0).expand(64, -1)
        free = torch.tensor(speak(scores, guarded(64, 1.0, temperature=1.0), 40))
        held = torch.tensor(speak(scores, guarded(64, 1.3, temperature=1.0), 40))
        likeliest = int(scores[0, :SIZE].argmax())
        assert (free == likeliest).float().mean() > 1.4 * (held == likeliest).float().mean()

    def test_rows_that_rest_remember_and_count_nothing(self) -> None:
        sampling = guarded(2)
        for code in range(1, 5):
            sampling.advance(torch.tensor([code, code]), torch.tensor([True, code == 3]))
        assert sampling.frame.tolist() == [4, 1]
        assert sampling.recent[:, :5].tolist() == [[1, 2, 3, 4, END], [3, END, END, END, END]]

    def test_the_same_in_any_row_of_any_batch(self) -> None:
        scores, kinds = logits(4, spread=0.5), [GREEDY, *map(_guarded_params, (1.0, 1.2, 3.0))]

        def of(order: list[int], between: int) -> list[list[int]]:
            sampling = RowSampling.greedy(len(order))
            for row, kind in enumerate(order):
                sampling.set_row(row, kinds[kind], kind)
            said: list[list[int]] = [[] for _ in order]
            for step in range(50 * between):  # rows that rest do so in different steps
                codes = pick(scores[order], sampling)
                active = torch.tensor([(step + row) % between == 0 for row in range(len(order))])
                sampling.advance(codes, active)
                for row in active.nonzero()[:, 0].tolist():
                    said[row].append(int(codes[row]))
            return said

        together = of([0, 1, 2, 3], between=1)
        assert of([3, 2, 1, 0], between=3) == together[::-1]
        assert of([2], between=1) == [together[2]]
        assert together[1] != together[2] != together[3]


def _guarded_params(penalty: float) -> SamplingParams:
    return SamplingParams(temperature=1.0, top_k=5, repetition_penalty=penalty)


def splitmix64(state: int) -> int:
    """The finaliser as published, in whole numbers."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def before(bits: int) -> int:
    """The finaliser backwards: the sum of which it makes these bits."""

    def unshift(z: int, by: int) -> int:
        x = z
        for _ in range(64 // by):
            x = z ^ (x >> by)
        return x

    z = unshift(bits, 31) * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
    z = unshift(z, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
    return unshift(z, 30)


class TestNoise:
    def test_published_numbers(self) -> None:
        """The first outputs of splitmix64 for seed 0, so that the function above is right."""
        assert splitmix64(0) == 0xE220A8397B1DCDAF
        assert splitmix64(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4

    @given(
        seed=st.integers(0, 2**63 - 1),
        frame=st.integers(0, 10**6),
        codebook=st.integers(0, 7),
        code=st.integers(0, 2050),
    )
    def test_is_that_of_the_counter(self, seed: int, frame: int, codebook: int, code: int) -> None:
        golden = 0x9E3779B97F4A7C15
        key = splitmix64(seed + (frame * 8 + codebook) * golden)
        bits = splitmix64(key + code * golden)
        wanted = -math.log(-math.log(((bits >> 41) + 0.5) / 2**23))
        got = gumbel(torch.tensor([seed]), torch.tensor([frame]), codebook, torch.tensor([[code]]))
        assert got.shape == (1, 1)
        assert float(got) == pytest.approx(wanted, rel=1e-5, abs=1e-6)

    def test_of_a_frame(self) -> None:
        sampling = sampling_of([(1.0, 0, 1.0, 7, 3), (1.0, 0, 1.0, 2**62, 70)])
        noise = frame_noise(sampling, SIZE)
        assert (noise.shape, noise.dtype) == ((2, 8, SIZE), torch.float32)
        one = gumbel(torch.tensor([2**62]), torch.tensor([70]), 5, torch.arange(SIZE))
        assert torch.equal(noise[1, 5], one)
        assert torch.equal(frame_noise(sampling, SIZE, range(5, 6)), noise[:, 5:6])
        scores = logits(2)
        assert torch.equal(pick_codes(scores, 5, sampling, SIZE, noise), pick(scores, sampling, 5))

    @pytest.mark.parametrize(("bits", "wanted"), [(0, -2.8115), (2**64 - 1, 16.6355)])
    def test_its_ends_are_finite(self, bits: int, wanted: float) -> None:
        """The code whose counter gives these bits has the least or the most noise there is."""
        code = (before(bits) - splitmix64(0)) * pow(0x9E3779B97F4A7C15, -1, 2**64) - 1
        code = (code + 2**63) % 2**64 - 2**63
        zero = torch.tensor([0])
        assert float(gumbel(zero, zero, 0, torch.tensor([code]))) == pytest.approx(wanted, abs=1e-3)

    def test_is_gumbel(self) -> None:
        noise = gumbel(
            torch.arange(500)[:, None], torch.zeros(500, 1).long(), 0, torch.arange(2048)[None]
        )
        assert noise.isfinite().all()
        assert float(noise.mean()) == pytest.approx(0.57722, abs=5e-3)
        assert float(noise.var()) == pytest.approx(math.pi**2 / 6, rel=5e-3)
        for quantile in (0.001, 0.1, 0.5, 0.9, 0.999):
            below = (noise < -math.log(-math.log(quantile))).double().mean()
            assert float(below) == pytest.approx(quantile, abs=2e-3, rel=0.1)

    def test_is_not_the_same_twice(self) -> None:
        """Seeds, frames and codebooks that lie side by side have nothing in common."""
        codes = torch.arange(2048)[None]

        def of(seed: int, frame: int, codebook: int) -> Tensor:
            return gumbel(torch.tensor([seed]), torch.tensor([frame]), codebook, codes)[0]

        rows = [of(0, 0, 0), of(1, 0, 0), of(0, 1, 0), of(0, 0, 1), of(1, 1, 1), of(0, 0, 7)]
        correlation = torch.corrcoef(torch.stack(rows)) - torch.eye(len(rows))
        assert correlation.abs().max() < 0.1
        shifted = torch.corrcoef(torch.stack([rows[0][1:], rows[0][:-1], rows[1][1:]]))
        assert (shifted - torch.eye(3)).abs().max() < 0.1
