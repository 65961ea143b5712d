"""What a benchmark runs on: weights of three sizes, random unless a checkpoint is named.

Speed does not depend on what the weights say, so sizes are enough. Tokenizer, chat template and
mel features are those of the packaged chroma-tiny; its token ids fit into every vocabulary here.
"""

from __future__ import annotations

import copy
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chroma_plugin.bench.report import Facts, megabytes_free
from chroma_plugin.config import DEFAULT_MODEL, EngineConfig, Quantize
from chroma_plugin.engine.parts import Parts, load_parts
from chroma_plugin.errors import ChromaError, ConfigError
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.config import CODEBOOKS, ChromaConfig
from chroma_plugin.model.listener import LogMel
from chroma_plugin.model.memory import cache_bytes, empty_model, weight_bytes
from chroma_plugin.model.prompt import ChatPrompt, feature_extractor
from chroma_plugin.model.quantize import PIECE, QuantRows, count_weights, named_weights
from chroma_plugin.model.weights import find_checkpoint

LEVEL = 0.05
"""RMS of the noise that a random codec speaks: about -26 dBFS, so that it counts as sound."""
SPARE = 1.1
"""Memory asked for, as a multiple of what weights and caches take."""

Size = Literal["tiny", "small", "real"]


@dataclass(frozen=True, slots=True)
class Setup:
    """What a benchmark is asked to run on; the fields are the options of the command.

    Raises:
        ConfigError: two of them contradict each other.
    """

    size: Size | None = None
    model: str | None = None
    random_weights: bool = False
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int | None = None
    seed: int = 0
    quantize: Quantize = "none"
    graphs: bool = True

    def __post_init__(self) -> None:
        if self.model is not None and self.size is not None:
            raise ConfigError(
                "--size and --model exclude each other: a checkpoint has its own sizes. "
                "Add --random-weights to --model to take its sizes without its weights."
            )

    @property
    def weights(self) -> str:
        """Where they come from, for the report."""
        return "random" if self.model is None or self.random_weights else str(self.model)

    def engine_config(self, rows: int = 1, **changes: Any) -> EngineConfig:
        """An engine's settings for so many conversations at once."""
        settings: dict[str, Any] = {
            "model": self.model or DEFAULT_MODEL,
            "device": self.device,
            "dtype": self.dtype,
            "quantize": self.quantize,
            "cuda_graphs": self.graphs,
            "num_threads": self.threads,
            "max_replies": rows,
            "thinker_rows": rows,
            "max_sessions": max(4 * rows, 64),
            "thinker_positions": 2048,
            "repeat_stop_frames": 10_000,  # noise may repeat itself; it is to go on all the same
        }
        return EngineConfig(**settings | changes)

    def load(self, rows: int = 1) -> Parts:
        """Loads or draws the weights.

        Args:
            rows: conversations at once, for the memory that their caches take.

        Raises:
            CheckpointError: the checkpoint cannot be loaded.
            ChromaError: there is too little memory.
            ConfigError: the device is not there.
        """
        with ThreadPoolExecutor(max_workers=1) as pool:  # the main thread computes nothing: see
            return pool.submit(self._load, rows).result()  # `PlainLoop.runs`

    def _load(self, rows: int) -> Parts:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        config = self.engine_config(rows)
        if self.model is None and self.size in ("small", "real"):
            return random_parts(config, sizes(self.size), self.seed)
        if self.random_weights and self.model is not None:
            folder = find_checkpoint(self.model)
            return random_parts(config, ChromaConfig.from_folder(folder), self.seed)
        return load_parts(config)

    def facts(self, parts: Parts) -> Facts:
        """What the report says of this run."""
        dtype = str(parts.model.dtype).removeprefix("torch.")
        return Facts.gather(
            size=self.size or ("tiny" if self.model is None else "model"),
            weights=self.weights,
            seed=self.seed,
            device=parts.model.device,
            dtype=dtype if self.quantize == "none" else f"{dtype}, weights {self.quantize}",
            parameters=count_weights(parts.model),
        )


# -- sizes -----------------------------------------------------------------------------------


def sizes(size: Size) -> ChromaConfig:
    """The sizes and token ids of a name."""
    folder = find_checkpoint(DEFAULT_MODEL)
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return ChromaConfig.from_dict(_merged(raw, _CHANGES[size]), f"--size {size}", f"--size {size}")


def _stack(width: int, inner: int, layers: int, heads: int, kv: int, dim: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": dim,
    }


def _tower(width: int, inner: int, layers: int, heads: int, out: int) -> dict[str, Any]:
    return {
        "d_model": width,
        "encoder_ffn_dim": inner,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "output_dim": out,
    }


def _codec(width: int, inner: int, filters: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_filters": filters,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": 64,
        "codebook_size": 2048,
        "codebook_dim": width // 2,
        "vector_quantization_hidden_dimension": width // 2,
        "upsample_groups": width,
        "sliding_window": 250,
    }


