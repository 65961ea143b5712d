"""``chroma-plugin bench``: parse, then import what the verb needs.

The tables go to stdout and the line of JSON after them; with ``--json`` it stands there alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer
from rich.console import Console

from chroma_plugin.errors import ChromaError, ConfigError
from chroma_plugin.results import tell

if TYPE_CHECKING:
    from chroma_plugin.bench.report import Report
    from chroma_plugin.bench.sizes import Setup
    from chroma_plugin.config import Quantize as Kind

app = typer.Typer(
    name="bench",
    help="Measure latency, load and endurance, on random weights of three sizes or on a model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Size = Annotated[
    Literal["tiny", "small", "real"] | None,
    typer.Option(help="tiny: the packaged chroma-tiny; small: 58 M; real: the released sizes."),
]
Model = Annotated[str | None, typer.Option(help="A checkpoint folder or hub id instead.")]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="Take the sizes of --model, not its weights.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[Literal["auto", "float32", "bfloat16"], typer.Option(help="Of the weights.")]
Quantize = Annotated[
    Literal["none", "int8", "fp8", "int4"], typer.Option(help="How linear weights are stored.")
]
Graphs = Annotated[bool, typer.Option(help="CUDA graphs; without them the same, slower.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of torch.")]
Seed = Annotated[int, typer.Option(min=0, help="Of weights, users and speech.")]
Plot = Annotated[Path | None, typer.Option(help="A picture of the run, as PNG.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the JSON alone on stdout, all else on stderr.")
]
Reply = Annotated[float, typer.Option(min=0.16, max=3600, help="Seconds of each reply.")]
Speech = Annotated[float, typer.Option(min=0.1, max=60, help="Seconds of the question.")]
Conversations = Annotated[
    int, typer.Option("--conversations", "-n", min=1, max=4096, help="At once.")
]


def _setup(
    size: Literal["tiny", "small", "real"] | None,
    model: str | None,
    random_weights: bool,
    device: str,
    dtype: Literal["auto", "float32", "bfloat16"],
    threads: int | None,
    seed: int,
    quantize: Literal["none", "int8", "fp8", "int4"] = "none",
    graphs: bool = True,
) -> Setup:
    from chroma_plugin.bench.sizes import Setup

    return Setup(size, model, random_weights, device, dtype, threads, seed, quantize, graphs)


def _run(measure: Callable[[], Report], plot: Path | None, as_json: bool) -> None:
    """Measures and tells; exit code 1 if a bar is missed."""
    if tell(measure, plot, as_json).violations:
        raise typer.Exit(1)


@app.command()
def latency(
    turns: Annotated[int, typer.Option(min=1, help="Replies of each kind.")] = 10,
    speech: Speech = 5.0,
    reply: Reply = 4.0,
    plain_turns: Annotated[int, typer.Option(min=1, help="Runs of the plain loop.")] = 3,
    size: Size = None,
    model: Model = None,
    random_weights: RandomWeights = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "none",
    graphs: Graphs = True,
    threads: Threads = None,
    seed: Seed = 0,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """One conversation: time to first audio by part, RTF, and the plain loop beside it."""
    from chroma_plugin.bench.latency import LatencyPlan, measure_latency

    setup = _setup(size, model, random_weights, device, dtype, threads, seed, quantize, graphs)
    plan = LatencyPlan(turns, speech, reply, plain_turns)
    _run(lambda: measure_latency(setup, plan), plot, as_json)


@app.command()
def remote(
    turns: Annotated[int, typer.Option(min=1, help="Of each kind.")] = 300,
    max_added_ms: Annotated[float, typer.Option(min=0, help="Bar: what may be added, p50.")] = 3.0,
    seed: Seed = 0,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """What a server in another process adds to the time to first audio; if too much, exit 1."""
    try:
        from chroma_plugin.bench.remote import WirePlan, measure_remote
    except ImportError as error:
        raise ChromaError(
            f"Something that a server needs is missing ({error}). "
            "Install it: pip install 'chroma-plugin[server]'"
        ) from error

    _run(lambda: measure_remote(WirePlan(turns, max_added_ms), seed=seed), plot, as_json)


@app.command()
def load(
    conversations: Conversations = 4,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long questions are asked.")] = 60.0,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Replies per second at random, not always on.")
    ] = None,
    reply: Reply = 6.0,
    speech: Annotated[float, typer.Option(min=0.2, max=60, help="The longest question.")] = 4.0,
    size: Size = None,
    model: Model = None,
    random_weights: RandomWeights = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "none",
    graphs: Graphs = True,
    threads: Threads = None,
    seed: Seed = 0,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Conversations in real time, with interruptions: delays, gaps and the length of a step."""
    from chroma_plugin.bench.load import LoadPlan, measure_load

    setup = _setup(size, model, random_weights, device, dtype, threads, seed, quantize, graphs)
    plan = LoadPlan(conversations, seconds, rate, (min(1.5, speech / 2), speech), reply)
    _run(lambda: measure_load(setup, plan), plot, as_json)


