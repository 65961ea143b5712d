"""Where dialogues come from: the domain, files of pairs, and a chat endpoint on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chroma_plugin.errors import ChromaError
from chroma_plugin.training import domain
from chroma_plugin.training.answers import BrokenAnswer, ChatEndpoint, Domain, PairsFile
from chroma_plugin.training.domain import Exchange


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# -- the built-in domain -------------------------------------------------------------------------


def test_the_domain_splits_by_phrasing() -> None:
    source = Domain()
    assert source.dialogue(rng(), False, 3) == domain.dialogue(rng(), "train", 3)
    assert source.dialogue(rng(), True, 3) == domain.dialogue(rng(), "heldout", 3)
    assert source.reference(rng()) not in domain.answers()


def test_a_domain_of_other_words_has_another_source(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Domain().source
    assert before == Domain().source and before.startswith("domain ")
    for name, value in (("AGAIN", ("What?",)), ("PLACES", ("house",)), ("SUM", ("{}?",))):
        with monkeypatch.context() as patch:
            patch.setattr(domain.say, name, value)
            domain.fingerprint.cache_clear()
            assert Domain().source != before, name
    domain.fingerprint.cache_clear()
    assert Domain().source == before


# -- files ---------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows: list[Any] = [
        {"question": f"Question {n}?", "answer": f"The  answer\nis {n}."} for n in range(60)
    ]
    rows += [{"dialogue": [rows[n], rows[n + 1]]} for n in range(40)]
    path.write_text("\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_a_files_source_is_what_it_holds(pairs: Path, tmp_path: Path) -> None:
    before = PairsFile(pairs).source
    copy = tmp_path / "elsewhere.jsonl"
    copy.write_bytes(pairs.read_bytes())
    assert PairsFile(copy).source == before
    assert PairsFile(pairs, held_out_share=0.5).source != before
    copy.write_bytes(pairs.read_bytes().replace(b"Question 7?", b"Question 8?"))
    assert PairsFile(copy).source != before
    with pytest.raises(ChromaError, match="cannot be read"):
        _ = PairsFile(tmp_path / "none.jsonl").source


def test_an_endpoints_source_is_address_model_and_questions(pairs: Path) -> None:
    plain = ChatEndpoint("http://x/v1", "m", Domain(), api_key="secret")
    others = [
        replace(plain, url="http://y/v1"),
        replace(plain, model="n"),
        replace(plain, questions=PairsFile(pairs)),
        replace(plain, system="Be brief."),
    ]
    assert len({one.source for one in (plain, *others)}) == 5
    assert replace(plain, api_key="other").source == plain.source
    assert "secret" not in plain.source


def test_pairs_are_split_by_what_they_say(pairs: Path) -> None:
    source = PairsFile(pairs)
    train = {source.dialogue(rng(n), False, 2) for n in range(2000)}
    held_out = {source.dialogue(rng(n), True, 2) for n in range(2000)}
    assert not train & held_out
    assert 80 <= len(train) <= 97 and len(train | held_out) == 100
    assert {len(dialogue) for dialogue in train} == {1, 2}
    assert all(len(source.dialogue(rng(n), False, 1)) == 1 for n in range(50))
    assert next(iter(train))[0].answer.startswith("The answer is ")  # blanks put in order


def test_references_of_a_file_are_answers_that_are_not_held_out(pairs: Path) -> None:
    source = PairsFile(pairs)
    text = source.reference(rng())
    assert len(text) >= 60 and text.startswith("The answer is")
    assert source.reference(rng()) == text


@pytest.mark.parametrize(
    "line",
    ["no json", "[]", "3", '{"question": "a"}', '{"question": "", "answer": "b"}',
     '{"question": 3, "answer": "b"}', '{"dialogue": []}', '{"dialogue": 3}'],
)  # fmt: skip
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n' + line)
    with pytest.raises(ChromaError, match="line 2"):
        PairsFile(path).dialogue(rng(), False, 1)


def test_a_file_too_small_to_be_split_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(ChromaError, match="of 1 lines none is held out"):
        PairsFile(path, 1e-9).dialogue(rng(), True, 1)
    assert PairsFile(path, 0).dialogue(rng(), False, 1) == (Exchange("a", "b"),)
    with pytest.raises(ChromaError, match="cannot be read"):
        PairsFile(tmp_path / "missing.jsonl").dialogue(rng(), False, 1)


# -- a chat endpoint -----------------------------------------------------------------------------


class Chat(ThreadingHTTPServer):
    """Repeats the last question; gives `statuses` first, one a request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ChatHandler)
        self.requests: list[tuple[str, str | None, dict[str, Any]]] = []
        self.statuses: list[int] = []
        self.content: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class ChatHandler(BaseHTTPRequestHandler):
    server: Chat

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers["Authorization"], body))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        said = f"You said\n{body['messages'][-1]['content']}"
        content = said if self.server.content is None else self.server.content
        reply = {"choices": [{"message": {"role": "assistant", "content": content}}]}
        data = b"<html>" if status == 299 else json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def chat() -> Iterator[Chat]:
    server = Chat()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def endpoint(chat: Chat, **settings: Any) -> ChatEndpoint:
    return ChatEndpoint(chat.url, "small", Domain(), pause_s=0.0, **settings)


