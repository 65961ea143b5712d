"""Chroma as a realtime model in LiveKit rooms.

::

    from chroma_plugin import livekit as chroma

    session = AgentSession(llm=chroma.RealtimeModel(voice=voice))

Tested with LiveKit Agents 1.8.9. Importing this loads neither torch nor CUDA: each job of a worker
is a process of its own, and the engine lives elsewhere.
"""

from livekit.agents import Plugin

from chroma_plugin import __version__
from chroma_plugin.livekit.capacity import Capacity
from chroma_plugin.livekit.local_server import LocalServer
from chroma_plugin.livekit.model import RealtimeModel
from chroma_plugin.livekit.plugin import ChromaPlugin
from chroma_plugin.livekit.session import RealtimeSession
from chroma_plugin.livekit.transcripts import Transcriber

__all__ = [
    "Capacity",
    "ChromaPlugin",
    "LocalServer",
    "RealtimeModel",
    "RealtimeSession",
    "Transcriber",
    "__version__",
]

Plugin.register_plugin(ChromaPlugin())
