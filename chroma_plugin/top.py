"""`chroma-plugin top`: the calls, rows, step time and memory of a server, in the terminal.

It reads `/v1/pool` and `/metrics` of a running server and knows nothing else of it.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chroma_plugin.addresses import http_url, is_loopback
from chroma_plugin.errors import ChromaError

app = typer.Typer(name="top", add_completion=False, pretty_exceptions_enable=False)

TIMEOUT_S = 5.0
WINDOW_S = 60.0
"""What times are told of, so that the picture follows what happens now."""
MAX_CALLS = 40
"""Calls in the table, the oldest first."""
MAX_ANSWER_BYTES = 8 << 20
FRAME_MS = 80
STATES = {"speaking": "green", "hearing": "cyan", "opening": "yellow"}


@app.command()
def top(
    url: Annotated[
        str, typer.Argument(help="Of the server; ws:// and /v1/realtime do as well.")
    ] = "http://127.0.0.1:8000",
    key: Annotated[
        str, typer.Option(envvar="CHROMA_API_KEY", help="An API key, if it wants one.")
    ] = "",
    every: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds between looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one picture and end.")] = False,
) -> None:
    """Look at a server while it works: calls, rows, step time, time to first audio, memory."""
    server, console = Server(url, key), Console()
    if once:
        console.print(picture(server.url, [server.look()]))
        return
    follow(server, console, every)


def follow(
    server: Server,
    console: Console,
    every_s: float,
    *,
    looks: float = math.inf,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Shows a server until Ctrl+C; one that goes away is waited for.

    Args:
        server: which.
        console: where.
        every_s: seconds between looks.
        looks: how many there are.
        sleep: waits.

    Raises:
        ChromaError: the first look failed.
    """
    seen, trouble = deque([server.look()]), Text()
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            live.update(Group(picture(server.url, seen), trouble), refresh=True)
            looks -= 1
            if looks <= 0:
                return
            sleep(every_s)
            try:
                seen.append(server.look())
                trouble = Text()
            except ChromaError as error:
                trouble = Text(f"\n{error}\nTrying again.", style="red")
            while seen[-1].at_s - seen[0].at_s > WINDOW_S:
                seen.popleft()


# -- asking ----------------------------------------------------------------------------------


class Server:
    """A server that is looked at.

    Args:
        url: http(s) or ws(s), with or without the path of the WebSocket.
        key: an API key; of several, as `serve` takes them, the first.

    Raises:
        ConfigError: that is no address.
    """

    def __init__(self, url: str, key: str = "") -> None:
        self.url = http_url(url)
        self._key = key.split(",")[0].partition(":")[0].strip()
        here = is_loopback(urlsplit(self.url).hostname or "")
        self._open: OpenerDirector = build_opener(*([ProxyHandler({})] if here else []))

    def look(self) -> Look:
        """How it is now.

        Raises:
            ChromaError: it does not answer, wants another key, or is something else.
        """
        try:
            from prometheus_client.parser import text_string_to_metric_families as families
        except ImportError as error:
            raise ChromaError(
                f"What reads a server's figures is missing ({error}). "
                "Install it: pip install 'chroma-plugin[server]'"
            ) from error
        pool, page = self._get("/v1/pool"), self._get("/metrics")
        try:
            about = json.loads(pool)
            samples = [s for family in families(page.decode()) for s in family.samples]
        except ValueError as error:
            raise self._stranger() from error
        if not isinstance(about, dict) or "slots" not in about:
            raise self._stranger()
        figures = [Figure(s.name, dict(s.labels), float(s.value)) for s in samples]
        return Look(time.monotonic(), about, tuple(figures))

    def _get(self, path: str) -> bytes:
        request = Request(self.url + path)
        if self._key:  # not for wherever it may send us on to
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            with self._open.open(request, timeout=TIMEOUT_S) as answer:
                found: bytes = answer.read(MAX_ANSWER_BYTES)
                return found
        except HTTPError as error:
            with error:
                if error.code in (401, 403):
                    raise ChromaError(
                        f"{self.url} does not let this key in ({error.code}). "
                        "Give one that may talk: --key, or $CHROMA_API_KEY."
                    ) from error
                raise self._stranger() from error
        except (URLError, OSError) as error:
            why = getattr(error, "reason", None) or error
            raise ChromaError(
                f"Nobody answers at {self.url} ({why}). `chroma-plugin serve` starts a server; "
                "another one is named as in: chroma-plugin top http://HOST:PORT"
            ) from error

    def _stranger(self) -> ChromaError:
        return ChromaError(f"What answers at {self.url} is no chroma-plugin server, or an old one.")


