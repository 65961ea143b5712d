"""``chroma-plugin eval``: parse, then import what the verb needs.

The tables go to stdout and the line of JSON after them; with ``--json`` it stands there alone.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from chroma_plugin.config import DEFAULT_MODEL
from chroma_plugin.errors import ChromaError, ConfigError
from chroma_plugin.results import tell

if TYPE_CHECKING:
    from chroma_plugin.evaluation.outcome import Outcome

app = typer.Typer(
    name="eval",
    help="Judge the speech: whose voice it is, what listeners prefer, what is answered, how soon.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cmos = typer.Typer(help="A blind listening test: its page, and what came of it.")
app.add_typer(cmos, name="cmos", no_args_is_help=True)

Model = Annotated[str, typer.Option(help="chroma-tiny, a checkpoint folder, or a hub id.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Together = Annotated[int, typer.Option(min=1, max=1024, help="Conversations at once.")]
MaxSeconds = Annotated[float, typer.Option(min=0.08, max=3600, help="A cap on each reply.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the speech, and of every draw.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only so many, from the first on.")]
Asr = Annotated[
    str | None,
    typer.Option(help='A command that prints what is said in a file: "whisper-cli -nt {audio}".'),
]
Audio = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the speech as WAV; what lies there is judged and not made again."
    ),
]
Plot = Annotated[Path | None, typer.Option(help="A picture, as PNG.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the JSON alone on stdout, all else on stderr.")
]


@app.command()
def sim(
    listed: Annotated[
        Path, typer.Argument(metavar="LIST", help="name|prompt text|prompt audio|text to say")
    ],
    speaker: Annotated[
        str, typer.Option(help="Who judges voices: light, wavlm[:SOURCE] or ecapa[:SOURCE].")
    ] = "light",
    asr: Asr = None,
    audio: Audio = None,
    limit: Limit = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    together: Together = 4,
    max_seconds: MaxSeconds = 30.0,
    seed: Seed = 0,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """SEED-TTS-EVAL: is it the prompt's voice, and are the words right?"""
    from chroma_plugin.evaluation.engines import speaker_of
    from chroma_plugin.evaluation.sim import evaluate_similarity, read_list
    from chroma_plugin.evaluation.speakers import speaker_measure
    from chroma_plugin.evaluation.transcripts import AsrCommand

    def judge() -> Outcome:
        utterances = read_list(listed)[:limit]
        command = AsrCommand(asr) if asr else None
        measure = speaker_measure(speaker, _resolved(device))
        speak = speaker_of(model, device, together, max_seconds, seed)
        with ExitStack() as stack:
            outcome = evaluate_similarity(
                utterances, speak, measure, _folder(audio, stack), command
            )
        outcome.settings = {"model": model, "list": str(listed), "seed": seed, **outcome.settings}
        return outcome

    tell(judge, plot, as_json)


