"""Events that no client should send: valid ones, and what chance makes of them. Seeded."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]

SOUND = base64.b64encode(bytes(2400)).decode()
KNOWN_IDS = ["item_of_mine", "item_other", "root", "", "item_" + "x" * 200]
REQUIRED = {
    "session.update": "session",
    "input_audio_buffer.append": "audio",
    "conversation.item.create": "item",
    "conversation.item.retrieve": "item_id",
    "conversation.item.delete": "item_id",
    "conversation.item.truncate": "audio_end_ms",
}


@dataclass(frozen=True, slots=True)
class Input:
    """One message to a server.

    Attributes:
        data: as it is sent; bytes go as a binary frame.
        event_id: by which the server can refuse it; None if it cannot read one.
        wrong: it must be refused; otherwise it may be.
    """

    data: str | bytes
    event_id: str | None
    wrong: bool


def valid(dice: random.Random) -> Event:
    """An event as a client may send it, whatever the conversation makes of it."""
    text = dice.choice(["Hello", "", "ünï¢ode \U0001f600", "a" * 2000, "\x00\x1f"])
    item_id = dice.choice(KNOWN_IDS)
    kinds: list[Callable[[], Event]] = [
        lambda: {"type": "session.update", "session": session(dice, text)},
        lambda: {"type": "input_audio_buffer.append", "audio": SOUND},
        lambda: {"type": "input_audio_buffer.commit"},
        lambda: {"type": "input_audio_buffer.clear"},
        lambda: {"type": "conversation.item.create", "item": item(dice, text),
                 "previous_item_id": dice.choice([None, *KNOWN_IDS])},
        lambda: {"type": "conversation.item.retrieve", "item_id": item_id},
        lambda: {"type": "conversation.item.delete", "item_id": item_id},
        lambda: {"type": "conversation.item.truncate", "item_id": item_id, "content_index": 0,
                 "audio_end_ms": dice.choice([0, 1, 80, 10**9])},
        lambda: {"type": "response.create", "response": response(dice, text)},
        lambda: {"type": "response.cancel"},
    ]  # fmt: skip
    return dice.choice(kinds)()


def session(dice: random.Random, text: str) -> Event:
    turns = [None, {"type": "server_vad"}, {"type": "semantic_vad", "eagerness": "high"}]
    formats = [{"type": "audio/pcm", "rate": 24000}, {"type": "audio/pcmu"}, {"type": "audio/pcma"}]
    return {
        "type": "realtime",
        "instructions": text,
        "audio": {
            "input": {"turn_detection": dice.choice(turns), "format": dice.choice(formats)},
            "output": {"format": dice.choice(formats), "voice": dice.choice(["alloy", "default"])},
        },
        "chroma": {"sampling": {"temperature": dice.choice([0.0, 0.7, 1.0])}},
    }


def item(dice: random.Random, text: str) -> Event:
    role = dice.choice(["user", "assistant", "system"])
    part: Event = {"type": "output_text" if role == "assistant" else "input_text", "text": text}
    if role == "user" and dice.random() < 0.3:
        part = {"type": "input_audio", "audio": base64.b64encode(bytes(9600)).decode()}
    made: Event = {"type": "message", "role": role, "content": [part]}
    if dice.random() < 0.5:
        made["id"] = dice.choice(KNOWN_IDS)
    return made


def response(dice: random.Random, text: str) -> Event | None:
    made: list[Event | None] = [
        None,
        {"instructions": text, "metadata": {"key": "value"}},
        {"conversation": "none", "input": [item(dice, text)]},
        {"output_modalities": ["text"], "max_output_tokens": 3},
        {"chroma": {"turn": dice.randint(0, 3), "say": "so", "sampling": {"seed": 1}}},
    ]
    return dice.choice(made)


# -- what chance makes of it -----------------------------------------------------------------

STRANGE: list[Any] = [
    None, True, False, 0, -1, 1 << 70, 1e308, float("nan"), float("inf"), "", "x", "\ud800",
    "../../etc/passwd", [], {}, [[[[]]]], {"": {"": {}}}, "a" * 100_000, ["x"] * 1000,
    {"type": "message"}, {str(i): i for i in range(200)},
]  # fmt: skip


def places(event: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of an event."""
    pairs = event.items() if isinstance(event, dict) else enumerate(event)
    for key, value in pairs:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def change(dice: random.Random, event: Event) -> bool:
    """Puts something strange anywhere; True if the event cannot be right any more."""
    *way, last = dice.choice(list(places(event)))
    where: Any = event
    for key in way:
        where = where[key]
    where[last] = deepcopy(dice.choice(STRANGE))
    required = REQUIRED.get(str(event.get("type")))
    if way or last != required:
        return False
    if required == "audio_end_ms":  # a number of any kind may pass
        return not isinstance(where[last], int | float)
    return not isinstance(where[last], str if required in ("audio", "item_id") else dict)


def broken(dice: random.Random, event: Event) -> tuple[str, str | None]:
    """A text that is wrong for certain, and the id by which it can be refused."""
    event_id = str(event["event_id"])
    required = REQUIRED.get(event["type"])
    way = dice.randrange(8)
    if way == 0 and required:
        del event[required]
    elif way == 1:
        event["type"] = dice.choice(["response.audio.delta", "", "x" * 5000, "session.updated"])
    elif way == 2:
        event = {"type": "input_audio_buffer.append", "event_id": event_id}
        event["audio"] = dice.choice(["!", "AAA", "ÄÖÜ=", "AAAA=AAAA", "A" * 4001])
    elif way == 3:
        return json.dumps(event)[: -dice.randint(1, 10)], None
    elif way == 4:
        depth = dice.choice([2_000, 100_000])
        return f'{{"event_id": "{event_id}", "type": {"[" * depth}{"]" * depth}}}', None
    elif way == 5:
        return dice.choice(["", "null", "[]", "7", '"text"', "\ufeff{}", "9" * 5000]), None
    else:
        event["type"] = dice.choice([None, 7, [], {}, ["session.update"]])
    return json.dumps(event), event_id


def inputs(count: int, seed: int) -> Iterator[Input]:
    """So many inputs; half of them wrong for certain or changed by chance."""
    dice = random.Random(seed)
    for number in range(count):
        event_id = f"fuzz-{number}"
        event = valid(dice) | {"event_id": event_id}
        kind = dice.random()
        if kind < 0.25:
            text, told = broken(dice, event)
            wrong = told is None or event_id in text
            yield Input(text, told, wrong)
        elif kind < 0.3:
            noise = dice.randbytes(dice.randint(0, 300))
            yield Input(noise, None, not noise.lstrip().startswith(b"{"))
        elif kind < 0.65:
            wrong = False
            for _ in range(dice.randint(1, 3)):
                wrong = change(dice, event)
            kept = isinstance(event.get("event_id"), str) and event["event_id"] == event_id
            yield Input(json.dumps(event), event_id if kept else None, wrong and kept)
        else:
            text = json.dumps(event)
            yield Input(text.encode() if dice.random() < 0.1 else text, event_id, False)
