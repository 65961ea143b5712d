"""Chroma as a speech-to-speech service in a Pipecat pipeline.

::

    transport.input() -> user aggregator -> ChromaRealtimeLLMService
        -> transport.output() -> assistant aggregator

Tested with Pipecat 1.14.0.
"""

from chroma_plugin.pipecat.service import ChromaRealtimeLLMService
from chroma_plugin.pipecat.settings import ChromaRealtimeLLMSettings
from chroma_plugin.pipecat.transcripts import Transcriber

__all__ = ["ChromaRealtimeLLMService", "ChromaRealtimeLLMSettings", "Transcriber"]
