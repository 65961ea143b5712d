"""What ``chroma-plugin talk`` and ``demo`` do once their options are parsed.

One conversation from recordings to a file, with what is told of it meanwhile and afterwards; or
the page. What is heavy is imported when it is needed.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from chroma_plugin.config import EngineConfig, SamplingParams
from chroma_plugin.errors import ChromaError, ConfigError

if TYPE_CHECKING:
    from chroma_plugin.audio import Samples
    from chroma_plugin.talk import TalkReport, TalkTurn
    from chroma_plugin.voice import Voice

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")
BYTES_PER_SECOND = 48_000
"""Of a reply: PCM16 at 24 kHz."""


# -- in a browser ----------------------------------------------------------------------------


def only_for_recordings(given: Mapping[str, object]) -> None:
    """Refuses options, by name, that were given and mean nothing to a browser.

    Raises:
        ConfigError: one was.
    """
    if extra := [name for name, value in given.items() if value]:
        raise ConfigError(f"--web talks to a browser, without {', '.join(extra)}.")


def serve(config: EngineConfig, verbose: bool, **settings: Any) -> None:
    """Serves the page until it is interrupted; the settings are those of `talk_web.serve`.

    Raises:
        ChromaError: something is missing or does not start.
    """
    _load_pipecat(verbose)
    try:
        from chroma_plugin.talk_web import serve as serve_page
    except ImportError as error:
        raise ChromaError(
            f"Something that --web needs is missing ({error}). "
            "Install it: pip install 'chroma-plugin[web]'"
        ) from error
    from chroma_plugin.engine.engine import Engine

    _console(stderr=True).print(f"loading {config.model}")
    tell = _console(stderr=False).print
    serve_page(
        Engine(config),
        verbose=verbose,
        on_ready=lambda address: tell(f"Talk to Chroma: {address}  (Ctrl+C ends it)"),
        **settings,
    )


# -- one conversation ------------------------------------------------------------------------


def one_conversation(model: str, device: str, max_seconds: float, *, fast: bool) -> EngineConfig:
    """An engine for one conversation; nobody listens to it live if it is fast."""
    config = EngineConfig(model, device, max_replies=1, max_reply_s=max_seconds)
    return replace(config, run_ahead_s=math.inf) if fast else config


@dataclass(frozen=True, slots=True)
class Job:
    """Recordings to ask, how, and where the replies go."""

    config: EngineConfig
    questions: tuple[Path, ...]
    voice: Voice
    output: Path
    instructions: str | None = None
    sampling: SamplingParams | None = None
    transcribe: bool = False
    fast: bool = False
    plot: Path | None = None


def converse(job: Job, as_json: bool, verbose: bool) -> None:
    """Checks everything that can be checked first, talks, writes and reports.

    Raises:
        ChromaError: something cannot be read, written, loaded or answered.
    """
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


async def _talk(job: Job, progress: _Progress) -> tuple[TalkReport, str]:
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
            transcribe=job.transcribe,
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


def speaker(clip: Path | None, transcript: str | None) -> Voice:
    """The voice of a clip, or the packaged one.

    Raises:
        AudioError: the clip cannot be read or is too short or long.
        ConfigError: one was given without the other.
    """
    from chroma_plugin.voice import Voice

    if clip is None and transcript is None:
        return Voice.default()
    if clip is None or transcript is None:
        raise ConfigError(
            "--voice and --transcript belong together: the clip, and what is said in it."
        )
    return Voice.from_file(clip, transcript)


def demo_questions() -> Iterator[Path]:
    """The packaged question and the user's own recordings.

    Raises:
        ConfigError: ``CHROMA_TEST_AUDIO`` is no folder.
    """
    packaged = Path(str(files("chroma_plugin") / "assets" / "questions"))
    given = os.environ.get("CHROMA_TEST_AUDIO")
    folders = [packaged, Path(given) if given else Path("..", "shared", "audio")]
    if given and not folders[1].is_dir():
        raise ConfigError(f"CHROMA_TEST_AUDIO is {given}, which is no folder of recordings.")
    for folder in filter(Path.is_dir, folders):
        yield from sorted(p for p in folder.iterdir() if p.suffix.lower() in AUDIO_SUFFIXES)


def _check_output(path: Path, job: Job) -> None:
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


def _show(out: Console, job: Job, report: TalkReport, weights: str) -> None:
    for turn in report.turns:
        if job.transcribe:
            out.print(f"{turn.question}, understood: {_shown(turn.said) or '(nothing)'}")
        out.print(f"{turn.question}: {_shown(turn.text) or '(no text)'}")
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


def _shown(text: str) -> str:
    """Text of a model, without escapes that could steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def _rows(turns: Sequence[TalkTurn]) -> Iterator[tuple[str, list[str]]]:
    yield "reply", [f"{t.reply_seconds:.2f} s" for t in turns]
    yield "ended by", [t.reason.replace("_", " ") for t in turns]
    yield "first audio", ["-" if t.ttfa_ms is None else f"{t.ttfa_ms:.0f} ms" for t in turns]
    yield "RTF", ["-" if t.rtf is None else f"{t.rtf:.3f}" for t in turns]
    for part in ("queued", "voice", "prefill", "thinker", "backbone", "depth", "codec"):
        yield f"  {part}", [f"{getattr(t.timings, f'{part}_ms'):.0f} ms" for t in turns]


def _summary(job: Job, report: TalkReport, weights: str) -> dict[str, Any]:
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