_CODES = {"vocab_size": 2051}
_CHANGES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {
        "codebook_pad_token_id": 2050,
        "thinker_config": {
            "text_config": _stack(512, 1536, 6, 8, 2, 64)
            | {"rope_parameters": {"mrope_section": [8, 12, 12]}},
            "audio_config": _tower(256, 1024, 4, 4, 512),
        },
        "backbone_config": _stack(512, 1536, 6, 8, 2, 64) | _CODES,
        "decoder_config": _stack(256, 1024, 2, 4, 2, 64) | {"audio_embedding_dim": 512} | _CODES,
        "codec_config": _codec(128, 512, 16, 2, 2),
    },
    "real": {
        "codebook_pad_token_id": 2050,
        "thinker_config": {
            "text_config": _stack(2048, 11008, 36, 16, 2, 128)
            | {"vocab_size": 151_936, "rope_parameters": {"mrope_section": [16, 24, 24]}},
            "audio_config": _tower(1280, 5120, 32, 20, 2048),
        },
        "backbone_config": _stack(2048, 8192, 16, 32, 8, 64) | _CODES,
        "decoder_config": _stack(1024, 8192, 4, 8, 2, 128) | {"audio_embedding_dim": 2048} | _CODES,
        "codec_config": _codec(512, 2048, 64, 8, 8) | {"num_quantizers": 32},
    },
}
"""What differs from the packaged config.json: the sizes alone. The thetas of the rotations (1e6 in
the thinker, 5e5 elsewhere) are the released ones there too."""


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(base)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) else value
    return merged


# -- random weights --------------------------------------------------------------------------


def random_parts(config: EngineConfig, sizes: ChromaConfig, seed: int) -> Parts:
    """Parts with random weights, made straight on the device.

    Raises:
        ChromaError: they do not fit into its memory.
        ConfigError: the device is not there, or cannot compute with weights quantised this way.
    """
    cuda = torch.cuda.is_available()
    device = ("cuda" if cuda else "cpu") if config.device == "auto" else config.device
    if device.startswith("cuda") and not cuda:
        raise ConfigError(f"--device {device}: torch sees no CUDA device. Use --device cpu.")
    auto = torch.float32 if device == "cpu" else torch.bfloat16
    dtype: torch.dtype = auto if config.dtype == "auto" else getattr(torch, config.dtype)
    require_memory(config, sizes, torch.device(device), dtype)
    folder = find_checkpoint(config.model)
    model = random_model(sizes, torch.device(device), dtype, seed, config.quantize)
    prompt = ChatPrompt.from_checkpoint(folder, sizes.audio_token)
    return Parts(model, prompt, LogMel(feature_extractor(folder)))


def require_memory(
    config: EngineConfig, sizes: ChromaConfig, device: torch.device, dtype: torch.dtype
) -> None:
    """Refuses what would not fit, by the sizes alone.

    Raises:
        ChromaError: weights and caches take more than is free.
    """
    held = weight_bytes(sizes, dtype, config.quantize) + cache_bytes(sizes, dtype, config)
    needed, free = SPARE * held / 1e6, megabytes_free(device)
    if needed > free:
        raise ChromaError(
            f"{sizes.name}: weights and caches of {config.max_replies} conversations need about "
            f"{needed / 1000:.1f} GB in {dtype} on {device}, and {free / 1000:.1f} GB are free. "
            "Use --size small, --dtype bfloat16, --quantize int8, fewer conversations or a larger "
            "machine."
        )


@torch.no_grad()
def random_model(
    sizes: ChromaConfig,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    quantize: Quantize = "none",
) -> ChromaModel:
    """Weights drawn where they will stay: no second copy, no file. They speak soft noise.

    A seed draws the same weights, whatever they are stored in.
    """
    model = empty_model(sizes, device, dtype, quantize)
    torch.manual_seed(seed)
    for name, weight in sorted(named_weights(model), key=lambda item: item[0]):
        kind = torch.float32 if name.startswith("codec.") else dtype
        if len(weight.shape) >= 2:
            _draw(weight, kind, device, heads=name == "depth.heads")
        else:
            assert isinstance(weight, Tensor)
            weight.fill_(0.3 if name.endswith(".scale") else float(not name.endswith("bias")))
    for name, buffer in model.codec.named_buffers():
        if name.endswith("embed_sum"):
            buffer.normal_()
        else:
            buffer.fill_(1)
    model.codec.finalize()
    model.eval().requires_grad_(False)
    codes = torch.randint(sizes.codebook_size, (1, CODEBOOKS, 25), device=device)
    last = [m for m in model.codec.decoder.modules() if isinstance(m, nn.Conv1d)][-1]
    last.weight.mul_(LEVEL / model.codec.decode(codes).std())
    return model


def _draw(
    weight: Tensor | QuantRows, dtype: torch.dtype, device: torch.device, *, heads: bool
) -> None:
    """Fills a matrix a piece at a time, so that what goes in as 1 comes out as about 1."""
    rows, *rest = weight.shape
    std = (rest[0] if heads else math.prod(rest)) ** -0.5
    step = max(PIECE // math.prod(rest), 1)
    for first in range(0, rows, step):
        piece = torch.empty(min(step, rows - first), *rest, dtype=dtype, device=device)
        weight[first : first + step].copy_(piece.normal_(std=std))