@app.command()
def sweep(
    most: Annotated[
        int, typer.Option(min=0, max=4096, help="Try no more; 0 leaves the search out.")
    ] = 64,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each number is held.")] = 20.0,
    together: Annotated[
        str, typer.Option(help="Numbers answered as fast as it goes; empty leaves them out.")
    ] = "1,2,4,8",
    speech: Speech = 5.0,
    reply: Reply = 10.0,
    size: Size = None,
    model: Model = None,
    random_weights: RandomWeights = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "none",
    graphs: Graphs = True,
    threads: Threads = None,
    seed: Seed = 0,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """The most conversations held without a gap, and what making frames together gains."""
    from chroma_plugin.bench.sweep import SweepPlan, measure_sweep

    words = [word for word in together.split(",") if word.strip()]
    if not all(word.strip().isdecimal() and int(word) for word in words):
        raise ConfigError(f"--together {together!r}: give numbers from 1 on, as in 1,2,4,8.")
    if not words and not most:
        raise ConfigError("--most 0 and no --together leave nothing to measure.")
    setup = _setup(size, model, random_weights, device, dtype, threads, seed, quantize, graphs)
    plan = SweepPlan(most, seconds, [int(word) for word in words], speech, reply)
    _run(lambda: measure_sweep(setup, plan), plot, as_json)


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(min=0.01, help="For how long.")] = 60.0,
    conversations: Conversations = 4,
    reply: Reply = 1.0,
    max_growth_mb: Annotated[
        float, typer.Option(min=0, help="Memory that the second half may add.")
    ] = 16.0,
    size: Size = None,
    model: Model = None,
    random_weights: RandomWeights = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "none",
    graphs: Graphs = True,
    threads: Threads = None,
    seed: Seed = 0,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Come, go, interrupt and crash: memory stays flat and nothing is left; if not, exit 1."""
    from chroma_plugin.bench.soak import SoakPlan, measure_soak

    setup = _setup(size, model, random_weights, device, dtype, threads, seed, quantize, graphs)
    plan = SoakPlan(minutes, conversations, reply, max_growth_mb)
    _run(lambda: measure_soak(setup, plan), plot, as_json)


@app.command()
def agreement(
    kinds: Annotated[str, typer.Option(help="Kinds of weights beside none.")] = "int8,fp8,int4",
    replies: Annotated[int, typer.Option(min=1, help="Made and read.")] = 8,
    reply: Reply = 4.0,
    speech: Speech = 4.0,
    size: Size = None,
    model: Model = None,
    random_weights: RandomWeights = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """What quantised weights save, and how far they stray from those that are not."""
    from chroma_plugin.bench.agreement import AgreementPlan, measure_agreement

    words = [word.strip() for word in kinds.split(",") if word.strip()]
    if not words or not set(words) <= {"int8", "fp8", "int4"}:
        raise ConfigError(f"--kinds {kinds!r}: give some of int8, fp8 and int4, as in int8,int4.")
    setup = _setup(size, model, random_weights, device, dtype, threads, seed)
    plan = AgreementPlan(cast("list[Kind]", words), replies, reply, speech)
    _run(lambda: measure_agreement(setup, plan), None, as_json)


@app.command()
def scale(
    calls: Annotated[float, typer.Option(min=0.01, help="Wanted at once, on average.")] = 100.0,
    peak: Annotated[float, typer.Option(min=1, max=2, help="Noon, by that average.")] = 1.0,
    call: Annotated[float, typer.Option(min=1, help="Mean seconds of a call.")] = 300.0,
    places: Annotated[int, typer.Option(min=1, help="Calls that one GPU takes.")] = 128,
    replicas: Annotated[int, typer.Option(min=1, help="GPUs at first, and at least.")] = 1,
    most: Annotated[int | None, typer.Option(min=1, help="GPUs at most; as at first if none.")] = (
        None
    ),
    target: Annotated[float, typer.Option(min=0.01, max=1, help="Share of places to fill.")] = 0.8,
    start: Annotated[float, typer.Option(min=0, help="Seconds until a GPU is warm.")] = 180.0,
    node_hours: Annotated[
        float | None, typer.Option(min=0.1, help="Mean hours between failures of a node.")
    ] = None,
    node_gpus: Annotated[int, typer.Option(min=1, help="GPUs that fail together.")] = 8,
    router: Annotated[
        Literal["fewest", "two"], typer.Option(help="Fewest calls first, or the emptier of two.")
    ] = "fewest",
    hours: Annotated[float, typer.Option(min=0.1, help="That are counted.")] = 24.0,
    price: Annotated[float, typer.Option(min=0, help="Of an hour of one GPU.")] = 3.0,
    seed: Seed = 0,
    tables: Annotated[
        bool, typer.Option("--tables", help="Those of docs/scale.md, for --places and --price.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Simulate a fleet: calls refused, cut and talked, GPU hours and price. Measures nothing."""
    from chroma_plugin.bench.fleets import report
    from chroma_plugin.bench.fleets import tables as all_tables
    from chroma_plugin.bench.scale import ScalePlan

    if tables:
        print(all_tables(places, price, seed=seed))
        return
    plan = ScalePlan(
        erlangs=calls,
        peak=peak,
        call_s=call,
        places=places,
        min_replicas=replicas,
        max_replicas=replicas if most is None else most,
        target_load=target,
        start_s=start,
        node_mtbf_h=float("inf") if node_hours is None else node_hours,
        node_replicas=node_gpus,
        router=router,
        hours=hours,
        seed=seed,
    )
    out = Console(stderr=as_json, markup=False, highlight=False, soft_wrap=True)
    print(report(plan, price, out))


@app.command()
def watermark(
    files: Annotated[list[Path], typer.Argument(help="Recordings of speech that is not marked.")],
    as_json: AsJson = False,
) -> None:
    """The mark on replies: found after which codecs and cuts, how audible, at which cost."""
    from chroma_plugin.bench.marks import measure_marks

    report = measure_marks(files)
    report.show(Console(stderr=as_json, markup=False, highlight=False, width=120))
    print(report.line())
