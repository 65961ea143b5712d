"""The training loop: budgets, exact resume, signals, log."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from chroma_plugin.errors import CheckpointError, ChromaError, ConfigError
from chroma_plugin.training import loop
from chroma_plugin.training.feed import batches, moved
from chroma_plugin.training.log import Log
from chroma_plugin.training.loop import LoopPlan, Progress, decayed, learning_rate, train
from chroma_plugin.training.resume import random_states, set_random_states

PLAN = LoopPlan(steps=10, lr=0.05, warmup_steps=3, log_steps=2, eval_steps=4)


class Line:
    """Learns `y = 3 x - 1` through noise and dropout, so that every random state matters."""

    def __init__(self, at_step: Callable[[int], None] = lambda step: None) -> None:
        torch.manual_seed(7)
        self.module: nn.Module = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.module.register_buffer("seen", torch.zeros(1))
        self.at_step = at_step
        self.factor = 1.0

    def groups(self) -> list[dict[str, Any]]:
        return decayed(self.module)

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        x = np.random.default_rng((3, number)).normal(size=(16, 1)).astype(np.float32)
        return torch.from_numpy(x), torch.from_numpy(3 * x - 1)

    def losses(self, batch: Any, progress: Progress) -> Mapping[str, Tensor]:
        self.at_step(progress.step)
        x, y = batch
        noise = torch.rand(1) + float(np.random.rand()) + random.random()
        error = (self.module(x) - y + 0.01 * noise).square().mean() * self.factor
        self.module.get_buffer("seen").add_(len(x))
        return {"loss": error, "twice": 2 * error}

    def evaluate(self) -> Mapping[str, float]:
        assert not self.module.training and not torch.is_grad_enabled()
        torch.rand(3), np.random.rand(), random.random()  # none of it may change the next step
        x = torch.linspace(-1, 1, 9)[:, None]
        return {"error": float((self.module(x) - 3 * x + 1).abs().mean())}


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the rest: once is enough."""
    if "picture" not in request.node.name:
        monkeypatch.setattr(Log, "draw", lambda self: False)


def quiet(line: str) -> None:
    pass


def figures(folder: Path) -> list[dict[str, Any]]:
    """The log without what the clock says."""
    return [
        {k: v for k, v in entry.items() if k not in ("minutes", "rate")}
        for entry in Log(folder / "log.jsonl").entries()
    ]


def trained(folder: Path, plan: LoopPlan = PLAN, **options: Any) -> Line:
    task = Line()
    outcome = train(task, plan, folder, say=quiet, **options)
    assert outcome.why == "done" and outcome.progress.step == plan.steps
    return task


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# -- where it stops and goes on -------------------------------------------------------------------


