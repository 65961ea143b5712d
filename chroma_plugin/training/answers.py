"""Where questions and their answers come from: the small world of `domain`, a file of pairs, or a
language model behind an OpenAI-compatible chat endpoint. Knows nothing of sound.
"""

from __future__ import annotations

import hashlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

import numpy as np

from chroma_plugin.errors import ChromaError
from chroma_plugin.training import domain
from chroma_plugin.training.domain import Dialogue, Exchange

HELD_OUT_SHARE = 0.1
REFERENCE_CHARS = 60
"""About 4 s of speech."""
SHORT = "Answer in one short spoken sentence of at most twelve words, without markup or lists."


class BrokenAnswer(Exception):
    """This one question got no answer that can be used; the next one may."""


class Answers(Protocol):
    """Gives dialogues."""

    def dialogue(self, rng: np.random.Generator, held_out: bool, turns: int) -> Dialogue:
        """A dialogue of at most `turns` turns; of sentences that training never sees, if held out.

        Raises:
            BrokenAnswer: not this time.
            ChromaError: not ever; says how to mend it.
        """

    def reference(self, rng: np.random.Generator) -> str:
        """What may be said in a reference clip, about 4 s."""

    @property
    def source(self) -> str:
        """What its texts depend on, in a few words: another one, other texts.

        Raises:
            ChromaError: it cannot be read.
        """


class Domain:
    """The built-in world; what is held out are phrasings, see `domain.HELD_OUT`."""

    def dialogue(self, rng: np.random.Generator, held_out: bool, turns: int) -> Dialogue:
        """See `domain.dialogue`."""
        return domain.dialogue(rng, "heldout" if held_out else "train", turns)

    def reference(self, rng: np.random.Generator) -> str:
        """Sentences that are no answers."""
        return domain.reference_text(rng, 1)

    @property
    def source(self) -> str:
        """A hash of its texts."""
        return f"domain {domain.fingerprint()}"


