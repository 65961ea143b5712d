"""What a measurement found, told at a terminal: a table, a picture, a line of JSON on stdout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from rich.console import Console

from chroma_plugin.errors import ChromaError


class Result(Protocol):
    """What can be told."""

    def show(self, out: Console) -> None:
        """Prints it for people."""

    def draw(self, path: Path) -> None:
        """Writes its picture as a PNG."""

    def line(self) -> str:
        """All of it as one line of JSON."""


R = TypeVar("R", bound=Result)


def tell(measure: Callable[[], R], plot: Path | None, as_json: bool) -> R:
    """Checks the picture's place, measures, and tells.

    Args:
        measure: what takes time.
        plot: where the picture goes; None: there is none.
        as_json: the line of JSON stands alone on stdout, all else goes to stderr.

    Raises:
        ChromaError: the picture cannot be made or written there; or of `measure`.
    """
    if plot is not None:
        from chroma_plugin.plot import require_matplotlib

        require_matplotlib()
        if plot.is_dir() or not plot.parent.is_dir():
            raise ChromaError(f"{plot}: name a file in a folder that exists.")
    result = measure()
    out = Console(stderr=as_json, markup=False, highlight=False, soft_wrap=True)
    result.show(out)
    if plot is not None:
        result.draw(plot)
        out.print(f"picture written to {plot.resolve()}")
    print(result.line())
    return result
