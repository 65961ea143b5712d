"""The one exception tree of chroma_plugin.

::

    ChromaError
    ├── ConfigError        a setting is unknown, out of range or not supported (also a ValueError)
    ├── CheckpointError    a checkpoint is missing, damaged, or of another model
    ├── AudioError         audio cannot be used: format, length, level (also a ValueError)
    │   └── VoiceError     a reference clip or its transcript cannot be used as a voice
    ├── SessionClosed      the session has been closed and takes no more calls
    └── EngineError
        ├── EngineBusy     no room before the deadline; try again later or raise the limits
        ├── EngineClosed   the engine was never started or has been closed
        └── EngineFailed   the engine died; every session of it is lost

Every message says what is wrong and what to do about it. ``EngineBusy`` is the only one that a
caller should answer by trying again with the same input.
"""


class ChromaError(Exception):
    """Base of everything that this package raises on purpose."""


class ConfigError(ChromaError, ValueError):
    """A setting is unknown, out of range or not supported; the message names the field."""


class CheckpointError(ChromaError):
    """A checkpoint is missing, damaged or of another model; the message names file and key."""


class AudioError(ChromaError, ValueError):
    """Audio cannot be used; the message says why and what would be accepted."""


class VoiceError(AudioError):
    """A reference clip or its transcript cannot be used as a voice."""


class SessionClosed(ChromaError):
    """The session has been closed and takes no more calls."""


class EngineError(ChromaError):
    """The engine could not do what was asked of it."""


class EngineBusy(EngineError):
    """No room became free before the deadline; the same call may succeed later."""


class EngineClosed(EngineError):
    """The engine was never started or has been closed."""


class EngineFailed(EngineError):
    """The engine died of an internal error; its sessions are lost."""
