"""Chroma: speech in, speech out in a cloned voice, for Pipecat, LiveKit and your own loop.

Importing this package loads neither torch nor transformers, pipecat or livekit: each public name
is resolved when it is first used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chroma_plugin.client.engine import RemoteEngine
    from chroma_plugin.config import EngineConfig, SamplingParams
    from chroma_plugin.conversation import Message
    from chroma_plugin.engine.engine import Engine
    from chroma_plugin.errors import (
        AudioError,
        CheckpointError,
        ChromaError,
        ConfigError,
        EngineBusy,
        EngineClosed,
        EngineError,
        EngineFailed,
        SessionClosed,
        VoiceError,
    )
    from chroma_plugin.reply import AudioChunk, ReplyStream, TextDelta, TurnDone
    from chroma_plugin.session import Session
    from chroma_plugin.voice import Voice
    from chroma_plugin.voice_store import VoiceStore

__version__ = "0.1.0"

_HOME = {
    "EngineConfig": "config",
    "SamplingParams": "config",
    "Engine": "engine.engine",
    "AudioError": "errors",
    "CheckpointError": "errors",
    "ChromaError": "errors",
    "ConfigError": "errors",
    "EngineBusy": "errors",
    "EngineClosed": "errors",
    "EngineError": "errors",
    "EngineFailed": "errors",
    "SessionClosed": "errors",
    "VoiceError": "errors",
    "AudioChunk": "reply",
    "Message": "conversation",
    "RemoteEngine": "client.engine",
    "ReplyStream": "reply",
    "Session": "session",
    "TextDelta": "reply",
    "TurnDone": "reply",
    "Voice": "voice",
    "VoiceStore": "voice_store",
}

__all__ = [
    "AudioChunk",
    "AudioError",
    "CheckpointError",
    "ChromaError",
    "ConfigError",
    "Engine",
    "EngineBusy",
    "EngineClosed",
    "EngineConfig",
    "EngineError",
    "EngineFailed",
    "Message",
    "RemoteEngine",
    "ReplyStream",
    "SamplingParams",
    "Session",
    "SessionClosed",
    "TextDelta",
    "TurnDone",
    "Voice",
    "VoiceError",
    "VoiceStore",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'chroma_plugin' has no attribute {name!r}")
    value = getattr(import_module(f"chroma_plugin.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
