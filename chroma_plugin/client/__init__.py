"""RemoteEngine: an engine's methods, spoken over the server's protocol."""

from chroma_plugin.client.engine import RemoteEngine

__all__ = ["RemoteEngine"]
