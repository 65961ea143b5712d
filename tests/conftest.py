"""What every test stands on: one CPU thread, fixed seeds, no network, no display."""

from __future__ import annotations

import os

# Read when torch, numba and matplotlib are first imported, so they are set before any test is.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    NUMBA_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    MPLBACKEND="Agg",
)

import random
import sys

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("steady", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def steady() -> None:
    """The same seeds for every test, and torch on one thread, whatever the test before set."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:  # a test that needs no torch does not load it
        import torch

        torch.manual_seed(0)
        torch.set_num_threads(1)
