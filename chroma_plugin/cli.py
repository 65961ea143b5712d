"""The command line: parse, then import what the verb needs.

Results go to stdout, progress and complaints to stderr. Exit codes: 0 done, 1 it could not be
done, 2 it was asked for wrongly, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import chroma_plugin
from chroma_plugin.config import DEFAULT_MODEL, RELEASED_MODEL, EngineConfig, SamplingParams
from chroma_plugin.errors import ChromaError, ConfigError

if TYPE_CHECKING:
    from chroma_plugin.audio import Samples
    from chroma_plugin.talk import TalkReport, TalkTurn
    from chroma_plugin.voice import Voice

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")
BYTES_PER_SECOND = 48_000
"""Of a reply: PCM16 at 24 kHz."""

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
        list[Path],
        typer.Argument(
            metavar="QUESTION.wav", help="Recordings: WAV, FLAC, MP3 or OGG; one conversation."
        ),
    ],
    output: Output,
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
    fast: Annotated[bool, typer.Option("--fast", help="Do not wait at the pace of sound.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Ask questions from recordings and write down what Chroma replies."""
    with _told():
        sampling = SamplingParams(temperature, top_k, top_p, seed, repetition_penalty)
        config = _config(model, device, max_seconds, fast=fast)
        speaker = _voice(voice, transcript)
        job = _Job(config, tuple(questions), speaker, instructions, sampling, fast, output, plot)
        _converse(job, as_json, verbose)


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
    with _told():
        config = _config(model, device, max_seconds, fast=fast)
        asked, voice = tuple(_demo_questions()), _voice(None, None)
        job = _Job(config, asked, voice, None, SamplingParams(), fast, output, plot)
        _converse(job, as_json, verbose)


@app.command()
def doctor(model: Model = DEFAULT_MODEL, as_json: AsJson = False) -> None:
    """Look for what is missing, broken or does not fit, and say which command mends it."""
    from chroma_plugin.doctor import as_json as to_json
    from chroma_plugin.doctor import examine

    out, findings = _console(stderr=as_json), []
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


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    add_help_option=False,
)
def bench(ctx: typer.Context) -> None:
    """Measure latency, load and endurance: latency, load, sweep or soak."""
    from chroma_plugin.bench.cli import app as bench_app

    with _told():
        code = bench_app(ctx.args, prog_name="chroma-plugin bench", standalone_mode=False)
    raise typer.Exit(code or 0)


@app.command(
    name="eval",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    add_help_option=False,
)
def evaluate(ctx: typer.Context) -> None:
    """Judge the speech: sim, cmos, uro or latency."""
    from chroma_plugin.evaluation.cli import app as eval_app

    with _told():
        code = eval_app(ctx.args, prog_name="chroma-plugin eval", standalone_mode=False)
    raise typer.Exit(code or 0)


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    add_help_option=False,
)
def train(ctx: typer.Context) -> None:
    """Train chroma-tiny, or the speech of another checkpoint."""
    from chroma_plugin.training.cli import app as train_app

    with _told():
        code = train_app(ctx.args, prog_name="chroma-plugin train", standalone_mode=False)
    raise typer.Exit(code or 0)


# -- one conversation ------------------------------------------------------------------------


def _config(model: str, device: str, max_seconds: float, *, fast: bool) -> EngineConfig:
    """An engine for one conversation; nobody listens to it live if it is fast."""
    config = EngineConfig(model, device, max_replies=1, max_reply_s=max_seconds)
    return replace(config, run_ahead_s=math.inf) if fast else config


@dataclass(frozen=True, slots=True)
class _Job:
    config: EngineConfig
    questions: tuple[Path, ...]
    voice: Voice
    instructions: str | None
    sampling: SamplingParams
    fast: bool
    output: Path
    plot: Path | None