def test_the_endpoint_answers_with_the_dialogue_so_far(chat: Chat) -> None:
    done = endpoint(chat, api_key="secret").dialogue(rng(), False, 2)
    assert [e.question for e in done] == [e.question for e in domain.dialogue(rng(), "train", 2)]
    assert [e.answer for e in done] == [f"You said {e.question}" for e in done]
    path, key, body = chat.requests[1]
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "small")
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["messages"][2]["content"] == done[0].answer
    assert endpoint(chat).reference(rng()) == Domain().reference(rng())


def test_requests_are_the_same_for_the_same_seed(chat: Chat) -> None:
    for _ in range(2):
        endpoint(chat).dialogue(rng(5), True, 1)
    assert chat.requests[0] == chat.requests[1]
    assert chat.requests[0][1] is None


def test_a_busy_endpoint_is_asked_again(chat: Chat) -> None:
    chat.statuses = [429, 500, 503]
    assert endpoint(chat).dialogue(rng(), False, 1)[0].answer.startswith("You said")
    assert len(chat.requests) == 4


@pytest.mark.parametrize("status", [400, 500])
def test_one_question_that_fails_is_set_aside(chat: Chat, status: int) -> None:
    chat.statuses = [status] * 4
    with pytest.raises(BrokenAnswer, match=str(status)):
        endpoint(chat).dialogue(rng(), False, 1)
    assert len(chat.requests) == (1 if status == 400 else 4)


@pytest.mark.parametrize("content", ["", "  \n", [], {}])
def test_an_empty_answer_is_set_aside(chat: Chat, content: Any) -> None:
    chat.content = content
    with pytest.raises(BrokenAnswer, match="empty answer"):
        endpoint(chat).dialogue(rng(), False, 1)


def test_what_is_no_json_is_set_aside(chat: Chat) -> None:
    chat.statuses = [299]
    with pytest.raises(BrokenAnswer, match="no JSON"):
        endpoint(chat).dialogue(rng(), False, 1)


def test_a_refusing_or_missing_endpoint_ends_it(chat: Chat) -> None:
    chat.statuses = [401]
    with pytest.raises(ChromaError, match="check address, model and key"):
        endpoint(chat).dialogue(rng(), False, 1)
    with pytest.raises(ChromaError, match="is no address"):
        replace(endpoint(chat), url="file:///etc").dialogue(rng(), False, 1)
    with pytest.raises(ChromaError, match="cannot be reached"):
        replace(endpoint(chat), url="http://127.0.0.1:1/v1").dialogue(rng(), False, 1)
