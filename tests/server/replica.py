"""What a replica of the tests runs on: an engine without a model that says who it is."""

from __future__ import annotations

import os

from chroma_plugin.server.ray_app import Arguments
from tests.fakes import FakeEngine

FRAMES, FRAME_S = 50, 0.04
"""A reply is 4 s of sound, made in 2 s."""


def who_am_i(args: Arguments) -> FakeEngine:
    """Answers with the id of the process that it runs in."""
    return FakeEngine(f"{os.getpid()} it is", frames=FRAMES, frame_s=FRAME_S)
