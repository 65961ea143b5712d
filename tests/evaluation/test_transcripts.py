from __future__ import annotations

import sys
from pathlib import Path

import pytest

from chroma_plugin.errors import AudioError, ConfigError
from chroma_plugin.evaluation.transcripts import AsrCommand, errors, word_error_rate, words


def test_words_are_what_is_said() -> None:
    assert words("Don\u2019t, *stop*:  it's FINE!") == ["don't", "stop", "it's", "fine"]
    assert words("'quoted' snake_case 3.5") == ["quoted", "snake", "case", "3", "5"]
    assert words("你好 world。") == ["你", "好", "world"]
    assert words(" ... ") == []


@pytest.mark.parametrize(
    ("spoken", "wanted", "expected"),
    [
        ("a b c", "a b c", 0),
        ("a c", "a b c", 1),  # left out
        ("a b b c", "a b c", 1),  # put in
        ("a x c", "a b c", 1),  # another
        ("", "a b c", 3),
        ("a b", "", 2),
        ("b a", "a b", 2),
    ],
)
def test_errors_are_counted(spoken: str, wanted: str, expected: int) -> None:
    assert errors(spoken.split(), wanted.split()) == expected


def test_the_rate_is_of_the_words_wanted() -> None:
    assert word_error_rate("One, two.", "one two three four") == 0.5
    assert word_error_rate("", "") == 0.0
    assert word_error_rate("uh", "") == 1.0


def test_a_command_writes_down(asr: str, tmp_path: Path) -> None:
    (tmp_path / "a clip.txt").write_text("two\nlines  here\n")
    assert AsrCommand(asr).write_down(tmp_path / "a clip.wav") == "two lines here"
    assert AsrCommand(asr).write_down(tmp_path / "other.wav") == ""


def test_commands_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no \{audio\}"):
        AsrCommand("whisper file.wav")
    with pytest.raises(ConfigError, match="cannot be read"):
        AsrCommand("whisper '{audio}")
    with pytest.raises(ConfigError, match="cannot be run"):
        AsrCommand("no-such-command-here {audio}").write_down(tmp_path / "a.wav")
    fails = AsrCommand(f"{sys.executable} -c 'import sys; sys.exit(\"no GPU\")' {{audio}}")
    with pytest.raises(AudioError, match=r"failed \(1\): no GPU"):
        fails.write_down(tmp_path / "a.wav")
    slow = AsrCommand(f"{sys.executable} -c 'input()' {{audio}}", timeout_s=0.0)
    with pytest.raises(AudioError, match="took more than 0 s"):
        slow.write_down(tmp_path / "a.wav")
