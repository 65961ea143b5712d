"""The command line: parse, then import what the verb needs.

Results go to stdout, progress and complaints to stderr. Exit codes: 0 done, 1 it could not be
done, 2 it was asked for wrongly, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import chroma_plugin
from chroma_plugin.config import DEFAULT_MODEL, RELEASED_MODEL, EngineConfig, SamplingParams
from chroma_plugin.errors import ChromaError, ConfigError

app = typer.Typer(
    name="chroma-plugin",
    help="FlashLabs Chroma: speech in, speech out in a cloned voice.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str,
    typer.Option(help=f"{DEFAULT_MODEL}, a checkpoint folder, or a hub id ({RELEASED_MODEL})."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Where the reply goes, as WAV.")]
Host = Annotated[str, typer.Option(help="With --web: where to listen; 0.0.0.0 is everywhere.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="With --web: the port.")]
Plot = Annotated[
    Path | None, typer.Option(help="A picture of voice, questions and replies, as PNG.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one line of JSON on stdout, all else on stderr.")
]
MaxSeconds = Annotated[float, typer.Option(min=0.08, max=3600, help="A cap on each reply.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show Pipecat's own log.")]


def main() -> None:
    """The entry point of the ``chroma-plugin`` command."""
    app()


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(chroma_plugin.__version__)
        raise typer.Exit


@app.command()
def talk(
    questions: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="QUESTION.wav", help="Recordings: WAV, FLAC, MP3 or OGG; one conversation."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where the reply goes, as WAV.")
    ] = None,
    voice: Annotated[
        Path | None, typer.Option(help="A clip of 3 to 30 s whose voice replies. Ask its owner.")
    ] = None,
    transcript: Annotated[
        str | None, typer.Option(help="What is said in the clip, word for word.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    instructions: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    temperature: Annotated[
        float, typer.Option(min=0, max=5, help="0 takes the likeliest code.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw among so many codes; 0: all.")] = 50,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw among so likely codes.")] = 1.0,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed, the same speech.")] = None,
    repetition_penalty: Annotated[
        float, typer.Option(min=1, max=5, help="Above 1: against loops; 1.1 is a good start.")
    ] = 1.0,
    max_seconds: MaxSeconds = 60.0,
    plot: Plot = None,
    transcribe: Annotated[
        bool,
        typer.Option(
            "--transcribe", help="Show what was understood of each question (--web always does)."
        ),
    ] = False,
    fast: Annotated[bool, typer.Option("--fast", help="Do not wait at the pace of sound.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    web: Annotated[
        bool, typer.Option("--web", help="Talk in a browser instead: serve a page, say where.")
    ] = False,
    host: Host = "localhost",
    port: Port = 7860,
) -> None:
    """Ask questions from recordings and write down what Chroma replies; or talk in a browser."""
    from chroma_plugin import talk_cli

    with _told():
        sampling = SamplingParams(temperature, top_k, top_p, seed, repetition_penalty)
        if web:
            talk_cli.only_for_recordings(
                {
                    "QUESTION.wav": questions,
                    "--output": output,
                    "--plot": plot,
                    "--fast": fast,
                    "--json": as_json,
                }
            )
            served = EngineConfig(model, device, max_reply_s=max_seconds)
            talk_cli.serve(
                served,
                verbose,
                voice=talk_cli.speaker(voice, transcript),
                instructions=instructions,
                sampling=sampling,
                host=host,
                port=port,
            )
            return
        if not questions:
            raise ConfigError("Nothing to ask: name a QUESTION.wav, or talk in a browser: --web")
        if output is None:
            raise ConfigError("Say where the reply goes: --output reply.wav")
        job = talk_cli.Job(
            talk_cli.one_conversation(model, device, max_seconds, fast=fast),
            tuple(questions),
            talk_cli.speaker(voice, transcript),
            output,
            instructions=instructions,
            sampling=sampling,
            transcribe=transcribe,
            fast=fast,
            plot=plot,
        )
        talk_cli.converse(job, as_json, verbose)


@app.command()
def demo(
    output: Output = Path("demo-reply.wav"),
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    plot: Plot = None,
    max_seconds: MaxSeconds = 10.0,
    fast: Annotated[bool, typer.Option("--fast/--real-time", help="The pace.")] = True,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Ask the packaged question, and the recordings in $CHROMA_TEST_AUDIO if there are any."""
    from chroma_plugin import talk_cli

    with _told():
        config = talk_cli.one_conversation(model, device, max_seconds, fast=fast)
        asked, voice = tuple(talk_cli.demo_questions()), talk_cli.speaker(None, None)
        talk_cli.converse(
            talk_cli.Job(config, asked, voice, output, fast=fast, plot=plot), as_json, verbose
        )


