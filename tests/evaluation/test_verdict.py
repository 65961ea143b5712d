"""Bars: what is met, what is missed, turns, settings; and the command as a whole."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from rich.console import Console

from chroma_plugin.audio import Samples
from chroma_plugin.config import SamplingParams
from chroma_plugin.evaluation import engines
from chroma_plugin.evaluation.conversation import Reply, Talk, long_talks, read_settings, talks_of
from chroma_plugin.evaluation.engines import held_out_records, unheard
from chroma_plugin.evaluation.standards import Judge, recordings
from chroma_plugin.evaluation.verdict import Job, evaluate, plan
from chroma_plugin.reply import EndReason
from chroma_plugin.training import data
from chroma_plugin.training.data import DataPlan, build
from chroma_plugin.training.records import Records
from tests.evaluation.conftest import evaluate as run
from tests.evaluation.conftest import refused
from tests.miniature import MINIATURE
from tests.training.test_data import Hum


class Told(Hum):
    """Hums as loud as the text says, so that no two texts are alike."""

    def speak(self, text: str, voice: int) -> Samples:
        return super().speak(text, voice) * np.float32(0.9 + crc32(text.encode()) % 1000 / 5000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    plan = DataPlan(0, 8, turns=(2, 2), speaker_dialogues=2, shard_dialogues=8)
    build(plan, folder, speaker=Told())
    return folder


@pytest.fixture
def talks(folder: Path) -> list[Talk]:
    return talks_of(Records(folder, "heldout"))[0]


class Anybody:
    """A gallery in which every voice is the right one."""

    full = True

    def nearest(self, audio: Samples, talk: Talk) -> bool:
        return len(audio) > 0


def never(*_: object) -> Any:
    raise AssertionError("nobody is asked")


def judge_of(written: dict[bytes, str]) -> Judge:
    """The ear knows recordings by heart and understands nothing else."""
    return Judge(lambda samples: written.get(samples.tobytes(), ""), Anybody())  # type: ignore[arg-type]


def held(jobs: list[Job], change: Callable[[int, int, Reply], Reply]) -> list[list[list[Reply]]]:
    """Recordings for replies, changed by conversation and turn."""
    return [
        [
            [change(number, place, reply) for place, reply in enumerate(row, 1)]
            for number, row in enumerate(recordings(job.talks))
        ]
        for job in jobs
    ]


def known(talks: list[Talk]) -> dict[bytes, str]:
    answers = [turn.answer for talk in talks for turn in talk.turns]
    return {answer.samples().tobytes(): answer.text for answer in answers}


def test_everything_is_held_once_and_the_short_ones_by_each_setting(talks: list[Talk]) -> None:
    long = long_talks(talks, 1)
    jobs = plan({"session": never, "pipeline": never}, talks, long, read_settings("1:50 0.5:9 0"))
    assert [(job.name, len(job.talks)) for job in jobs] == [
        ("session", 9),
        ("pipeline", 9),
        ("session", 8),
        ("session", 8),
    ]
    assert [job.sampling.temperature for job in jobs] == [1.0, 1.0, 0.5, 0.0]


def test_all_bars_are_met(talks: list[Talk]) -> None:
    jobs = plan({"session": never}, talks, long_talks(talks, 1), [SamplingParams()])
    outcome = evaluate(jobs, held(jobs, lambda n, t, r: r), judge_of(known(talks)))
    way = outcome.figures["ways"]["session"]
    assert outcome.figures["met"] is True
    assert way["replies"] == 16 and way["failed"] == 0
    assert [bar["met"] for bar in way["bars"]] == [True] * 7
    assert way["turns"]["1"]["of"] == 9 and way["turns"]["10"]["of"] == 1
    assert outcome.figures["beside"]["recordings"]["right"] == 1.0
    assert len(outcome.figures["replies"]) == 26
    json.loads(outcome.line())


@pytest.mark.parametrize(
    ("missed", "changes"),
    [
        ("right", {"text": "Something else."}),
        ("ended", {"reason": EndReason.MAX_SECONDS}),
        ("voice", {"audio": np.zeros(0, np.float32)}),
        ("pitch", {"audio": np.zeros(9_600, np.float32)}),
        ("understood", {"audio": np.zeros(9_600, np.float32)}),
    ],
)
def test_a_missed_bar_is_told(talks: list[Talk], missed: str, changes: dict[str, Any]) -> None:
    jobs = plan({"session": never}, talks, [], [SamplingParams()])
    replies = held(jobs, lambda n, t, r: replace(r, **changes) if n < 4 else r)
    outcome = evaluate(jobs, replies, judge_of(known(talks)))
    bars = {bar["name"]: bar for bar in outcome.figures["ways"]["session"]["bars"]}
    assert outcome.figures["met"] is False
    assert bars[missed]["met"] is False and bars[missed]["share"] == 0.5
    said = io.StringIO()
    outcome.show(Console(file=said, width=120))
    assert "50.0% MISSED" in said.getvalue()
    low, high = outcome.figures["ways"]["session"]["intervals"][missed]
    assert low < 0.5 < high


def test_bars_may_be_set(talks: list[Talk]) -> None:
    jobs = plan({"session": never}, talks, [], [SamplingParams()])
    replies = held(jobs, lambda n, t, r: replace(r, text="No.") if n < 4 else r)
    judge = judge_of(known(talks))
    for least, met in ((0.5, True), (0.51, False)):
        outcome = evaluate(jobs, replies, judge, {"right": least})
        assert outcome.figures["met"] is met


def test_a_later_turn_that_is_worse_is_told(talks: list[Talk]) -> None:
    many = talks * 2
    jobs = plan({"session": never}, many, [], [SamplingParams()])
    wrong = held(jobs, lambda n, t, r: replace(r, reason=None) if t == 2 and n < 10 else r)
    outcome = evaluate(jobs, wrong, judge_of(known(talks)), {})
    (second, tenth) = outcome.figures["ways"]["session"]["bars"]
    assert second["met"] is False and second["chances"]["ended"] < 0.05
    assert second["chances"]["right"] == 1.0
    assert tenth["met"] is None  # nobody came so far
    assert outcome.figures["met"] is False
    few = held(jobs, lambda n, t, r: replace(r, reason=None) if t == 2 and n < 2 else r)
    assert evaluate(jobs, few, judge_of(known(talks)), {}).figures["met"] is True


def test_failures_are_replies_that_are_nothing(talks: list[Talk]) -> None:
    jobs = plan({"session": never}, talks, [], [SamplingParams()])
    replies = held(jobs, lambda n, t, r: Reply(error="busy") if n == 0 else r)
    outcome = evaluate(jobs, replies, judge_of(known(talks)))
    way = outcome.figures["ways"]["session"]
    assert way["failed"] == 2 and way["right"] == way["understood"] == 14 / 16
    assert outcome.set_aside == [
        "session, conversation 1, turn 1: busy",
        "session, conversation 1, turn 2: busy",
    ]


def test_the_setting_by_which_replies_are_best_understood(talks: list[Talk]) -> None:
    jobs = plan({"session": never}, talks, long_talks(talks, 1), read_settings("1:50 0.5:20 0"))
    replies = held(jobs, lambda n, t, r: r)
    for job, wrong in ((0, 6), (1, 1), (2, 3)):
        for row in replies[job][:wrong]:
            row[0] = replace(row[0], audio=row[0].audio[:-7])
    outcome = evaluate(jobs, replies, judge_of(known(talks)))
    found = outcome.figures["sampling"]
    assert found["best"] == "0.5:20"
    assert [row["understood"] for row in found["compared"]] == [10 / 16, 15 / 16, 13 / 16]
    # bars are held by the first
    assert outcome.figures["ways"]["session"]["understood"] == 10 / 16


def test_recordings_through_a_codec_stand_beside(talks: list[Talk]) -> None:
    jobs = plan({"session": never}, talks, [], [SamplingParams()])
    replies = held(jobs, lambda n, t, r: r)
    judge = judge_of(known(talks))
    outcome = evaluate(jobs, replies, judge, codec=lambda samples: samples[:-7])
    assert outcome.figures["beside"]["recordings"]["understood"] == 1.0
    assert outcome.figures["beside"]["through the codec"]["understood"] == 0.0


def test_the_time_of_making_by_that_of_speech(talks: list[Talk]) -> None:
    jobs = plan({"session": never}, talks, [], [SamplingParams()])
    replies = held(jobs, lambda n, t, r: replace(r, made_s=r.seconds / 4))
    way = evaluate(jobs, replies, judge_of({})).figures["ways"]["session"]
    assert way["rtf"] == pytest.approx(0.25)


# -- records and engines -------------------------------------------------------------------------


def test_records_are_made_where_there_are_none(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[DataPlan] = []

    def build_hums(plan: DataPlan, place: Path, threads: int) -> None:
        made.append(plan)
        data.build(plan, place, speaker=Hum())

    monkeypatch.setattr(engines, "build", build_hums)
    with ExitStack() as stack:
        found = held_out_records(tmp_path / "new", 6, 3, stack)
        assert len(found.dialogues) == 6 and len({found[i].speaker for i in found.dialogues}) == 3
        again = held_out_records(tmp_path / "new", 99, 3, stack)
        assert len(again.dialogues) == 6 and len(made) == 1
        assert made[0].train == 0 and made[0].seed != 3
        gone = held_out_records(None, 2, 0, stack).shards[0].path.parent
        assert gone.is_dir()
    assert not gone.exists()


def test_nobody_listens_to_these_engines() -> None:
    config = unheard("chroma-tiny", "cpu", 3, 2.0, num_threads=1)
    assert (config.max_replies, config.max_reply_s, config.num_threads) == (3, 2.0, 1)
    assert config.run_ahead_s == float("inf")


def test_by_the_command_with_a_model_of_noise(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "bars.png"
    options = ("--model", MINIATURE, "--device", "cpu", "--max-seconds", 0.32, "--dialogues", 1)
    line = run(
        "conversation", "--records", folder, *options, "--long", 1, "--through", "session",
        "--sampling", "1:50 0", "--audio", tmp_path / "kept", "--keep", 1, "--plot", picture,
    )  # fmt: skip
    figures = line["figures"]
    way = figures["ways"]["session"]
    assert line["eval"] == "conversation" and line["settings"]["dialogues"] == 1
    assert way["replies"] == 2 and way["failed"] == 0 and way["turns"]["10"]["of"] == 1
    assert way["right"] == 0.0 and figures["met"] is False
    assert way["rtf"] > 0 and way["voice"] is None  # four voices are no twelve
    assert len(figures["replies"]) == 12 and len(figures["sampling"]["compared"]) == 2
    assert set(figures["beside"]) == {"recordings", "through the codec"}
    assert picture.read_bytes()[:4] == b"\x89PNG"
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert kept == [
        "001-session-1-question.wav", "001-session-1-reply.wav", "001-session-2-question.wav",
        "001-session-2-reply.wav", "001-session-prompt.wav", "001-session.txt",
    ]  # fmt: skip


def test_a_strict_command_fails_when_a_bar_is_missed(folder: Path) -> None:
    options = ("--model", MINIATURE, "--device", "cpu", "--max-seconds", 0.2, "--dialogues", 1)
    given = (*options, "--long", 0, "--through", "session", "--strict")
    told = refused("conversation", "--records", folder, *given)
    assert "A bar is missed" in told
    assert "--sampling" in refused("conversation", "--records", folder, "--sampling", "warm")
