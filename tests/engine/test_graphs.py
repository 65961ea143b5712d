"""Graphs without a GPU: what is captured, what is replayed, and what happens when it fails."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chroma_plugin.config import EngineConfig
from chroma_plugin.engine.clock import PartClock
from chroma_plugin.engine.graphs import (
    DeviceMode,
    Graphs,
    Ladder,
    cuda_recorder,
    own_stream,
    set_threads,
)
from chroma_plugin.engine.parts import load_parts
from chroma_plugin.engine.runner import Runner
from tests.miniature import MINIATURE
from tests.recorded import GPU_LIKE, record


class Counter:
    """A step over a static buffer."""

    def __init__(self) -> None:
        self.total = torch.zeros(4)
        self.calls = 0

    def add(self, rows: int) -> torch.Tensor:
        self.calls += 1
        self.total[:rows] += 1
        return self.total[:rows] * 2


def test_a_captured_step_is_replayed_on_its_own_memory() -> None:
    counter, graphs = Counter(), Graphs(record)
    graphs.capture(counter.add, 2)
    assert counter.calls == 2  # once for what is made on first use, once for the capture
    counter.total.zero_()
    for expected in (2.0, 4.0):
        assert graphs.run(counter.add, 2).tolist() == [expected] * 2
    assert counter.calls == 2 and counter.total.tolist() == [2, 2, 0, 0]
    assert (len(graphs), graphs.uncaptured) == (1, 0)


def test_a_replay_spoils_what_another_has_returned() -> None:
    """As on a GPU, so the steps are tested with it: a result is to be used before the next run."""
    counter, graphs = Counter(), Graphs(record)
    graphs.capture(counter.add, 2)
    graphs.capture(counter.add, 4)
    early = graphs.run(counter.add, 2)
    assert early.isfinite().all()
    assert graphs.run(counter.add, 4).isfinite().all() and early.isnan().all()


def test_a_capture_leaves_other_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host may use the GPU for other things while an engine starts in its own thread."""
    asked: list[tuple[object, ...]] = []

    class Graph:
        replays = 0

        def replay(self) -> None:
            self.replays += 1

    def capture(graph: Graph, pool: str, stream: str, capture_error_mode: str) -> Any:
        asked.append((pool, stream, capture_error_mode))
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "own")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    captured, counter = cuda_recorder(), Counter()
    for rows in (2, 4):
        replay = captured(lambda: counter.add(rows))  # noqa: B023 (called at once)
        assert replay() is replay() and counter.calls == len(asked)
    assert asked == [("pool", "own", "thread_local")] * 2


def test_a_shape_that_was_not_captured_runs_as_it_is() -> None:
    counter, graphs = Counter(), Graphs(record)
    graphs.capture(counter.add, 2)
    counter.total.zero_()
    assert graphs.run(counter.add, 4).tolist() == [2.0] * 4
    assert graphs.uncaptured == 1


def test_without_a_recorder_every_step_runs_as_it_is() -> None:
    counter, graphs = Counter(), Graphs(None)
    graphs.capture(counter.add, 2)
    assert counter.calls == 0
    graphs.run(counter.add, 2)
    assert (counter.calls, len(graphs), graphs.uncaptured) == (1, 0, 0)


def test_a_capture_that_fails_is_a_warning_and_the_end_of_graphs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails_on_four(call: Callable[[], Any]) -> Callable[[], Any]:
        if len(call()) == 4:
            raise RuntimeError("operation not permitted when stream is capturing")
        return call

    counter, graphs = Counter(), Graphs(fails_on_four)
    with caplog.at_level(logging.WARNING):
        for rows in (2, 4, 3):
            graphs.capture(counter.add, rows)
    assert len(caplog.records) == 1 and "cuda_graphs=False" in caplog.text
    assert caplog.records[0].exc_info, "the whole chain: what a capture ends with is not its cause"
    counter.total.zero_()
    assert graphs.run(counter.add, 2).tolist() == [2.0] * 2
    assert (len(graphs), graphs.uncaptured) == (0, 0)


