"""``chroma-plugin train``: parse, then import what is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from chroma_plugin.errors import ChromaError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Option(help="The recipe, a TOML file; without it the packaged one.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Of the recipe; the packaged one has reduced, ci and gpu.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Where all of it goes.")] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be given several times.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what a step takes at the released sizes.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON on stdout, all else on stderr.")
    ] = False,
) -> None:
    """Train chroma-tiny, or the speech of another checkpoint, from data to a checkpoint folder."""
    out = Console(stderr=as_json, markup=False, highlight=False, soft_wrap=True)
    if dry_run:
        from chroma_plugin.training.dry_run import released_config, table

        out.print(table(released_config()))
        return
    from chroma_plugin.training.recipe import PACKAGED_RECIPE, changed, read_recipe

    recipe = changed(read_recipe(config or PACKAGED_RECIPE, profile), folder, stage)
    from chroma_plugin.training.stages import train_recipe

    if not recipe.base:
        _calm_the_cpu()
    result = train_recipe(recipe, out.print)
    if as_json:
        line = {
            "folder": str(result.folder),
            "stopped": result.stopped,
            "missed": list(result.missed),
            "figures": {name: dict(row) for name, row in result.figures.items()},
        }
        print(json.dumps(line))
    if result.stopped:
        raise typer.Exit(130)
    if result.missed:
        raise ChromaError(
            f"{result.folder} is there, but it misses the bar in the recipe's [export]: "
            f"{'; '.join(result.missed)}. Give its stages more minutes, or lower the bar."
        )


def _calm_the_cpu() -> None:
    """For small models: threads of one small layer wait for each other longer than they compute,
    and the numbers of a codec that begins to learn are too small for fast arithmetic."""
    import torch

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
