"""`chroma-plugin loadtest`: callers in real time, from this process, of a server in another one."""

from __future__ import annotations

import os
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Literal

import typer

from chroma_plugin.audio import OUTPUT_RATE_HZ, Samples, read_audio
from chroma_plugin.errors import ChromaError, ConfigError
from chroma_plugin.results import tell

app = typer.Typer(name="loadtest", add_completion=False, pretty_exceptions_enable=False)

LONGEST_QUESTION_S = 30.0


@app.command()
def loadtest(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Of the server: ws://HOST:PORT.")
    ] = "ws://127.0.0.1:8000",
    questions: Annotated[
        list[Path] | None, typer.Option("--question", help="A recording; may be repeated.")
    ] = None,
    users: Annotated[int, typer.Option("--users", "-n", min=1, max=4096, help="At once.")] = 4,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long turns are begun.")] = 60.0,
    turns: Annotated[
        Literal["server", "client"], typer.Option(help="Who finds the users' turns.")
    ] = "server",
    turns_per_call: Annotated[str, typer.Option(help="Questions of a call, as in 2-4.")] = "2-4",
    pause: Annotated[str, typer.Option(help="Seconds before a question, as in 0.5-3.")] = "0.5-3",
    away: Annotated[str, typer.Option(help="Seconds between calls, as in 0.5-3.")] = "0.5-3",
    interrupted: Annotated[
        float, typer.Option(min=0, max=1, help="Share of replies that are broken into.")
    ] = 0.2,
    patience: Annotated[
        float, typer.Option(min=0.1, help="Seconds without a reply until it is lost.")
    ] = 30.0,
    markers: Annotated[
        bool, typer.Option(help="Greet every user by a name, to find mixed-up calls.")
    ] = True,
    max_first_ms: Annotated[
        float | None, typer.Option(min=0, help="Bar: time to first audio, p95.")
    ] = None,
    max_underruns: Annotated[
        float | None, typer.Option(min=0, max=1, help="Bar: share of replies that run dry.")
    ] = None,
    max_growth_mb: Annotated[
        float | None, typer.Option(min=0, help="Bar: growth of the server's memory; with --pid.")
    ] = None,
    pid: Annotated[
        int | None, typer.Option(min=1, help="The server's process here: watch its memory.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of users and pauses.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="A picture of the run, as PNG.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the JSON alone on stdout, all else on stderr.")
    ] = False,
) -> None:
    """Call a server as many users at once: real time, real speech, pauses and interruptions.

    Exit code 1 if a turn or a call is lost, conversations are mixed up, or a bar is missed. A key,
    where the server needs one, is taken from $CHROMA_API_KEY.
    """
    try:
        from chroma_plugin.bench.remote_load import RemotePlan, measure_remote_load
        from chroma_plugin.client.engine import realtime_url
    except ImportError as error:
        raise ChromaError(
            f"Something that a client needs is missing ({error}). "
            "Install it: pip install 'chroma-plugin[server]'"
        ) from error
    least, most = between(turns_per_call, "--turns-per-call")
    plan = RemotePlan(
        users=users,
        seconds=seconds,
        turns=turns,
        turns_per_call=(max(round(least), 1), max(round(most), 1)),
        pause_s=between(pause, "--pause"),
        away_s=between(away, "--away"),
        interrupted=interrupted,
        patience_s=patience,
        markers=markers,
        seed=seed,
        max_first_ms=max_first_ms,
        max_underruns=max_underruns,
        max_growth_mb=max_growth_mb,
    )
    speech = [read_question(path) for path in questions or []] or [packaged_question()]
    key = os.environ.get("CHROMA_API_KEY", "").split(",")[0].partition(":")[0] or None
    address = realtime_url(url)
    report = tell(
        lambda: measure_remote_load(address, plan, speech, key=key, pid=pid), plot, as_json
    )
    if report.violations:
        raise typer.Exit(1)


def between(text: str, option: str) -> tuple[float, float]:
    """Two numbers as in `0.5-3`, or one for both.

    Raises:
        ConfigError: they are none, or in the wrong order.
    """
    low, _, high = text.partition("-")
    try:
        pair = float(low), float(high or low)
    except ValueError:
        pair = -1.0, -1.0
    if not 0 <= pair[0] <= pair[1] < float("inf"):
        raise ConfigError(f"{option} {text!r}: give two numbers, the smaller first, as in 0.5-3.")
    return pair


def read_question(path: Path) -> Samples:
    """What a user says, float32 at 24 kHz.

    Raises:
        AudioError: it cannot be read, or is too long for a question.
    """
    return read_audio(path, OUTPUT_RATE_HZ, max_seconds=LONGEST_QUESTION_S)


def packaged_question() -> Samples:
    """The question inside this package."""
    with as_file(files("chroma_plugin") / "assets" / "questions" / "capital.flac") as path:
        return read_question(path)
