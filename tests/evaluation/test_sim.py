from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from chroma_plugin.errors import AudioError, ConfigError
from chroma_plugin.evaluation.sim import evaluate_similarity, read_list
from chroma_plugin.evaluation.speakers import LightMeasure
from chroma_plugin.evaluation.synthesis import Spoken, Task
from chroma_plugin.evaluation.transcripts import AsrCommand
from tests.evaluation.conftest import CLIP, TRANSCRIPT, evaluate, refused, save, vowels

TEXT = "a sentence of seven words to say"


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Three utterances of two voices; two have human recordings, in the two usual places."""
    folder = tmp_path / "set"
    save(folder / "prompts" / "low.wav", vowels(3.2, 110.0, 0.95, seed=1))
    save(folder / "prompts" / "high.wav", vowels(3.2, 220.0, 1.15, seed=2))
    save(folder / "wavs" / "u1.wav", vowels(1.6, 110.0, 0.95, seed=3))
    save(folder / "human" / "u2.wav", vowels(1.6, 220.0, 1.15, seed=4))
    for name in ("wavs/u1.txt", "human/u2.txt"):
        (folder / name).write_text("a sentence of seven words to hear")
    said = "fifty characters or so are said in this prompt here"
    lines = [
        f"u1|{said}|prompts/low.wav|{TEXT}",
        f"u2.wav|{said}|prompts/high.wav|{TEXT}|human/u2.wav",
        "",
        f"u3|{said}|prompts/high.wav|{TEXT}",
    ]
    path = folder / "meta.lst"
    path.write_text("\n".join(lines) + "\n")
    return path


def speaking(pitch: dict[str, float]) -> object:
    """Says tasks in voices that are given by name; a name that is not there fails."""

    def speak(tasks: Sequence[Task]) -> list[Spoken | str]:
        said: list[Spoken | str] = []
        for task in tasks:
            if task.path.stem not in pitch:
                said.append("the engine was busy")
                continue
            tract = 0.95 if pitch[task.path.stem] < 150 else 1.15
            save(task.path, vowels(1.6, pitch[task.path.stem], tract, seed=9))
            task.path.with_suffix(".txt").write_text("a sentence of eleven words to say")
            said.append(Spoken(task.path, task.text or "", made=True))
        return said

    return speak


def test_a_list_is_read(listed: Path) -> None:
    first, second, third = read_list(listed)
    assert (first.name, first.text) == ("u1", TEXT)
    assert first.human == listed.parent / "wavs" / "u1.wav"
    assert (second.name, second.human) == ("u2", listed.parent / "human" / "u2.wav")
    assert third.human is None


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("u1|text|clip.wav", "write name|prompt text"),
        ("u1||clip.wav|text", "write name|prompt text"),
        ("../u1|text|clip.wav|text", "names no file"),
        ("u1|a|b.wav|c\nu1|a|b.wav|c", "line 2: 'u1' comes twice"),
        ("\n", "has no lines"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(tmp_path: Path, line: str, why: str) -> None:
    (tmp_path / "meta.lst").write_text(line)
    with pytest.raises(ConfigError, match=why.replace("|", r"\|")):
        read_list(tmp_path / "meta.lst")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_list(tmp_path / "none.lst")


def test_the_voice_that_follows_its_prompt_is_nearer(
    listed: Path, tmp_path: Path, asr: str
) -> None:
    pitches = {"right": {"u1": 110.0, "u2": 220.0}, "wrong": {"u1": 220.0, "u2": 110.0}}
    found = {}
    for kind, pitch in pitches.items():
        outcome = evaluate_similarity(
            read_list(listed),
            speaking(pitch),  # type: ignore[arg-type]
            LightMeasure(),
            tmp_path / kind,
            AsrCommand(asr),
        )
        found[kind] = outcome.figures
        assert outcome.set_aside == ["u3: the engine was busy"]
    right, wrong = found["right"], found["wrong"]
    assert right["similarity"] > 2 * wrong["similarity"]
    assert abs(right["relative_gain"]) < 0.25 and wrong["relative_gain"] < -0.4
    assert right["relative_gain"] == pytest.approx(
        right["similarity"] / right["human_similarity"] - 1, abs=1e-3
    )
    low, high = right["similarity_95"]
    assert low <= right["similarity"] <= high
    assert (right["utterances"], right["with_human"], right["set_aside"]) == (2, 2, 1)
    # one word of seven is another one, in both
    assert right["wer"] == right["human_wer"] == pytest.approx(1 / 7, abs=1e-3)


def test_nothing_to_judge_is_an_error(listed: Path, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"Not one of 3 utterances .* the engine was busy"):
        evaluate_similarity(read_list(listed), speaking({}), LightMeasure(), tmp_path)  # type: ignore[arg-type]


def test_by_the_command_with_the_packaged_model(tmp_path: Path, asr: str) -> None:
    shutil.copy(CLIP, tmp_path / "clip.flac")
    (tmp_path / "silent.txt").write_text("no audio")
    listed = tmp_path / "meta.lst"
    listed.write_text(
        f"one|{TRANSCRIPT}|clip.flac|Hello.\n"
        f"two|{TRANSCRIPT}|clip.flac|What a day.|clip.flac\n"
        f"three|{TRANSCRIPT}|silent.txt|Never said.\n"
    )
    picture = tmp_path / "sim.png"
    line = evaluate(
        "sim", listed, "--device", "cpu", "--max-seconds", 0.8, "--asr", asr,
        "--audio", tmp_path / "said", "--plot", picture, "--seed", 3,
    )  # fmt: skip
    figures = line["figures"]
    assert line["eval"] == "sim" and line["settings"]["measure"] == "light"
    assert 0 < figures["similarity"] < 1
    assert figures["human_similarity"] == 1.0  # the prompt itself
    assert figures["utterances"] == 2 and "three" in line["set_aside"][0]
    assert figures["wer"] is not None
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in (tmp_path / "said").glob("*.wav")) == ["one.wav", "two.wav"]
    again = evaluate("sim", listed, "--audio", tmp_path / "said", "--limit", 2, "--json")
    assert again["figures"]["similarity"] == figures["similarity"]
    assert "no such measure" not in refused("sim", listed, "--speaker", "heavy")
    assert "use light, wavlm" in refused("sim", listed, "--speaker", "heavy")