# -- figures ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of `/metrics`."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one time.

    Attributes:
        at_s: when, by a clock that only goes forward.
        pool: the answer of `/v1/pool`.
        figures: those of `/metrics`.
    """

    at_s: float
    pool: Mapping[str, Any]
    figures: tuple[Figure, ...]

    def total(self, name: str, **labels: str) -> float | None:
        """The sum of all lines of that name with these labels; None if there is none."""
        found = [
            figure.value
            for figure in self.figures
            if figure.name == name and labels.items() <= figure.labels.items()
        ]
        return sum(found) if found else None

    def buckets(self, name: str) -> dict[float, float]:
        """A histogram: how many values were at most so large."""
        found = dict[float, float]()
        for figure in self.figures:
            if figure.name == f"{name}_bucket":
                bound = float(figure.labels["le"])
                found[bound] = found.get(bound, 0.0) + figure.value
        return dict(sorted(found.items()))


def quantile(now: Look, before: Look | None, name: str, share: float) -> float | None:
    """Below which value a share of a histogram lies, of what came between two looks.

    Within a bucket values are taken to lie evenly, as Prometheus does; what is beyond the last
    bound is told as that bound.

    Args:
        now: the later look.
        before: the earlier one; None: since the server's start.
        name: of the histogram.
        share: 0 to 1.

    Returns:
        None if nothing came.
    """
    after, earlier = now.buckets(name), {} if before is None else before.buckets(name)
    counts = {bound: seen - earlier.get(bound, 0.0) for bound, seen in after.items()}
    total = counts.get(math.inf, 0.0)
    if total <= 0:
        return None
    low = below = 0.0
    for bound, count in counts.items():
        if count >= share * total:
            if math.isinf(bound):
                return low
            inside = count - below
            return bound if not inside else low + (bound - low) * (share * total - below) / inside
        low, below = bound, count
    return low


# -- the picture -----------------------------------------------------------------------------


def picture(url: str, looks: Iterable[Look]) -> RenderableType:
    """What is shown of a server.

    Args:
        url: its address.
        looks: those of the last while, the newest last; with one alone times are since its start.
    """
    seen = list(looks)
    now, before = seen[-1], seen[0] if len(seen) > 1 else None
    if before is not None and _restarted(now, before):
        before = None
    status = str(now.pool["status"])
    head = Text.assemble(
        (f"{url}  ", "bold"),
        (status, "green" if status == "ready" else "yellow"),
        f"  up {_clock(_uptime_s(now))}",
        f"  times of the last {now.at_s - before.at_s:.0f} s" if before else "  times since then",
    )
    table = Table.grid(padding=(0, 2))
    for name, *cells in _lines(now, before):
        table.add_row(Text(name, style="bold"), *cells)
    return Group(head, "", table, "", _calls(now))


def _lines(now: Look, before: Look | None) -> Iterable[tuple[str, ...]]:
    def count(name: str, **labels: str) -> str:
        value = now.total(name, **labels)
        return "-" if value is None else f"{value:,.0f}"

    def times(name: str) -> tuple[str, str]:
        middle, high = (quantile(now, before, name, share) for share in (0.5, 0.95))
        return f"p50 {_ms(middle)}", f"p95 {_ms(high)}"

    rows = f"{count('chroma_rows_taken')} taken, {count('chroma_rows_free')} free"
    waiting = f"{count('chroma_replies_waiting')} waiting"
    expired = f"{count('chroma_replies_expired_total')} given up"
    underruns = f"{count('chroma_underruns_total')} underruns"
    yield "calls", f"{now.pool['used']} of {now.pool['slots']}", _refused(now)
    yield "rows", rows, waiting, expired
    yield "step", *times("chroma_frame_step_seconds"), f"of {FRAME_MS} ms; {underruns}"
    yield "first audio", *times("chroma_time_to_first_audio_seconds"), "after the request"
    gap = "chroma_speech_end_to_first_audio_seconds"
    yield "", *times(gap), "after the user's voice"
    stopped = f"{count('chroma_interruptions_total')} stopped"
    failed = f"{_or_0(now.total('chroma_responses_total', status='failed')):,.0f} failed"
    yield "replies", count("chroma_responses_total"), stopped, failed
    caches = f"caches {_bytes(now.total('chroma_engine_bytes'))}"
    process = f"process {_bytes(now.total('process_resident_memory_bytes'))}"
    yield "memory", f"GPU {_bytes(now.total('chroma_gpu_memory_bytes'))}", caches, process
    yield "voices", f"{count('chroma_voices_ready')} ready"


def _calls(now: Look) -> RenderableType:
    calls = now.pool.get("sessions", [])
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("call", "lasts", "is", "replies", "stopped", "first audio"):
        table.add_column(name, justify="left" if name in ("call", "is") else "right")
    for call in calls[:MAX_CALLS]:
        first_ms = call["first_audio_ms"]
        table.add_row(
            call["id"],
            _clock(call["seconds"]),
            Text(call["state"], style=STATES.get(call["state"], "dim")),
            str(call["replies"]),
            str(call["interruptions"]),
            _ms(None if first_ms is None else first_ms / 1000),
        )
    if not calls:
        return Text("Nobody talks.", style="dim")
    if len(calls) > MAX_CALLS:
        return Group(table, Text(f"and {len(calls) - MAX_CALLS} more", style="dim"))
    return table


def _refused(now: Look) -> str:
    refused = [f for f in now.figures if f.name == "chroma_session_rejected_total" and f.value]
    whys = ", ".join(f"{f.labels['reason']} {f.value:,.0f}" for f in refused)
    return f"refused: {whys}" if whys else "none refused"


def _restarted(now: Look, before: Look) -> bool:
    """A counter that went back is another process's."""
    name = "process_start_time_seconds"
    if now.total(name) != before.total(name):
        return True
    steps = "chroma_frame_step_seconds_count"
    return _or_0(now.total(steps)) < _or_0(before.total(steps))


def _uptime_s(now: Look) -> float | None:
    started_s = now.total("process_start_time_seconds")
    return None if started_s is None else max(time.time() - started_s, 0.0)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.0f} ms"


def _bytes(value: float | None) -> str:
    if not value:
        return "-"
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def _or_0(value: float | None) -> float:
    return value or 0.0
