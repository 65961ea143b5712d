from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from chroma_plugin.errors import ChromaError, ConfigError
from chroma_plugin.evaluation.scores import Judge, NoScore, Rule, by_rule


@pytest.mark.parametrize(
    ("rule", "answer", "references", "expected"),
    [
        ("exact", "Paris.", ["paris"], 100.0),
        ("exact", "It is Paris.", ["paris"], 0.0),
        ("contains", "It is Paris.", ["paris"], 100.0),
        ("contains", "It is New York City", ["york city", "boston"], 100.0),
        ("contains", "It is York, a city", ["york city"], 0.0),
        ("contains", "Parisian", ["paris"], 0.0),
        ("contains", "", ["paris"], 0.0),
        ("contains", "anything", ["..."], 0.0),
        ("wer", "one two three", ["one two three four"], 75.0),
        ("wer", "one", ["one two three four"], 0.0),
        ("graded", "x", ["x"], None),
        ("open", "x", [], None),
        ("contains", "x", [], None),
    ],
)
def test_rules(rule: Rule, answer: str, references: list[str], expected: float | None) -> None:
    assert by_rule(rule, answer, references) == expected


class Marker(ThreadingHTTPServer):
    """A chat endpoint that gives the marks it was told to, one after the other."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.marks: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        self.headers: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Marker

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(json.loads(body))
        self.server.headers.append(self.headers.get("Authorization"))
        mark = self.server.marks.pop(0)
        code = mark if isinstance(mark, int) else 200
        reply = json.dumps({"choices": [{"message": {"content": mark}}]}).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: object) -> None:
        """Keeps quiet."""


@pytest.fixture
def marker() -> Iterator[Marker]:
    with Marker() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_judge_marks(marker: Marker) -> None:
    judge = Judge(marker.url, "m", api_key="k")
    marker.marks = ["4", "Yes.", "no", "Mark: 5"]
    assert judge.score("graded", "Which one?", "The first.", ["the first", "one"]) == 80.0
    assert judge.score("contains", "How many?", "Two {x}.", ["2"]) == 100.0
    assert judge.score("exact", "How many?", "Three.", ["2"]) == 0.0
    assert judge.score("open", "How are you?", "Well.", []) == 100.0
    prompts = [asked["messages"][0]["content"] for asked in marker.asked]
    assert "A good reply: the first / one" in prompts[0]
    assert "Two {x}." in prompts[1]
    assert "good" not in prompts[3]
    assert marker.headers == ["Bearer k"] * 4
    assert judge.score("open", "How are you?", " ... ", []) == 0.0  # nobody is asked
    assert len(marker.asked) == 4


def test_a_judge_that_gives_no_mark_is_asked_again(marker: Marker) -> None:
    judge = Judge(marker.url, "m")
    marker.marks = ["well", "10 of 10", "3"]
    assert judge.score("open", "q", "a", []) == 60.0
    assert [asked["seed"] for asked in marker.asked] == [0, 1, 2]
    marker.marks = ["well"] * 3
    with pytest.raises(NoScore, match="no mark but 'well'"):
        judge.score("open", "q", "a", [])


def test_a_judge_that_cannot_be_asked_is_an_error(marker: Marker) -> None:
    marker.marks = [401]
    with pytest.raises(ChromaError, match=r"refuses \(401"):
        Judge(marker.url, "m").score("open", "q", "a", [])
    with pytest.raises(ChromaError, match="cannot be reached"):
        Judge("http://127.0.0.1:9", "m").score("open", "q", "a", [])
    with pytest.raises(ConfigError, match="begins with http"):
        Judge("localhost:8000", "m")