def _converse(job: _Job, as_json: bool, verbose: bool) -> None:
    """Checks everything that can be checked first, talks, writes and reports."""
    from chroma_plugin.audio import INPUT_RATE_HZ, read_audio, write_wav

    for path in (job.output, job.plot):
        if path is not None:
            _check_output(path, job)
    if job.output.suffix.lower() in AUDIO_SUFFIXES[1:]:
        raise ConfigError(f"-o {job.output}: the reply is written as WAV; name it .wav.")
    if job.plot:
        from chroma_plugin.plot import require_matplotlib

        require_matplotlib()
    longest_s = job.config.max_turn_s
    questions = [read_audio(p, INPUT_RATE_HZ, max_seconds=longest_s) for p in job.questions]
    _load_pipecat(verbose)
    with _Progress(len(questions)) as progress:
        report, weights = asyncio.run(_talk(job, progress))
    write_wav(job.output, report.pcm, report.sample_rate)
    if job.plot:
        _draw(job.plot, job.voice, questions, report)
    _show(_console(stderr=as_json), job, report, weights)
    if as_json:
        print(json.dumps(_summary(job, report, weights)))


async def _talk(job: _Job, progress: _Progress) -> tuple[TalkReport, str]:
    progress.say(f"loading {job.config.model}")
    from chroma_plugin.engine.engine import Engine
    from chroma_plugin.model.weights import find_checkpoint
    from chroma_plugin.talk import talk

    weights = weights_kind(find_checkpoint(job.config.model))
    engine = Engine(job.config)
    try:
        await engine.start()
        report = await talk(
            engine,
            job.questions,
            voice=job.voice,
            instructions=job.instructions,
            sampling=job.sampling,
            max_reply_s=job.config.max_reply_s,
            fast=job.fast,
            on_event=progress.event,
        )
    finally:
        await engine.close()
    return report, weights


