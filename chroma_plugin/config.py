"""Settings of an engine and of a conversation: small frozen dataclasses that validate themselves.

Nothing here knows torch: devices and dtypes are words until the engine starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from chroma_plugin.errors import ConfigError

DEFAULT_MODEL = "chroma-tiny"
"""The checkpoint inside this package."""
RELEASED_MODEL = "FlashLabs/Chroma-4B"
"""The released weights on the Hugging Face hub."""

DEFAULT_INSTRUCTIONS = (
    "You are Chroma, an advanced virtual human created by the FlashLabs. You possess the ability "
    "to understand auditory inputs and generate both text and speech."
)
"""The system prompt that the released model was made with."""

TRANSCRIPT_INSTRUCTIONS = "Write down what was said."
"""The system prompt that makes a thinker trained here transcribe the user instead of answering."""

DepthPositions = Literal["generate", "training"]
Quantize = Literal["none", "int8", "fp8", "int4"]


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _between(owner: str, field: str, value: float, low: float, high: float) -> None:
    _require(
        _is_number(value) and low <= value <= high,  # which nan is not
        f"{owner}.{field} is {value!r}; it must be a number from {low:g} to {high:g}.",
    )


def _whole(owner: str, field: str, value: float, low: int, high: int) -> None:
    _between(owner, field, value, low, high)
    _require(isinstance(value, int), f"{owner}.{field} is {value!r}; it must be a whole number.")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the codes of a reply are drawn. The text is always greedy, as in the released model.

    Attributes:
        temperature: 0 takes the likeliest code every time; the released default is 1.0.
        top_k: draw among the k likeliest codes; 0 means all.
        top_p: draw among the fewest codes whose probabilities add up to p; 1.0 means all.
        seed: the same seed gives the same speech, whatever else the engine is doing. None
            draws a new one for each reply.
        repetition_penalty: a sound (a code of codebook 0) becomes so many times less likely with
            each time that it was used in the last 32 frames (2.56 s); 1.0, the default, is the
            released model. Greedy codes obey it too; the end of speech is never made less likely.
            1.1 ends most loops: what fills all of the window is 21 times less likely, and what
            came twice 1.2 times.

    Raises:
        ConfigError: a field is out of range, or not of its kind.
    """

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    seed: int | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        _between("SamplingParams", "temperature", self.temperature, 0.0, 5.0)
        _whole("SamplingParams", "top_k", self.top_k, 0, 1_000_000)
        _between("SamplingParams", "top_p", self.top_p, 0.0, 1.0)
        _require(self.top_p > 0, "SamplingParams.top_p is 0; use temperature=0 for greedy codes.")
        if self.seed is not None:
            _whole("SamplingParams", "seed", self.seed, 0, 2**63 - 1)
        _between("SamplingParams", "repetition_penalty", self.repetition_penalty, 1.0, 5.0)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> SamplingParams:
        """Makes one of options that come from outside: a file, a request, a host's settings.

        Raises:
            ConfigError: an option is unknown, out of range or not of its kind; names it.
        """
        _require(
            isinstance(options, Mapping),
            f"Sampling options are of type {type(options).__name__}; use a mapping of names.",
        )
        known = [field.name for field in fields(cls)]
        unknown = sorted(repr(name) for name in options if name not in known)
        _require(
            not unknown,
            f"Sampling options not supported: {', '.join(unknown)}. Those that are: "
            f"{', '.join(known)}.",
        )
        return cls(**options)

    @property
    def is_argmax(self) -> bool:
        """Codes are the likeliest and nothing else: no noise is drawn, no history looked at."""
        return self.temperature == 0 and self.repetition_penalty == 1


