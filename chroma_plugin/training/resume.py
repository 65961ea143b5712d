"""The checkpoint of a run: everything that its next step depends on.

Read without unpickling code. What a finished run ships is not this file, but safetensors.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from chroma_plugin.errors import CheckpointError


def save_run(
    path: Path, module: nn.Module, optimiser: torch.optim.Optimizer, **words: int | float
) -> None:
    """Writes module, optimiser, random states and some numbers; no half of a file is ever seen."""
    state = {
        "words": words,
        "module": module.state_dict(),
        "optimiser": optimiser.state_dict(),
        "random": random_states(),
    }
    part = path.with_name(f".{path.name}.part")
    torch.save(state, part)
    os.replace(part, path)


def load_run(
    path: Path, module: nn.Module, optimiser: torch.optim.Optimizer, seed: int
) -> dict[str, int | float]:
    """Puts back what `save_run` wrote.

    Args:
        path: the file.
        module: takes its tensors, on the device where it is.
        optimiser: takes its moments.
        seed: must be the one that the run was saved with.

    Returns:
        The numbers.

    Raises:
        CheckpointError: the file is broken, or of another module or seed.
    """
    place = next((p.device for p in module.parameters()), torch.device("cpu"))
    try:
        state = torch.load(path, map_location=place, weights_only=True)
        words: dict[str, int | float] = state["words"]
        if words["seed"] != seed:
            raise ValueError(f"the seed was {words['seed']}, and is {seed} now")
        module.load_state_dict(state["module"])
        optimiser.load_state_dict(state["optimiser"])
        set_random_states(state["random"])
    except Exception as error:  # unpickling, keys, shapes: each raises its own kind
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path}: cannot be resumed ({type(error).__name__}: {reason}). It is broken or of "
            "another plan: begin anew in another folder, or with resume=False."
        ) from error
    return words


def random_states() -> dict[str, Any]:
    """The state of every generator, as plain lists and tensors."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), [int(key) for key in keys], *rest],
        "python": random.getstate(),
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Puts back what `random_states` gave."""
    torch.set_rng_state(states["torch"].cpu())
    if torch.cuda.is_available() and states["cuda"]:
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
