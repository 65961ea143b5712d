"""The loop that every trainer runs in: steps, budget, log, checkpoints. Knows no speech.

A trainer is a `Task`: a module, a batch for each step number, losses. Batches are a function of
the step alone, so the step is the position in the data, and a run that was stopped goes on exactly
where it was: ten steps are five, a checkpoint and five more.

A run's folder holds `log.jsonl` (figures, a line at a time), `log.png` (their curves) and
`checkpoint.pt`.
"""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from chroma_plugin.errors import ChromaError, ConfigError
from chroma_plugin.training.feed import batches, moved
from chroma_plugin.training.log import Log
from chroma_plugin.training.resume import load_run, save_run

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
PAUSE_S = 60.0
"""On a CPU nothing between two looks at the clock takes so long, unless the process was stopped."""
MOST_SKIPPED = 20
"""So many steps in a row without a finite gradient, and the run has diverged."""


@dataclass(frozen=True, slots=True)
class LoopPlan:
    """How long and how fast to train. The budget is steps, minutes, or whichever ends first.

    Attributes:
        steps: optimiser steps of the whole run, those before a resume included; None: no limit.
        minutes: wall-clock minutes of the whole run, likewise; time in which the process was
            stopped (SIGSTOP) does not count on a CPU. The learning rate then follows the clock, so
            only a run by steps is the same twice.
        lr: the peak, reached after `warmup_steps`; from there a cosine to `lr * final_lr`.
        clip: largest norm of a group's gradient.
        accumulate: batches a step.
        autocast: compute in bfloat16 on CUDA; never on a CPU, where its convolutions are wrong.
        prefetch: threads that make batches ahead; 0: the loop makes each when it needs it.
        log_steps: steps averaged in a line of the log.
        eval_minutes: between evaluations; there is one at the end in any case. None: only that.
        eval_steps: likewise in steps.
        checkpoint_minutes: between checkpoints; there is one at the end in any case.
    """

    steps: int | None = None
    minutes: float | None = None
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warmup_steps: int = 200
    final_lr: float = 0.02
    clip: float = 1.0
    accumulate: int = 1
    seed: int = 0
    device: str = "cpu"
    autocast: bool = True
    prefetch: int = 0
    log_steps: int = 50
    eval_minutes: float | None = None
    eval_steps: int | None = None
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        if not (self.steps or self.minutes):
            raise ConfigError("LoopPlan: neither steps nor minutes is set; set at least one.")
        for name in ("steps", "minutes", "lr", "clip", "accumulate", "log_steps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"LoopPlan.{name} is {value!r}; it must be above 0.")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: optimiser steps done.
        fraction: of the budget, 0 to 1.
        minutes: since the run began, pauses and the time between two sittings left out.
    """

    step: int = 0
    fraction: float = 0.0
    minutes: float = 0.0


class Task(Protocol):
    """What is trained. Its whole state is in `module` (buffers count), and so in checkpoints.

    Attributes:
        module: on the CPU when the loop gets it; the loop moves it. `train()` and `eval()` are
            called around steps and evaluations.
    """

    module: nn.Module

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for AdamW: `params`, and `lr_scale`, `clip`, `weight_decay` or other
        options of the optimiser where they differ from the plan. `decayed(module)` makes the usual
        two. Each group's gradient is clipped by itself if it has its own `clip`, else together."""
        ...

    def batch(self, number: int) -> Any:
        """Batch `number`, the same each time: draw from `np.random.default_rng((seed, number))`.

        Tensors in it (also in tuples, lists, dicts) are moved to the device by the loop. Called
        from other threads where the plan says `prefetch`.
        """
        ...

    def losses(self, batch: Any, progress: Progress) -> Mapping[str, Tensor]:
        """Scalars to log; the one called `loss` is minimised."""
        ...

    def evaluate(self) -> Mapping[str, float]:
        """Held-out figures. Runs without gradients; random states are put back after it."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a sitting ended.

    Attributes:
        why: `done`, the budget is used up; or `stopped`, by a signal: the same call goes on.
        progress: where.
        evaluation: the last held-out figures.
    """

    why: str
    progress: Progress
    evaluation: Mapping[str, float] = field(default_factory=dict)


def train(
    task: Task,
    plan: LoopPlan,
    folder: str | Path,
    *,
    resume: bool = True,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Trains until the budget is used up or SIGTERM or SIGINT comes; then leaves a checkpoint.

    Args:
        task: what is trained; `task.module` holds the result.
        plan: how long and how fast.
        folder: where log, curves and checkpoint go; made if missing.
        resume: go on from the folder's checkpoint if it has one; else begin anew there.
        say: gets a line of progress at a time.

    Raises:
        CheckpointError: the checkpoint is of another module or seed, or is broken.
        ChromaError: the gradients are no numbers any more, twenty steps in a row.
    """
    run = _Run(task, plan, Path(folder), say)
    if resume and (run.folder / CHECKPOINT).exists():
        run.load()
    else:
        run.begin()
    first = run.step * plan.accumulate
    with _stop_on_signals() as stop, batches(task.batch, first, plan.prefetch) as feed:
        return run.go(feed, stop)


def decayed(module: nn.Module, **options: Any) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: matrices, and vectors without weight decay.

    Args:
        module: whose parameters.
        options: further entries of both groups, such as `lr_scale=0.5`.
    """
    params = [p for p in module.parameters() if p.requires_grad]
    wide, thin = ([p for p in params if (p.dim() > 1) is matrix] for matrix in (True, False))
    groups = [{"params": wide, **options}, {"params": thin, **options, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate(plan: LoopPlan, progress: Progress) -> float:
    """The rate of the step that follows: warm-up by steps, cosine by the budget."""
    warm = min(1.0, (progress.step + 1) / max(plan.warmup_steps, 1))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress.fraction)))
    return plan.lr * warm * (plan.final_lr + (1 - plan.final_lr) * cosine)


class _Run:
    """One run in its folder."""

    def __init__(
        self, task: Task, plan: LoopPlan, folder: Path, say: Callable[[str], None]
    ) -> None:
        self.task, self.plan, self.folder, self.say = task, plan, folder, say
        self.device = torch.device(plan.device)
        folder.mkdir(parents=True, exist_ok=True)
        task.module.to(self.device)
        self.log = Log(folder / LOG)
        groups = [
            {"lr_scale": 1.0, "clip": None, "weight_decay": plan.weight_decay} | dict(group)
            for group in task.groups()
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=plan.lr, betas=plan.betas, fused=True)
        self.step, self.seconds, self.skipped = 0, 0.0, 0
        self.evaluation: Mapping[str, float] = {}

    # -- where it stands ------------------------------------------------------------------

    @property
    def progress(self) -> Progress:
        by_steps = self.step / self.plan.steps if self.plan.steps else 0.0
        minutes = self.seconds / 60
        by_clock = minutes / self.plan.minutes if self.plan.minutes else 0.0
        return Progress(self.step, min(1.0, max(by_steps, by_clock)), minutes)

    def begin(self) -> None:
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(self.plan.seed)
        self.log.clear()

    def save(self) -> None:
        numbers = {"step": self.step, "seconds": self.seconds, "seed": self.plan.seed}
        save_run(self.folder / CHECKPOINT, self.task.module, self.optimiser, **numbers)

    def load(self) -> None:
        path = self.folder / CHECKPOINT
        numbers = load_run(path, self.task.module, self.optimiser, self.plan.seed)
        self.step, self.seconds = int(numbers["step"]), numbers["seconds"]
        self.log.cut(self.step)
        self.say(f"goes on at step {self.step:,}, minute {self.seconds / 60:.1f}")

    # -- what it does ---------------------------------------------------------------------

    def go(self, feed: Iterator[Any], stop: threading.Event) -> Outcome:
        clock = _Clock(PAUSE_S if self.device.type == "cpu" else math.inf)
        saved = evaluated = self.seconds
        figures = _Figures(self.seconds)
        self.task.module.train()
        while self.progress.fraction < 1.0 and not stop.is_set():
            figures.add(self._take_step(feed))
            self.seconds += clock.lap()
            if self.step % self.plan.log_steps == 0:
                self._report(figures)
                figures = _Figures(self.seconds)
            if self._is_evaluation_due(evaluated):
                self._evaluate()
                self._pass(clock.lap(), figures)
                evaluated = self.seconds
            if self.seconds - saved >= 60 * self.plan.checkpoint_minutes:
                self.save()
                self.log.draw()
                self._pass(clock.lap(), figures)
                saved = self.seconds
        done = self.progress.fraction >= 1.0
        if done:
            self._evaluate()
        self.save()
        self.log.draw()
        return Outcome("done" if done else "stopped", self.progress, self.evaluation)

    def _pass(self, seconds: float, figures: _Figures) -> None:
        """Time that counts, but in no step's rate."""
        self.seconds += seconds
        figures.since += seconds

    def _take_step(self, feed: Iterator[Any]) -> dict[str, Tensor]:
        progress, plan = self.progress, self.plan
        rate = learning_rate(plan, progress)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["lr_scale"]
        self.optimiser.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for _ in range(plan.accumulate):
            batch = moved(next(feed), self.device)
            bfloat16 = plan.autocast and self.device.type == "cuda"
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
                losses = self.task.losses(batch, progress)
            (losses["loss"] / plan.accumulate).backward()
            for name, value in losses.items():
                share = value.detach().float() / plan.accumulate
                sums[name] = sums[name] + share if name in sums else share
        norm = self._clip()
        if math.isfinite(norm):
            self.optimiser.step()
            self.skipped = 0
        else:
            self.skipped += 1
            if self.skipped >= MOST_SKIPPED:
                raise ChromaError(
                    f"step {self.step}: no finite gradient for {MOST_SKIPPED} steps. Resume from "
                    "the last checkpoint with a lower lr or clip."
                )
        self.step += 1
        return sums | {"norm": torch.tensor(norm), "lr": torch.tensor(rate)}

    def _clip(self) -> float:
        """Clips the groups that have a limit of their own, and the rest together.

        Returns:
            The largest norm before.
        """
        shared: list[Tensor] = []
        norms = []
        for group in self.optimiser.param_groups:
            if group["clip"] is None:
                shared += group["params"]
            else:
                norms.append(nn.utils.clip_grad_norm_(group["params"], group["clip"]))
        if shared:
            norms.append(nn.utils.clip_grad_norm_(shared, self.plan.clip))
        return float(torch.stack(norms).max()) if norms else 0.0

    def _is_evaluation_due(self, last: float) -> bool:
        by_steps, by_clock = self.plan.eval_steps, self.plan.eval_minutes
        if by_steps is not None and self.step % by_steps == 0:
            return True
        return by_clock is not None and self.seconds - last >= 60 * by_clock

    def _evaluate(self) -> None:
        module = self.task.module
        devices = [self.device] if self.device.type == "cuda" else []
        states = random.getstate(), np.random.get_state()
        module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices):
            self.evaluation = dict(self.task.evaluate())
        module.train()
        random.setstate(states[0])
        np.random.set_state(states[1])
        if self.evaluation:
            self._write({"eval": dict(self.evaluation)})
            words = "  ".join(f"{name} {value:.4g}" for name, value in self.evaluation.items())
            self.say(f"step {self.step:,} held out: {words}")

    def _report(self, figures: _Figures) -> None:
        means = figures.means()
        rate = figures.steps / max(self.seconds - figures.since, 1e-9)
        self._write({"rate": round(rate, 3)} | {k: float(f"{v:.5g}") for k, v in means.items()})
        progress = self.progress
        left = progress.minutes * (1 / max(progress.fraction, 1e-6) - 1)
        words = "  ".join(f"{k} {v:.3g}" for k, v in means.items() if k != "lr")
        self.say(
            f"step {self.step:,}  {progress.fraction:.0%}  {words}  {rate:.3g} steps/s  "
            f"{left:.1f} min left"
        )

    def _write(self, figures: dict[str, Any]) -> None:
        progress = self.progress
        head = {
            "step": self.step,
            "minutes": round(progress.minutes, 3),
            "fraction": round(progress.fraction, 5),
        }
        self.log.write(head | figures)


class _Figures:
    """Sums of what the steps returned; read from the device once a log entry."""

    def __init__(self, since: float) -> None:
        self.since, self.steps = since, 0
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, figures: Mapping[str, Tensor]) -> None:
        self.steps += 1
        for name, value in figures.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: float(value) / self.counts[name] for name, value in self.sums.items()}


class _Clock:
    """Seconds since the last look, pauses left out."""

    def __init__(self, most: float) -> None:
        self.most, self.last = most, time.monotonic()

    def lap(self) -> float:
        now = time.monotonic()
        lap, self.last = now - self.last, now
        return lap if lap < self.most else 0.0


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; signals reach the main thread only."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