def test_ten_steps_are_five_and_five_more(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")

    def stop(step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    outcome = train(Line(stop), PLAN, tmp_path / "parts", say=quiet)
    assert outcome.why == "stopped" and outcome.progress.step == 5
    torch.manual_seed(99), np.random.seed(99), random.seed(99)
    parts = trained(tmp_path / "parts")
    assert same(whole.module, parts.module)
    ends = [
        [entry for entry in figures(tmp_path / name) if "eval" in entry]
        for name in ("whole", "parts")
    ]
    assert len(ends[0]) == 3 and ends[0] == ends[1]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_crash_costs_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")

    def crash(step: int) -> None:
        if step == 7:
            raise RuntimeError("out of memory")

    plan = LoopPlan(**{f: getattr(PLAN, f) for f in PLAN.__slots__} | {"checkpoint_minutes": 1e-9})
    with pytest.raises(RuntimeError, match="out of memory"):
        train(Line(crash), plan, tmp_path / "parts", say=quiet)
    Log(tmp_path / "parts" / "log.jsonl").write({"step": 9, "loss": 1.0})  # after the checkpoint
    with (tmp_path / "parts" / "log.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    parts = trained(tmp_path / "parts")
    assert same(whole.module, parts.module)
    assert [e["step"] for e in figures(tmp_path / "parts")] == [2, 4, 4, 6, 8, 8, 10, 10]


def test_not_resumed_it_begins_anew(tmp_path: Path) -> None:
    first = trained(tmp_path)
    again = trained(tmp_path, resume=False)
    assert same(first.module, again.module)
    assert len(figures(tmp_path)) == 8


@pytest.mark.parametrize("change", ["seed", "module", "bytes"])
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, change: str) -> None:
    trained(tmp_path)
    task, plan = Line(), PLAN
    if change == "seed":
        plan = LoopPlan(steps=20, seed=1)
    elif change == "module":
        task.module = nn.Linear(1, 1)
    else:
        (tmp_path / "checkpoint.pt").write_bytes(b"none")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: cannot be resumed.*another folder"):
        train(task, plan, tmp_path, say=quiet)


def test_random_states_come_back() -> None:
    states = random_states()
    wanted = torch.rand(2), np.random.rand(), random.random()
    set_random_states(states)
    assert torch.equal(torch.rand(2), wanted[0])
    assert (np.random.rand(), random.random()) == wanted[1:]


def test_minutes_end_a_run_and_pauses_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock moves by 3 s a look; once the process is stopped for an hour."""
    looks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: 3.0 * (n := next(looks)) + 3600.0 * (n > 4))
    monkeypatch.setattr(loop, "time", clock)
    outcome = train(Line(), LoopPlan(minutes=1.0), tmp_path, say=quiet)
    assert outcome.why == "done" and outcome.progress.step == 21
    assert outcome.progress.minutes == pytest.approx(1.0)


# -- what a step does -----------------------------------------------------------------------------


def test_it_learns(tmp_path: Path) -> None:
    task = Line()
    outcome = train(task, LoopPlan(steps=150, lr=0.05, warmup_steps=5), tmp_path, say=quiet)
    assert outcome.evaluation["error"] < 0.25
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["eval"]


def test_threads_that_make_batches_change_nothing(tmp_path: Path) -> None:
    plan = LoopPlan(steps=10, lr=0.05, warmup_steps=3, prefetch=2)
    one = trained(tmp_path / "one", LoopPlan(steps=10, lr=0.05, warmup_steps=3))
    assert same(one.module, trained(tmp_path / "two", plan).module)


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    class Plain(Line):
        def losses(self, batch: Any, progress: Progress) -> Mapping[str, Tensor]:
            x, y = batch
            return {"loss": (self.module[2](self.module[0](x)) - y).square().mean()}  # type: ignore

    class Large(Plain):
        def batch(self, number: int) -> tuple[Tensor, Tensor]:
            parts = [super(Large, self).batch(2 * number + i) for i in (0, 1)]
            return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])

    small, large = Plain(), Large()
    train(small, LoopPlan(steps=4, accumulate=2), tmp_path / "small", say=quiet)
    train(large, LoopPlan(steps=4), tmp_path / "large", say=quiet)
    for a, b in zip(small.module.parameters(), large.module.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_rate_warms_up_and_falls() -> None:
    plan = LoopPlan(steps=100, lr=1.0, warmup_steps=10, final_lr=0.1)
    rates = [learning_rate(plan, Progress(step, step / 100)) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=0.01) and max(rates) == rates[9]
    assert rates[50] == pytest.approx(0.55) and rates[100] == pytest.approx(0.1)


def test_groups_have_rates_and_limits_of_their_own(tmp_path: Path) -> None:
    class Two(Line):
        def groups(self) -> list[dict[str, Any]]:
            first, last = self.module[0], self.module[2]  # type: ignore[index]
            return [
                {"params": list(first.parameters()), "lr_scale": 0.0},
                {"params": list(last.parameters()), "clip": 1e-30, "weight_decay": 0.0},
            ]

    task = Two()
    before = [p.clone() for p in task.module.parameters()]
    train(task, LoopPlan(steps=1, weight_decay=0.5), tmp_path, say=quiet)
    after = list(task.module.parameters())
    assert torch.equal(before[0], after[0])  # a rate of 0
    assert torch.allclose(before[2], after[2], atol=1e-6)  # a gradient of 0


def test_vectors_do_not_decay() -> None:
    module = nn.Linear(2, 3)
    module.weight.requires_grad_(True)
    wide, thin = decayed(module, lr_scale=0.5)
    assert wide == {"params": [module.weight], "lr_scale": 0.5}
    assert thin == {"params": [module.bias], "lr_scale": 0.5, "weight_decay": 0.0}


def test_a_step_without_a_finite_gradient_is_left_out(tmp_path: Path) -> None:
    task = Line()

    def once(step: int) -> None:
        task.factor = math.nan if step == 3 else 1.0

    task.at_step = once
    train(task, PLAN, tmp_path, say=quiet)
    assert all(torch.isfinite(p).all() for p in task.module.parameters())
    task = Line()
    task.factor = math.nan
    with pytest.raises(ChromaError, match=r"no finite gradient for 20 steps.*lower lr"):
        train(task, LoopPlan(steps=100), tmp_path / "diverged", say=quiet)


def test_lines_of_progress(tmp_path: Path) -> None:
    lines: list[str] = []
    train(Line(), PLAN, tmp_path, say=lines.append)
    assert lines[0].startswith("step 2  20%  loss ") and "steps/s" in lines[0]
    assert any(line.startswith("step 4 held out: error ") for line in lines)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({}, "neither steps nor minutes"), ({"steps": 5, "lr": 0.0}, "lr is 0.0; it must be above 0")],
)
def test_a_plan_that_makes_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoopPlan(**fields)


# -- log and feed ---------------------------------------------------------------------------------


def test_curves_and_their_picture(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.clear()
    assert not log.draw()
    for step in (1, 2, 3):
        log.write({"step": step, "minutes": step, "loss": 1 / step})
    log.write({"step": 3, "eval": {"error": 0.5}})
    assert log.curves() == {"eval error": ([3], [0.5]), "loss": ([1, 2, 3], [1, 1 / 2, 1 / 3])}
    log.cut(2)
    assert log.curves() == {"loss": ([1, 2], [1, 1 / 2])}
    pytest.importorskip("matplotlib")
    assert log.draw() and (tmp_path / "log.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("threads", [0, 3])
def test_batches_come_in_order(threads: int) -> None:
    with batches(lambda number: number * number, 2, threads) as feed:
        assert list(itertools.islice(feed, 20)) == [n * n for n in range(2, 22)]


def test_what_fails_in_a_thread_is_raised(tmp_path: Path) -> None:
    def make(number: int) -> int:
        return 1 // (3 - number)

    with batches(make, 0, 2) as feed, pytest.raises(ZeroDivisionError):
        list(itertools.islice(feed, 5))


def test_tensors_of_a_batch_are_moved() -> None:
    class Pair(NamedTuple):
        x: Tensor
        words: str

    batch = {"pair": Pair(torch.zeros(1), "a"), "rows": [torch.zeros(2), 3]}
    there = moved(batch, torch.device("meta"))
    assert there["pair"].x.device.type == "meta" and there["pair"].words == "a"
    assert there["rows"][0].device.type == "meta" and there["rows"][1] == 3
