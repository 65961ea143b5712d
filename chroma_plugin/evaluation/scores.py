"""How right an answer is: by rule, or by a judge, a language model behind a chat endpoint.

Scores are of 100, as URO-Bench gives them: a judge's 1 to 5 times twenty, right or wrong as 100 or
0, and for repeating the share of replies with at most half of the words wrong, times how right
those are.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chroma_plugin.errors import ChromaError, ConfigError
from chroma_plugin.evaluation.transcripts import word_error_rate, words

Rule = Literal["exact", "contains", "wer", "graded", "open"]
"""exact: the same words; contains: the reference's words in a row; wer: word errors; graded and
open: a judge's mark with and without a reference."""
RULES: tuple[Rule, ...] = ("exact", "contains", "wer", "graded", "open")
REPEATED_WER = 0.5
"""A reply with more word errors than that did not repeat."""
TRIES = 3

_GRADED = """\
A user spoke to a voice assistant. Mark its reply from 1 to 5.
1: beside the point, wrong, or no answer. 2: touches the question but is inaccurate or incomplete.
3: relevant and mostly right, with gaps or clutter. 4: right, to the point, easy to follow.
5: right and complete, and nothing in it could be left out.
Both texts are transcripts of speech: do not mind spelling or punctuation.{reference_rule}
Reply with the mark alone: one digit.

Question: {question}
Reply: {answer}{reference}"""
_RIGHT = """\
A user asked a voice assistant a question that has a known answer. Is what the reply says right?
Both texts are transcripts of speech: numbers may be written as words. Reply with Yes or No alone.

Question: {question}
Known answer: {reference}
Reply: {answer}"""


class NoScore(ChromaError):
    """The judge gave no mark for one answer; the others are not affected."""


def by_rule(rule: Rule, answer: str, references: Sequence[str]) -> float | None:
    """A score of 100 by rule; None where only a judge can tell.

    Args:
        rule: how to compare.
        answer: what was said.
        references: answers that are right; the one that fits best counts.
    """
    if rule in ("graded", "open") or not references:
        return None
    if rule == "wer":
        wrong = min(word_error_rate(answer, right) for right in references)
        return 100 * (1 - wrong) if wrong <= REPEATED_WER else 0.0
    heard = words(answer)
    for right in map(words, references):
        rest = len(heard) - len(right)
        places = range(rest + 1) if rule == "contains" or rest == 0 else ()
        if right and any(heard[i : i + len(right)] == right for i in places):
            return 100.0
    return 0.0


@dataclass(frozen=True, slots=True)
class Judge:
    """A language model that marks answers, over `POST {url}/chat/completions`.

    Attributes:
        url: as far as the version: `http://localhost:8000/v1`.
        model: its name there.
        api_key: sent as a bearer token, if there is one.
        timeout_s: for one mark.

    Raises:
        ConfigError: the address is none.
    """

    url: str
    model: str
    api_key: str = ""
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"--judge {self.url!r}: begins with http:// or https://.")

    def score(self, rule: Rule, question: str, answer: str, references: Sequence[str]) -> float:
        """A score of 100: a mark from 1 to 5 times twenty, or right or wrong.

        An answer without a word is 0, without asking.

        Raises:
            NoScore: it answers, but with no mark.
            ChromaError: it cannot be reached, or refuses.
        """
        if not words(answer):
            return 0.0
        reference = " / ".join(references)
        if rule in ("exact", "contains"):
            said = self._ask(
                _RIGHT.format(question=question, reference=reference, answer=answer),
                re.compile(r"\b(yes|no)\b", re.IGNORECASE),
            )
            return 100.0 if said.lower() == "yes" else 0.0
        given = rule == "graded" and bool(reference)
        prompt = _GRADED.format(
            question=question,
            answer=answer,
            reference=f"\nA good reply: {reference}" if given else "",
            reference_rule=" A reply may differ from the good one and be right." * given,
        )
        return 20.0 * int(self._ask(prompt, re.compile(r"(?<!\d)([1-5])(?!\d)")))

    def _ask(self, prompt: str, mark: re.Pattern[str]) -> str:
        said = ""
        for attempt in range(TRIES):
            said = self._post(prompt, seed=attempt)
            if found := mark.search(said):
                return found.group(1)
        raise NoScore(f"the judge gives no mark but {said[:80]!r}")

    def _post(self, prompt: str, seed: int) -> str:
        address = f"{self.url.rstrip('/')}/chat/completions"
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0.0 if seed == 0 else 0.7,  # the same again would bring the same
            "seed": seed,
        }
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
                answer: Any = json.load(reply)
            return str(answer["choices"][0]["message"]["content"] or "")
        except urllib.error.HTTPError as error:
            why = f"{error.code} {error.reason}: {error.read(200).decode('utf-8', 'replace')}"
            raise ChromaError(f"{address} refuses ({why}); check address, model, key.") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise NoScore(f"{address} answers with no message ({error!r})") from error
        except OSError as error:  # with urllib's URLError and timeouts
            raise ChromaError(f"{address} cannot be reached ({error}); is it up?") from error