@app.command()
def doctor(model: Model = DEFAULT_MODEL, as_json: AsJson = False) -> None:
    """Look for what is missing, broken or does not fit, and say which command mends it."""
    from chroma_plugin.doctor import as_json as to_json
    from chroma_plugin.doctor import examine

    out = Console(stderr=as_json, markup=False, highlight=False, soft_wrap=True)
    findings = []
    colours = {"ok": "green", "warning": "yellow", "problem": "red"}
    with _told():
        for finding in examine(model):
            findings.append(finding)
            out.print(f"{finding.status:8}", style=colours[finding.status], end="")
            out.print(f"{finding.name:16}{finding.found}")
            if finding.wrong:
                out.print(f"{'':24}{finding.wrong}")
                out.print(f"{'':24}{finding.mend}", style="bold")
        if as_json:
            print(to_json(model, findings))
        if any(finding.status == "problem" for finding in findings):
            raise typer.Exit(1)


@app.command()
def download(
    model: Annotated[str, typer.Argument(help="A hub id.")] = RELEASED_MODEL,
) -> None:
    """Fetch weights from the hub ahead of time, and say where they are."""
    from chroma_plugin.model.weights import check_checkpoint, find_checkpoint

    with _told():
        folder = find_checkpoint(model)
        report = check_checkpoint(folder)
    print(f"{model}: {report.bytes / 1e9:.1f} GB in {folder}")


ELSEWHERE = {
    # verb: the module whose `app` it is, and what it is for
    "serve": (
        "chroma_plugin.serve",
        "Serve Chroma to other processes, in OpenAI's Realtime protocol.",
    ),
    "top": (
        "chroma_plugin.top",
        "Look at a server while it works: calls, rows, step time, memory.",
    ),
    "loadtest": (
        "chroma_plugin.loadtest",
        "Call a server as many users at once: delays, gaps, lost and mixed-up conversations.",
    ),
    "voices": (
        "chroma_plugin.voices_cli",
        "Keep voices, each with the consent of its owner: add, list, check, remove or play.",
    ),
    "bench": (
        "chroma_plugin.bench.cli",
        "Measure latency, load and endurance, the wire, the mark on replies, a fleet.",
    ),
    "eval": (
        "chroma_plugin.evaluation.cli",
        "Judge the speech: sim, cmos, uro, latency or conversation.",
    ),
    "train": (
        "chroma_plugin.training.cli",
        "Train chroma-tiny, or the speech of another checkpoint.",
    ),
}
"""Verbs with options, or verbs, of their own."""


def _add(verb: str, module: str, about: str) -> None:
    @app.command(
        name=verb,
        help=about,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        add_help_option=False,
    )
    def run(ctx: typer.Context) -> None:
        theirs = import_module(module).app
        with _told():
            code = theirs(ctx.args, prog_name=f"chroma-plugin {verb}", standalone_mode=False)
        raise typer.Exit(code or 0)


for _verb, (_module, _about) in ELSEWHERE.items():
    _add(_verb, _module, _about)


@contextmanager
def _told() -> Iterator[None]:
    """Tells a mistake in one line on stderr, and ends with its exit code."""
    try:
        yield
    except ChromaError as error:
        print(f"chroma-plugin: {error}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error
    except KeyboardInterrupt:
        print("chroma-plugin: interrupted", file=sys.stderr)
        raise typer.Exit(130) from None


if __name__ == "__main__":
    main()