@dataclass(frozen=True)
class PairsFile:
    """A JSON lines file of `{"question": ..., "answer": ...}`, or `{"dialogue": [such, ...]}`.

    Attributes:
        path: the file.
        held_out_share: of its lines, chosen by a hash of what they say.
    """

    path: Path
    held_out_share: float = HELD_OUT_SHARE

    def dialogue(self, rng: np.random.Generator, held_out: bool, turns: int) -> Dialogue:
        """One line of the file, its first `turns` turns."""
        rows = self._dialogues[held_out]
        return rows[rng.integers(len(rows))][:turns]

    def reference(self, rng: np.random.Generator) -> str:
        """Answers from the part of the file that is not held out."""
        rows, text = self._dialogues[False], ""
        while len(text) < REFERENCE_CHARS:
            row = rows[rng.integers(len(rows))]
            text = f"{text} {row[rng.integers(len(row))].answer}".strip()
        return text

    @property
    def source(self) -> str:
        """A hash of what the file holds, wherever it lies."""
        try:
            held = hashlib.sha256(Path(self.path).read_bytes()).hexdigest()[:16]
        except OSError as error:
            raise ChromaError(f"{self.path}: cannot be read ({error}).") from error
        return f"pairs {held}, {self.held_out_share:g} held out"

    @cached_property
    def _dialogues(self) -> dict[bool, list[Dialogue]]:
        found: dict[bool, list[Dialogue]] = {False: [], True: []}
        try:
            lines = Path(self.path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ChromaError(f"{self.path}: cannot be read ({error}).") from error
        for number, line in enumerate(lines, 1):
            if line.strip():
                dialogue = _parsed(line, f"{self.path}, line {number}")
                draw = crc32(repr(dialogue).encode()) / 2**32
                found[draw < self.held_out_share].append(dialogue)
        for held_out, rows in found.items():
            if not rows and not (held_out and self.held_out_share <= 0):
                which = "held out" if held_out else "left for training"
                raise ChromaError(
                    f"{self.path}: of {len(lines)} lines none is {which}; give more lines, or "
                    "another held_out_share."
                )
        return found


@dataclass(frozen=True)
class ChatEndpoint:
    """A language model that answers questions, over `POST {url}/chat/completions`.

    Attributes:
        url: as far as the version: "http://localhost:8000/v1".
        model: its name there.
        questions: where questions come from; their own answers are not used.
        system: how to answer.
        api_key: sent as a bearer token, if there is one.
        timeout_s: for one answer.
        tries: of one question, while the endpoint is busy or fails.
        pause_s: before the second try; twice as long before each further one.
    """

    url: str
    model: str
    questions: Answers
    system: str = SHORT
    api_key: str = ""
    timeout_s: float = 60.0
    tries: int = 4
    pause_s: float = 1.0

    def dialogue(self, rng: np.random.Generator, held_out: bool, turns: int) -> Dialogue:
        """The questions of a dialogue, answered one after the other."""
        done: list[Exchange] = []
        for exchange in self.questions.dialogue(rng, held_out, turns):
            answer = self._ask(done, exchange.question, int(rng.integers(2**31)))
            done.append(Exchange(exchange.question, answer))
        return tuple(done)

    def reference(self, rng: np.random.Generator) -> str:
        """As the questions' own source gives them."""
        return self.questions.reference(rng)

    @property
    def source(self) -> str:
        """Address, model and instruction, and what the questions depend on."""
        return f"{self.model} at {self.url}, {self.system!r}; questions: {self.questions.source}"

    def _ask(self, before: Sequence[Exchange], question: str, seed: int) -> str:
        messages = [{"role": "system", "content": self.system}]
        for exchange in before:
            messages.append({"role": "user", "content": exchange.question})
            messages.append({"role": "assistant", "content": exchange.answer})
        messages.append({"role": "user", "content": question})
        body = {"model": self.model, "messages": messages, "temperature": 0.0, "seed": seed}
        reply = self._post(json.dumps(body).encode())
        try:
            said = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise BrokenAnswer(f"the endpoint's reply has no message: {reply!r:.200}") from error
        answer = " ".join(str(said or "").split())
        if not answer:
            raise BrokenAnswer(f"an empty answer to {question!r}")
        return answer

    def _post(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        address = f"{self.url.rstrip('/')}/chat/completions"
        if not address.startswith(("http://", "https://")):
            raise ChromaError(f"{self.url!r} is no address; it begins with http:// or https://.")
        why = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.pause_s * 2 ** (attempt - 1))
            request = urllib.request.Request(address, body, headers, method="POST")
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
                    return json.load(reply)
            except urllib.error.HTTPError as error:
                why = f"{error.code} {error.reason}: {error.read(200).decode('utf-8', 'replace')}"
                if error.code in (401, 403, 404):
                    raise ChromaError(
                        f"{address} refuses ({why}); check address, model and key."
                    ) from error
                if error.code != 429 and error.code < 500:
                    break
            except ValueError as error:
                raise BrokenAnswer(f"{address} answers with no JSON ({error})") from error
            except TimeoutError:
                why = f"no answer in {self.timeout_s:g} s"
            except OSError as error:  # with urllib's URLError
                raise ChromaError(f"{address} cannot be reached ({error}); is it up?") from error
        raise BrokenAnswer(f"{address}: {why}")


def _parsed(line: str, where: str) -> Dialogue:
    try:
        row = json.loads(line)
        pairs = row.get("dialogue", [row])
        dialogue = tuple(Exchange(_text(p["question"]), _text(p["answer"])) for p in pairs)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ChromaError(
            f'{where}: {error!r}. A line is {{"question": "...", "answer": "..."}}, or '
            '{"dialogue": [such, ...]}.'
        ) from error
    if not dialogue:
        raise ChromaError(f"{where}: a dialogue without a turn.")
    return dialogue


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is no text")
    return " ".join(value.split())
