"""Choosing codes: greedy or drawn as softmax says, every row by its own settings and seed alone."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chroma_plugin.model.sampling import RowSampling, gumbel, pick_codes
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
    return RowSampling(
        torch.tensor(temperature),
        torch.tensor(top_k),
        torch.tensor(top_p),
        torch.tensor(seed),
        torch.tensor(frame),
    )


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
        sampling = drawing(5, top_k=3)
        first = sampling.first(2)
        for field in dataclasses.fields(RowSampling):
            assert len(getattr(first, field.name)) == 2
        first.frame += 1
        assert sampling.frame.tolist() == [1, 1, 0, 0, 0]

    def test_nothing_is_read_back(self) -> None:
        scores, sampling = logits(4), drawing(4, top_k=3, top_p=0.5)
        with NoHostReads():
            pick_codes(scores, 3, sampling, SIZE)


def splitmix64(state: int) -> int:
    """The finaliser as published, in whole numbers."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


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
        counter = (frame * 8 + codebook) * 65536 + code
        bits = splitmix64((splitmix64(seed) + splitmix64(counter)) % 2**64)
        wanted = -math.log(-math.log(((bits >> 40) + 0.5) / 2**24))
        got = gumbel(torch.tensor([seed]), torch.tensor([frame]), codebook, torch.tensor([[code]]))
        assert got.shape == (1, 1)
        assert float(got) == pytest.approx(wanted, rel=1e-5, abs=1e-6)

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
