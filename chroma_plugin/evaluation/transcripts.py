"""What was spoken, written down by a command, and how far it is from what should have been."""

from __future__ import annotations

import re
import shlex
import subprocess
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from chroma_plugin.errors import AudioError, ConfigError

_APART = re.compile(r"[^\w']+|_")
_IDEOGRAPHS = re.compile(r"([\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")


class AsrCommand:
    """Writes down a recording by any command that prints the text; no shell reads it.

    Args:
        command: with `{audio}` for the file: `"whisper-cli -m large.bin -np -nt {audio}"`.
        timeout_s: how long one recording may take.

    Raises:
        ConfigError: the command has no `{audio}`, or cannot be split into words.
    """

    def __init__(self, command: str, timeout_s: float = 300.0) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise ConfigError(f"--asr {command!r} cannot be read ({error}).") from error
        if not any("{audio}" in word for word in self._words):
            raise ConfigError(
                f"--asr {command!r} has no {{audio}}; write it where the file's name belongs."
            )
        self._timeout_s = timeout_s

    def write_down(self, path: Path) -> str:
        """The text of a recording.

        Raises:
            ConfigError: there is no such command.
            AudioError: the command failed, or took too long.
        """
        words = [word.replace("{audio}", str(path)) for word in self._words]
        try:
            done = subprocess.run(words, capture_output=True, timeout=self._timeout_s)
        except (FileNotFoundError, PermissionError) as error:
            raise ConfigError(
                f"--asr: {words[0]} cannot be run ({error.strerror}); is it installed?"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise AudioError(
                f"{path.name}: {words[0]} took more than {self._timeout_s:g} s."
            ) from error
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip()[-200:]
            raise AudioError(f"{path.name}: {words[0]} failed ({done.returncode}): {said}")
        return " ".join(done.stdout.decode("utf-8", "replace").split())


def words(text: str) -> list[str]:
    """The words of a text: lower case, no punctuation; each ideograph is a word.

    Numbers are left as they are written: "8" is not "eight".
    """
    plain = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    parted = _IDEOGRAPHS.sub(r" \1 ", _APART.sub(" ", plain)).split()
    return [word for word in (part.strip("'") for part in parted) if word]


def errors(spoken: Sequence[str], wanted: Sequence[str]) -> int:
    """Words put in, left out or taken for another: Levenshtein's distance."""
    before = list(range(len(wanted) + 1))
    for i, heard in enumerate(spoken, 1):
        row = [i]
        for j, word in enumerate(wanted, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (heard != word)))
        before = row
    return before[-1]


def word_error_rate(spoken: str, wanted: str) -> float:
    """Errors by words that should have been; 1 for anything where there should be nothing."""
    heard, right = words(spoken), words(wanted)
    return errors(heard, right) / len(right) if right else float(bool(heard))