GREEDY = SamplingParams(temperature=0.0, top_k=0)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine loads and how much it takes on.

    Attributes:
        model: ``chroma-tiny`` (inside this package), a checkpoint folder, or a hub id.
        device: ``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto`` (bfloat16 on CUDA, float32 elsewhere), ``float32`` or ``bfloat16``. The
            codec is always float32: in bfloat16 it is audibly wrong.
        quantize: ``none``, ``int8``, ``fp8`` or ``int4``: bits that the weights of the linear
            layers are stored in, for GPUs that are too small for `dtype`. The codec, embeddings
            and everything computed keep theirs. `chroma-plugin doctor` says which one fits.
        max_replies: conversations that may speak at the same time (rows of the batch).
        max_sessions: conversations that may be open at the same time.
        thinker_rows: conversations whose thinker cache is held at the same time; the idlest one
            gives way, and its cache is rebuilt when it goes on. None: four times `max_replies`.
        queue_timeout_s: how long a turn, or a new session, waits for room before `EngineBusy`.
        run_ahead_s: how far a reply may be made ahead of its playback, so that a barge-in wastes
            little; `math.inf` makes it as fast as it goes, for work that nobody listens to live.
        max_reply_s: a reply is ended cleanly at this length.
        max_turn_s: what a user says beyond this length in one turn is not heard.
        thinker_positions: positions a conversation may take in the thinker; the oldest turns
            are forgotten when it is full (25 positions are a second of user audio).
        backbone_positions: positions of one reply, voice prompt included; the model was made
            for 2,048.
        depth_positions: ``generate`` numbers the depth decoder's positions 0, 0, 1, ..., 6 as the
            released model's own generation does; ``training`` numbers them 0, 1, ..., 7.
        repeat_stop_frames: a reply ends when this many frames in a row carry the same codes.
        voice_cache: voice prompts kept ready; the least recently used goes first.
        voice_cache_mb: megabytes (10**6 bytes) that they may take, on the model's device. A
            voice that alone takes more is computed anew for each reply.
        cuda_graphs: replay the steps as captured CUDA graphs; without, the same results, slower.
        time_parts: on CUDA, time the backbone and the depth decoder apart, which takes two graphs a
            frame instead of one.
        transcript_instructions: the system prompt under which the thinker writes down what a user
            said, for `Session.transcribe`; as the checkpoint learnt it.
        num_threads: CPU threads of torch; None is one for a small model, torch's choice otherwise.
    """

    model: str | Path = DEFAULT_MODEL
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantize: Quantize = "none"
    max_replies: int = 4
    max_sessions: int = 64
    thinker_rows: int | None = None
    queue_timeout_s: float = 5.0
    run_ahead_s: float = 2.0
    max_reply_s: float = 60.0
    max_turn_s: float = 60.0
    thinker_positions: int = 4096
    backbone_positions: int = 2048
    depth_positions: DepthPositions = "generate"
    repeat_stop_frames: int = 25
    voice_cache: int = 32
    voice_cache_mb: float = 512.0
    cuda_graphs: bool = True
    time_parts: bool = False
    transcript_instructions: str = TRANSCRIPT_INSTRUCTIONS
    num_threads: int | None = None

    def __post_init__(self) -> None:
        def check(field: str, low: float, high: float) -> None:
            _between("EngineConfig", field, getattr(self, field), low, high)

        def check_whole(field: str, low: int, high: int) -> None:
            _whole("EngineConfig", field, getattr(self, field), low, high)

        _require(bool(str(self.model)), "EngineConfig.model is empty; name a folder or a hub id.")
        _require(
            isinstance(self.device, str)
            and (self.device in ("auto", "cpu", "cuda") or self.device.startswith("cuda:")),
            f"EngineConfig.device is {self.device!r}; use auto, cpu, cuda or cuda:N.",
        )
        _require(
            self.dtype in ("auto", "float32", "bfloat16"),
            f"EngineConfig.dtype is {self.dtype!r}; use auto, float32 or bfloat16.",
        )
        _require(
            self.quantize in ("none", "int8", "fp8", "int4"),
            f"EngineConfig.quantize is {self.quantize!r}; use none, int8, fp8 or int4.",
        )
        _require(
            self.depth_positions in ("generate", "training"),
            f"EngineConfig.depth_positions is {self.depth_positions!r}; "
            "use generate (as the released model speaks) or training.",
        )
        check_whole("max_replies", 1, 4096)
        check_whole("max_sessions", 1, 65536)
        if self.thinker_rows is not None:
            check_whole("thinker_rows", self.max_replies, 65536)
        check("queue_timeout_s", 0.0, 3600.0)
        _require(
            _is_number(self.run_ahead_s) and self.run_ahead_s >= 0.5,
            f"EngineConfig.run_ahead_s is {self.run_ahead_s!r}; it must be at least 0.5 seconds; "
            "math.inf is no bound.",
        )
        check("max_reply_s", 0.08, 3600.0)
        check("max_turn_s", 0.1, 3600.0)
        check_whole("thinker_positions", 64, 1_000_000)
        check_whole("backbone_positions", 64, 1_000_000)
        check_whole("repeat_stop_frames", 2, 1_000_000)
        check_whole("voice_cache", 1, 1_000_000)
        check("voice_cache_mb", 0.0, 1e9)
        _require(
            isinstance(self.transcript_instructions, str)
            and bool(self.transcript_instructions.strip()),
            f"EngineConfig.transcript_instructions is {self.transcript_instructions!r}; tell the "
            "model in words to write down what it hears.",
        )
        if self.num_threads is not None:
            check_whole("num_threads", 1, 1024)

    @property
    def thinker_cache_rows(self) -> int:
        """Rows of the thinker's cache that are lent to conversations."""
        return 4 * self.max_replies if self.thinker_rows is None else self.thinker_rows