def test_a_step_that_reads_a_number_of_the_host_is_found_out() -> None:
    """What the recorder is for: such a step is right as it is, and wrong when it is replayed."""

    class Careless(Counter):
        step = 0

        def add(self, rows: int) -> torch.Tensor:
            self.step += 1
            return self.total[:rows] + self.step

    careless, graphs = Careless(), Graphs(record)
    graphs.capture(careless.add, 1)
    assert graphs.run(careless.add, 1) == graphs.run(careless.add, 1)


@given(first=st.integers(1, 300), last=st.integers(1, 5000), size=st.integers(1, 5000))
def test_a_ladder_holds_everything_up_to_its_end(first: int, last: int, size: int) -> None:
    for ladder in (Ladder.doubling(first, last), Ladder.even(first, last)):
        assert list(ladder.sizes) == sorted(set(ladder.sizes)) and ladder.sizes[-1] == last
        fit = ladder.fit(size)
        assert fit == last if size > last else fit >= size
        assert not any(size <= other < fit for other in ladder.sizes)


def test_everything_that_can_occur_is_captured() -> None:
    """Whatever sizes are asked for, the shape is one of the captured ones."""
    parts = load_parts(EngineConfig(model=MINIATURE))
    config = EngineConfig(max_replies=3, thinker_positions=300, backbone_positions=300)
    runner = Runner(parts.model, parts.prompt, config, GPU_LIKE)
    runner.capture()
    with torch.inference_mode():
        for n in (1, 64, 65, 256):
            runner.prefill(0, torch.zeros(n, parts.model.config.text.hidden_size), 300 - n)
        for batch in (1, 2, 3):
            for think in (True, False):
                for span in (1, 256, 257, 306):
                    runner.step(batch, think=think, thinker_span=span, span=span)
        runner.tower(torch.zeros(2, 128, 200), torch.tensor([200, 37]))
    assert runner.graphs.uncaptured == 0


def test_the_backbone_can_be_timed_apart_from_the_depth_decoder() -> None:
    parts = load_parts(EngineConfig(model=MINIATURE))
    for apart in (False, True):
        config = EngineConfig(
            max_replies=1, thinker_positions=64, backbone_positions=64, time_parts=apart
        )
        runner = Runner(parts.model, parts.prompt, config, GPU_LIKE)
        runner.capture()
        result = runner.step(1, think=True, thinker_span=1, span=1)
        split = {"backbone", "depth"} if apart else {"frame"}
        assert set(result.clock.read()) == {"thinker", "codec"} | split
        assert runner.graphs.uncaptured == 0


def test_a_cpu_runs_every_step_as_it_is_on_its_only_stream() -> None:
    assert DeviceMode.of(torch.device("cpu")) == DeviceMode()
    with own_stream(torch.device("cpu")):
        pass


@pytest.mark.parametrize(
    ("device", "parameters", "wanted", "threads"),
    [("cpu", 10, None, 1), ("cpu", 10**9, None, 2), ("cuda", 10, None, 2), ("cpu", 10**9, 3, 3)],
)
def test_a_small_model_has_one_thread_of_a_cpu(
    device: str, parameters: int, wanted: int | None, threads: int
) -> None:
    torch.set_num_threads(2)
    set_threads(torch.device(device), parameters, wanted)
    assert torch.get_num_threads() == threads


def test_a_clock_adds_up_its_parts() -> None:
    clock, later = PartClock(False), PartClock(False)
    for name in ("thinker", "codec", "codec"):
        with clock.part(name):
            pass
    with later.part("thinker"):
        pass
    parts = clock.read()
    assert list(parts) == ["thinker", "codec"]
    assert 0 <= sum(parts.values()) <= clock.span_ms
    assert later.gap_ms(clock) >= 0
    assert PartClock(False).span_ms == 0.0