def weights_kind(folder: Path) -> str:
    """What a checkpoint says of its weights: ``random``, or ``trained`` if it says nothing."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(config.get("chroma_plugin_weights", "trained"))


def _voice(clip: Path | None, transcript: str | None) -> Voice:
    from chroma_plugin.voice import Voice

    if clip is None and transcript is None:
        return Voice.default()
    if clip is None or transcript is None:
        raise ConfigError(
            "--voice and --transcript belong together: the clip, and what is said in it."
        )
    return Voice.from_file(clip, transcript)


def _demo_questions() -> Iterator[Path]:
    packaged = Path(str(files("chroma_plugin") / "assets" / "questions"))
    given = os.environ.get("CHROMA_TEST_AUDIO")
    folders = [packaged, Path(given) if given else Path("..", "shared", "audio")]
    if given and not folders[1].is_dir():
        raise ConfigError(f"CHROMA_TEST_AUDIO is {given}, which is no folder of recordings.")
    for folder in filter(Path.is_dir, folders):
        yield from sorted(p for p in folder.iterdir() if p.suffix.lower() in AUDIO_SUFFIXES)


def _check_output(path: Path, job: _Job) -> None:
    """Refuses a place that cannot be written to, before minutes of work are lost to it."""
    folder = path.parent
    if not folder.is_dir():
        raise ChromaError(f"{path}: its folder does not exist. Make it: mkdir -p '{folder}'")
    if path.is_dir():
        raise ChromaError(f"{path}: is a folder; name a file in it.")
    if path.exists() and any(q.exists() and q.samefile(path) for q in job.questions):
        raise ConfigError(f"{path}: is also a question and would be overwritten.")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ChromaError(f"{path}: cannot be written to; choose another place or change rights.")
    needed = len(job.questions) * job.config.max_reply_s * BYTES_PER_SECOND
    free = shutil.disk_usage(folder).free
    if free < needed and (path.is_file() or not path.exists()):  # a device has room of its own
        raise ChromaError(
            f"{path}: {free / 1e6:.0f} MB are free there, the reply may need {needed / 1e6:.0f}. "
            "Free some, choose another place, or lower --max-seconds."
        )


def _load_pipecat(verbose: bool) -> None:
    try:
        from loguru import logger  # Pipecat's; it greets when it is imported

        if not verbose:
            logger.remove()
        import chroma_plugin.talk  # noqa: F401
    except ImportError as error:
        if (error.name or "").split(".")[0] not in ("pipecat", "loguru"):
            raise ChromaError(
                f"Something that is installed does not load ({error}). "
                "Look for the reason: chroma-plugin doctor"
            ) from error
        raise ChromaError(
            f"Pipecat is missing or too old ({error}); recordings are asked through a pipeline "
            "of it. Install it: pip install 'pipecat-ai>=1.14,<2'"
        ) from error


def _draw(path: Path, voice: Voice, questions: Sequence[Samples], report: TalkReport) -> None:
    from chroma_plugin.audio import INPUT_RATE_HZ, OUTPUT_RATE_HZ, pcm_to_float
    from chroma_plugin.plot import Track, save_plot

    tracks = [Track(f"Voice: {voice.name}", voice.samples, OUTPUT_RATE_HZ)]
    for i, (question, turn) in enumerate(zip(questions, report.turns, strict=True), 1):
        tracks.append(Track(f"Question {i}: {turn.question}", question, INPUT_RATE_HZ))
        tracks.append(Track(f"Reply {i}", pcm_to_float(turn.pcm), report.sample_rate))
    save_plot(path, tracks)


# -- what is shown ---------------------------------------------------------------------------


def _console(*, stderr: bool) -> Console:
    return Console(stderr=stderr, markup=False, highlight=False, soft_wrap=True)


class _Progress:
    """One line on stderr: rewritten in a terminal, a new one for each step elsewhere."""

    def __init__(self, questions: int) -> None:
        self._console = _console(stderr=True)
        self._status = self._console.status("") if self._console.is_terminal else None
        self._questions = questions
        self._asked = 0

    def __enter__(self) -> _Progress:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def say(self, text: str) -> None:
        if self._status:
            self._status.update(text)
        else:
            self._console.print(text)

    def event(self, name: str, at_s: float) -> None:
        self._asked += name == "question"
        steps = {"user_started": "listening", "user_stopped": "thinking", "first_audio": "speaking"}
        if name in steps:
            self.say(f"question {self._asked} of {self._questions}: {steps[name]}")


def _show(out: Console, job: _Job, report: TalkReport, weights: str) -> None:
    for turn in report.turns:
        text = "".join(c if c.isprintable() else " " for c in turn.text)  # no escapes either
        out.print(f"{turn.question}: {text.strip() or '(no text)'}")
    table = Table("", *(str(i) for i in range(1, len(report.turns) + 1)))
    for title, values in _rows(report.turns):
        table.add_row(title, *values)
    out.print(table)
    if weights == "random":
        out.print(f"The weights of {job.config.model} are random: this is noise, not speech.")
    if not report.pcm:
        out.print("There was no audio in the reply.", style="yellow")
    seconds = sum(turn.reply_seconds for turn in report.turns)
    out.print(f"{seconds:.2f} s written to {job.output.resolve()}")
    if job.plot:
        out.print(f"picture written to {job.plot.resolve()}")


def _rows(turns: Sequence[TalkTurn]) -> Iterator[tuple[str, list[str]]]:
    yield "reply", [f"{t.reply_seconds:.2f} s" for t in turns]
    yield "ended by", [t.reason.replace("_", " ") for t in turns]
    yield "first audio", ["-" if t.ttfa_ms is None else f"{t.ttfa_ms:.0f} ms" for t in turns]
    yield "RTF", ["-" if t.rtf is None else f"{t.rtf:.3f}" for t in turns]
    for part in ("queued", "voice", "prefill", "thinker", "backbone", "depth", "codec"):
        yield f"  {part}", [f"{getattr(t.timings, f'{part}_ms'):.0f} ms" for t in turns]


def _summary(job: _Job, report: TalkReport, weights: str) -> dict[str, Any]:
    """The line of JSON; `ttfa_ms` is the mean of the turns, `rtf` that of all their audio."""
    spoken = [t for t in report.turns if t.rtf is not None and t.ttfa_ms is not None]
    seconds = sum(t.reply_seconds for t in spoken)
    turns = [asdict(turn) for turn in report.turns]
    for turn in turns:
        del turn["pcm"]
    return {
        "text": "\n".join(t.text.strip() for t in report.turns),
        "reply_seconds": seconds,
        "ttfa_ms": sum(t.ttfa_ms or 0.0 for t in spoken) / len(spoken) if spoken else None,
        "rtf": sum((t.rtf or 0.0) * t.reply_seconds for t in spoken) / seconds if spoken else None,
        "sample_rate": report.sample_rate,
        "turns": turns,
        "model": str(job.config.model),
        "weights": weights,
        "output": str(job.output),
    }


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
