from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chroma_plugin.errors import AudioError, ConfigError
from chroma_plugin.evaluation.scores import Judge, NoScore
from chroma_plugin.evaluation.synthesis import Spoken, Task
from chroma_plugin.evaluation.transcripts import AsrCommand
from chroma_plugin.evaluation.uro import ENGLISH, evaluate_dialogue, read_sets
from tests.evaluation.conftest import QUESTION, evaluate, refused

ROWS: dict[str, list[dict[str, Any]]] = {
    "Repeat": [{"source_text": "say it", "target_text": "a b c d"}],
    "Gsm8kEval": [
        {"source_text": "two and two?", "target_text": 4},
        {"source_text": "two and three?", "target_text": ["five", "5"]},
    ],
    "StoralEval": [{"source_text": "the moral?", "target_text": "be kind"}],
    "CommonEval": [{"source_text": "how are you?"}],
    "Mine": [{"source_text": "the capital?", "target_text": "Paris"}],
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, rows in ROWS.items():
        folder = tmp_path / "data" / "basic" / name
        (folder / "audio").mkdir(parents=True)
        lines = []
        for number, row in enumerate(rows):
            shutil.copy(QUESTION, folder / "audio" / f"{number}.flac")
            lines.append(json.dumps({"source_wav": f"audio/{number}.flac"} | row))
        (folder / "test.jsonl").write_text("\n".join(lines))
    return tmp_path / "data"


def answering(answers: dict[str, str]) -> Any:
    """Answers a set's questions; a set that is not there fails."""

    def speak(tasks: Sequence[Task]) -> list[Spoken | str]:
        said: list[Spoken | str] = []
        for task in tasks:
            assert task.question is not None and task.question.is_file()
            text = answers.get(f"{task.path.parent.name}/{task.path.stem[-1]}")
            said.append("busy" if text is None else Spoken(task.path, text, made=True))
            task.path.parent.mkdir(parents=True, exist_ok=True)
            task.path.with_suffix(".txt").write_text((text or "").replace("five", "fife"))
        return said

    return speak


ANSWERS = {
    "Repeat/0": "a b c x",
    "Gsm8kEval/0": "It is 4.",
    "Gsm8kEval/1": "It is five.",
    "StoralEval/0": "Be kind.",
    "CommonEval/0": "Well.",
}


def test_sets_are_found(data: Path) -> None:
    sets = {one.name: one for one in read_sets(data)}
    assert set(sets) == set(ROWS)
    assert {name: one.rule for name, one in sets.items()} == {
        "Repeat": "wer", "Gsm8kEval": "contains", "StoralEval": "graded", "CommonEval": "open",
        "Mine": "contains",
    }  # fmt: skip
    assert sets["Gsm8kEval"].questions[0].references == ("4",)
    assert sets["Gsm8kEval"].questions[1].references == ("five", "5")
    assert sets["CommonEval"].questions[0].references == ()
    assert [one.name for one in read_sets(data / "basic", ["MLC", "Mine"][1:])] == ["Mine"]
    assert len(read_sets(data, ["Gsm8kEval"], limit=1)[0].questions) == 1
    assert read_sets(data, ["Mine"], rule="exact")[0].rule == "exact"
    assert len(ENGLISH) == 10


def test_folders_that_cannot_be_used_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no MLC; there are CommonEval"):
        read_sets(data, ["MLC"])
    with pytest.raises(ConfigError, match="no such folder"):
        read_sets(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no sets"):
        read_sets(tmp_path / "empty")
    broken = data / "basic" / "Mine" / "test.jsonl"
    broken.write_text('{"source_text": "no audio"}')
    with pytest.raises(ConfigError, match=r"line 1: KeyError\('source_wav'\)"):
        read_sets(data, ["Mine"])
    broken.write_text("")
    with pytest.raises(ConfigError, match="has no questions"):
        read_sets(data, ["Mine"])


def test_scores_by_rule_without_a_judge(data: Path, tmp_path: Path) -> None:
    outcome = evaluate_dialogue(read_sets(data), answering(ANSWERS), tmp_path / "said")
    sets = outcome.figures["sets"]
    assert sets["Repeat"]["score"] == 75.0
    assert sets["Gsm8kEval"]["score"] == 100.0
    assert (sets["Gsm8kEval"]["article"], sets["Repeat"]["article"]) == (22.74, None)
    assert (sets["StoralEval"]["score"], sets["StoralEval"]["unscored"]) == (None, 1)
    assert outcome.set_aside == ["Mine, 0.flac: busy"]
    assert outcome.figures["overall"] == pytest.approx((75 + 100) / 2)
    assert not outcome.figures["complete"]
    lines = (tmp_path / "said" / "Gsm8kEval.jsonl").read_text().splitlines()
    assert [json.loads(line)["heard"] for line in lines] == ["It is 4.", "It is five."]
    assert any("need a judge" in note for note in outcome.notes)


def test_transcripts_are_what_counts(data: Path, tmp_path: Path, asr: str) -> None:
    sets = read_sets(data, ["Gsm8kEval"])
    outcome = evaluate_dialogue(sets, answering(ANSWERS), tmp_path / "said", AsrCommand(asr))
    figures = outcome.figures["sets"]["Gsm8kEval"]
    assert figures["score"] == 50.0  # fife
    assert figures["asr_wer"] == pytest.approx((0 + 1 / 3) / 2, abs=1e-3)


def test_a_judge_marks_what_no_rule_can(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def score(_: Judge, rule: str, question: str, answer: str, references: object) -> float:
        asked.append(rule)
        if question == "how are you?":
            raise NoScore("the judge gives no mark")
        return 60.0

    monkeypatch.setattr(Judge, "score", score)
    judge = Judge("http://127.0.0.1:9/v1", "m")
    outcome = evaluate_dialogue(read_sets(data), answering(ANSWERS), tmp_path, judge=judge)
    sets = outcome.figures["sets"]
    assert sorted(asked) == ["contains", "contains", "graded", "open"]
    assert (sets["Repeat"]["score"], sets["StoralEval"]["score"]) == (75.0, 60.0)
    assert (sets["CommonEval"]["score"], sets["CommonEval"]["unscored"]) == (None, 1)
    assert "CommonEval, 0.flac: the judge gives no mark" in outcome.set_aside


def test_nothing_answered_is_an_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"Not one question .* busy"):
        evaluate_dialogue(read_sets(data), answering({}), tmp_path)


def test_by_the_command_with_the_packaged_model(data: Path, tmp_path: Path, asr: str) -> None:
    picture, said = tmp_path / "uro.png", tmp_path / "said"
    line = evaluate(
        "uro", data, "--set", "Mine", "--set", "Gsm8kEval", "--limit", 1, "--device", "cpu",
        "--max-seconds", 0.4, "--asr", asr, "--audio", said, "--plot", picture,
    )  # fmt: skip
    sets = line["figures"]["sets"]
    assert set(sets) == {"Mine", "Gsm8kEval"}
    assert all(one["score"] in (0.0, 100.0) and one["asr_wer"] in (0.0, None)
               for one in sets.values())  # fmt: skip
    assert (said / "Mine" / "0000.wav").is_file() and (said / "Mine.jsonl").is_file()
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "has no Other" in refused("uro", data, "--set", "Other")
