"""Chroma among the plugins of LiveKit's framework."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

from livekit.agents import Plugin

from chroma_plugin import __version__
from chroma_plugin.livekit.keeper import PROGRAM

log = logging.getLogger("chroma_plugin.livekit")

MODEL_VARIABLE = "CHROMA_MODEL"
"""Names the hub id of the weights that are fetched."""


class ChromaPlugin(Plugin):
    """Tells the framework our name, our version and our logger, and fetches what is needed."""

    def __init__(self) -> None:
        name = "chroma_plugin.livekit"  # a worker imports it before it forks its jobs
        super().__init__(name, __version__, name, log)

    def download_files(self) -> None:
        """Fetches the weights that $CHROMA_MODEL names, as `chroma-plugin download` does; without
        it there is nothing to fetch: the default model is inside this package."""
        model = os.environ.get(MODEL_VARIABLE)
        if model:
            command = [sys.executable, "-c", PROGRAM, "download", model]
            subprocess.run(command, check=True)