@cmos.command()
def page(
    folder: Annotated[Path, typer.Argument(help="With a folder of recordings for each system.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The page, as HTML.")],
    first: Annotated[str, typer.Option(help="One system's folder.")] = "chroma",
    second: Annotated[str, typer.Option(help="The other's.")] = "other",
    question: Annotated[
        Literal["naturalness", "similarity"], typer.Option(help="What listeners are asked.")
    ] = "naturalness",
    repeats: Annotated[int, typer.Option(min=0, help="Pairs that come twice.")] = 3,
    anchors: Annotated[int, typer.Option(min=0, help="Trials with an obvious answer.")] = 3,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Make the page, and the key that says what is what, which listeners must not have."""
    from chroma_plugin.evaluation.cmos import TestPlan, make_page
    from chroma_plugin.evaluation.outcome import Cell, Grid, Outcome

    def made() -> Outcome:
        if output.is_dir() or not output.parent.is_dir():
            raise ChromaError(f"{output}: name a file in a folder that exists.")
        plan = TestPlan(question, (first, second), repeats, anchors, seed)
        test = make_page(folder, plan)
        key = test.write(output)
        figures: dict[str, Cell] = {
            "pairs": test.pairs,
            "trials": len(test.key["trials"]),
            "page": str(output),
            "key": str(key),
            "bytes": len(test.html.encode()),
        }
        aside = [f"{name}: not in every folder" for name in test.left_out]
        settings = {"question": question, "systems": [first, second], "seed": seed}
        grid = Grid(f"A test of {question}", ("", ""), list(figures.items()))
        return Outcome("cmos page", settings, figures, [grid], set_aside=aside)

    tell(made, None, as_json)


@cmos.command()
def score(
    key: Annotated[Path, typer.Argument(metavar="PAGE.key.json", help="The page's key.")],
    results: Annotated[list[Path], typer.Argument(metavar="RESULT.json", help="Of listeners.")],
    anchors: Annotated[
        float, typer.Option(min=0, max=1, help="Share of anchors that a listener must pass.")
    ] = 0.75,
    repeats: Annotated[
        float, typer.Option(min=0, max=1, help="Share of repeats not to be contradicted.")
    ] = 0.5,
    seed: Seed = 0,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Count the votes of result files: preference with deuce, and how sure it is."""
    from chroma_plugin.evaluation.listeners import Attention, analyse, read_key, read_listener

    def judge() -> Outcome:
        known = read_key(key)
        listeners = [read_listener(path, known) for path in results]
        return analyse(known, listeners, Attention(anchors, repeats), seed)

    tell(judge, plot, as_json)


@app.command()
def uro(
    folder: Annotated[Path, typer.Argument(help="URO-Bench's data, or a folder of such sets.")],
    only: Annotated[
        list[str] | None, typer.Option("--set", help="Only this one; may be given several times.")
    ] = None,
    rule: Annotated[
        Literal["exact", "contains", "wer", "graded", "open"] | None,
        typer.Option(help="How to score sets that are not of the benchmark."),
    ] = None,
    asr: Asr = None,
    judge: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible endpoint: http://localhost:8000/v1")
    ] = None,
    judge_model: Annotated[str, typer.Option(help="The judge's name there.")] = "gpt-4o-mini",
    judge_key_env: Annotated[
        str, typer.Option(help="The environment variable that holds its key.")
    ] = "OPENAI_API_KEY",
    audio: Audio = None,
    limit: Limit = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    together: Together = 4,
    max_seconds: MaxSeconds = 60.0,
    seed: Seed = 0,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """URO-Bench's basic track: answer spoken questions, and score the answers."""
    from chroma_plugin.evaluation.engines import speaker_of
    from chroma_plugin.evaluation.scores import Judge
    from chroma_plugin.evaluation.transcripts import AsrCommand
    from chroma_plugin.evaluation.uro import evaluate_dialogue, read_sets

    def scored() -> Outcome:
        sets = read_sets(folder, only or (), rule, limit)
        command = AsrCommand(asr) if asr else None
        marks = Judge(judge, judge_model, os.environ.get(judge_key_env, "")) if judge else None
        speak = speaker_of(model, device, together, max_seconds, seed)
        with ExitStack() as stack:
            outcome = evaluate_dialogue(sets, speak, _folder(audio, stack), command, marks)
        outcome.settings = {"model": model, "seed": seed, **outcome.settings}
        return outcome

    tell(scored, plot, as_json)


@app.command()
def conversation(
    records: Annotated[
        Path | None,
        typer.Option(
            help="Training records to ask from, split heldout; made there if there are none."
        ),
    ] = None,
    dialogues: Annotated[int, typer.Option(min=1, help="Held by the bars.")] = 48,
    long: Annotated[int, typer.Option(min=0, help="Of ten turns, to compare turns.")] = 6,
    through: Annotated[
        Literal["session", "pipeline", "both"], typer.Option(help="How it is asked.")
    ] = "both",
    sampling: Annotated[
        str, typer.Option(help='Settings, temperature:top_k; "1:50 0.7:20 0" compares three.')
    ] = "1:50",
    ear: Annotated[
        str | None, typer.Option(help="Whose thinker writes replies down; the model's own.")
    ] = None,
    speaker: Annotated[
        str, typer.Option(help="Who judges voices: light, wavlm[:SOURCE] or ecapa[:SOURCE].")
    ] = "light",
    understood: Annotated[
        float, typer.Option(min=0, max=1, help="That bar; 0.95 for a model made on a GPU.")
    ] = 0.8,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if a bar is missed.")] = False,
    keep: Annotated[int, typer.Option(min=0, help="Conversations kept in --audio.")] = 8,
    audio: Annotated[Path | None, typer.Option(help="Folder for those, as WAV.")] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    together: Annotated[
        int, typer.Option(min=1, max=1024, help="Conversations at once; 1 tells the RTF of one.")
    ] = 1,
    max_seconds: MaxSeconds = 10.0,
    seed: Seed = 0,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """A small model's bars: questions it never heard, through the engine and through Pipecat."""
    from chroma_plugin.evaluation.conversation import (
        by_pipeline,
        by_session,
        long_talks,
        read_settings,
        save_talk,
        talks_of,
    )
    from chroma_plugin.evaluation.engines import held_out_records, holder_of, quiet_pipecat
    from chroma_plugin.evaluation.speakers import speaker_measure
    from chroma_plugin.evaluation.standards import Gallery, Judge
    from chroma_plugin.evaluation.verdict import BARS, evaluate, plan
    from chroma_plugin.training.ear import load_ear

    def judge() -> Outcome:
        settings = read_settings(sampling)
        measure = speaker_measure(speaker, _resolved(device))
        if through != "session":
            quiet_pipecat()
        asked = {"session": by_session, "pipeline": by_pipeline}
        ways = {n: a(max_seconds) for n, a in asked.items() if through in (n, "both")}
        with ExitStack() as stack:
            held_out = held_out_records(records, dialogues, seed, stack)
            talks, left_out = talks_of(held_out, dialogues)
            if not talks:
                raise ChromaError(f"No voice of these records can be a prompt. {left_out[0]}")
            own = load_ear(model)
            listener = load_ear(ear) if ear else own
            gallery = Gallery(held_out, measure, seed, through=own.through_codec)
            jobs = plan(ways, talks, long_talks(talks, long), settings)
            held = holder_of(model, device, together, max_seconds, seed)(jobs)
            outcome = evaluate(
                jobs,
                held,
                Judge(listener.write_down_reply, gallery),
                BARS | {"understood": understood},
                own.through_codec,
            )
            for number, talk in enumerate(talks[:keep] if audio else ()):
                for job, rows in zip(jobs[: len(ways)], held, strict=False):
                    name = f"{number + 1:03d}-{job.name}"
                    save_talk(audio or Path(), name, talk, rows[number])
        outcome.set_aside = [f"left out: {why}" for why in left_out] + outcome.set_aside
        outcome.settings = {
            "model": model, "ear": ear or model, "records": str(records) if records else None,
            "dialogues": len(talks), "long": long, "sampling": sampling, "measure": measure.name,
            "together": together, "max_seconds": max_seconds, "seed": seed,
        }  # fmt: skip
        return outcome

    if not tell(judge, plot, as_json).figures["met"] and strict:
        raise ChromaError("A bar is missed: see the table, or figures.ways of the JSON.")


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def latency(
    ctx: typer.Context,
    line: Annotated[
        Path | None, typer.Option("--from", help="A line that bench latency wrote to a file.")
    ] = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """The article's latency table; options that are not listed go to bench latency, which runs."""
    from chroma_plugin.evaluation.latency import latency_table, read_bench, run_bench

    if line is not None and ctx.args:
        raise ConfigError(f"--from reads a file; {' '.join(ctx.args)} has nothing to run.")
    tell(lambda: latency_table(read_bench(line) if line else run_bench(ctx.args)), plot, as_json)


def _folder(audio: Path | None, stack: ExitStack) -> Path:
    """The folder asked for, or one that is gone in the end."""
    if audio is not None:
        return audio
    return Path(stack.enter_context(tempfile.TemporaryDirectory()))


def _resolved(device: str) -> str:
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
