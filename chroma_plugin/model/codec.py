"""Mimi, the codec: 24 kHz speech to 12.5 frames of codes a second and back, as a stream.

A step takes whole frames and a state with one row per conversation; the one-shot calls are a fresh
state and its steps. Rows never look at each other: each may join late, stall or start anew. Shapes
are fixed and nothing is read back to the host, so that a step can be captured as a CUDA graph.
Always float32: in bfloat16 the speech is audibly wrong. The codec knows nothing of turns and of
who owns a row.

Exact streaming keeps, per convolution, the last `(k - 1) * d + 1 - stride` inputs; per transposed
convolution (kernel twice the stride) the last input; and for the transformer a ring of keys and
values, of which a position sees the last 250 (10 s).

Sources: Mimi (Defossez et al. 2024, arXiv 2410.00037, section 3.3); kyutai moshi
`modules/seanet.py`, `modules/conv.py`, `modules/transformer.py`; transformers `modeling_mimi.py`.
Module names follow the released weights: `codec_model.` + a name here is the name in the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from chroma_plugin.audio import FRAME_SAMPLES, OUTPUT_RATE_HZ
from chroma_plugin.errors import AudioError, CheckpointError, ConfigError
from chroma_plugin.model.quantizer import SplitQuantizer
from chroma_plugin.model.seanet import (
    CausalConv,
    CausalConvTranspose,
    ConvStep,
    ResidualBlock,
    SeaNet,
)
from chroma_plugin.model.window import KeyRing, WindowConfig, WindowTransformer

CODEBOOKS = 8
FRAME_STEPS = 2
"""Positions of Mimi's transformers in one frame: they run at 25 Hz."""
MAX_PIECE_FRAMES = 8
"""Longer input is cut into pieces of this many frames, so that the rings stay small."""

_IMPLEMENTED = {
    "model_type": "mimi",
    "sampling_rate": OUTPUT_RATE_HZ,
    "frame_rate": OUTPUT_RATE_HZ / FRAME_SAMPLES,
    "_frame_rate": OUTPUT_RATE_HZ / FRAME_SAMPLES,
    "audio_channels": 1,
    "use_causal_conv": True,
    "pad_mode": "constant",
    "trim_right_ratio": 1.0,
    "use_conv_shortcut": False,
    "hidden_act": "gelu",
    "attention_bias": False,
    "rope_scaling": None,
}
"""Fields that change the maths, and their one value that is implemented."""


@dataclass(frozen=True, slots=True)
class CodecConfig:
    """Sizes of a Mimi, named as in `config.json`; the defaults are those of the released one.

    Attributes:
        upsampling_ratios: strides of the audio decoder; the encoder takes them in reverse.
        codebook_dim: channels of a codebook entry.
        num_quantizers: codebooks in the file; a `Codec` builds only as many as it is asked for.
        num_semantic_quantizers: how many of these are semantic; the rest are acoustic.
        sliding_window: positions of 25 Hz that a position sees, itself included.
    """

    hidden_size: int = 512
    num_filters: int = 64
    num_residual_layers: int = 1
    upsampling_ratios: tuple[int, ...] = (8, 6, 5, 4)
    kernel_size: int = 7
    last_kernel_size: int = 3
    residual_kernel_size: int = 3
    dilation_growth_rate: int = 2
    compress: int = 2
    codebook_size: int = 2048
    codebook_dim: int = 256
    num_quantizers: int = 32
    num_semantic_quantizers: int = 1
    upsample_groups: int = 512
    num_hidden_layers: int = 8
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    head_dim: int = 64
    sliding_window: int = 250
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0

    @property
    def transformer(self) -> WindowConfig:
        """Sizes of each of the two transformers."""
        return WindowConfig(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            layers=self.num_hidden_layers,
            heads=self.num_attention_heads,
            head_dim=self.head_dim,
            window=self.sliding_window,
            norm_eps=self.norm_eps,
            rope_theta=self.rope_theta,
        )

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "codec_config") -> CodecConfig:
        """Reads the `codec_config` section of a checkpoint's `config.json`.

        Args:
            raw: the section. A field that is not in it has its released value.
            where: what messages call the section.

        Raises:
            CheckpointError: a field is not of the right kind, does not fit another one, or asks for
                maths that this package does not implement; names the field.
        """

        def check(ok: bool, key: str, wanted: str) -> None:
            if not ok:
                raise CheckpointError(f"{where}.{key} is {given.get(key)!r}; it must be {wanted}.")

        given = {key: value for key, value in raw.items() if value is not None}
        for key, wanted in _IMPLEMENTED.items():
            check(given.get(key, wanted) == wanted, key, f"{wanted!r}, all that is implemented")
        rope = given.setdefault("rope_parameters", {})
        check(isinstance(rope, Mapping), "rope_parameters", "a section")
        check(rope.get("rope_type", "default") == "default", "rope_parameters", "of type 'default'")
        given["rope_theta"] = rope.get("rope_theta", given.get("rope_theta", cls().rope_theta))

        ratios = given.setdefault("upsampling_ratios", list(cls().upsampling_ratios))
        whole = isinstance(ratios, list | tuple) and all(_is_size(ratio) for ratio in ratios)
        check(
            whole and math.prod(ratios) * FRAME_STEPS == FRAME_SAMPLES,
            "upsampling_ratios",
            f"whole numbers with the product {FRAME_SAMPLES // FRAME_STEPS}",
        )
        sizes: dict[str, Any] = {"upsampling_ratios": tuple(ratios)}
        for field in fields(cls):
            if field.name in ("norm_eps", "rope_theta"):
                value = given.setdefault(field.name, field.default)
                number = isinstance(value, int | float) and not isinstance(value, bool)
                check(number and 0 < value < math.inf, field.name, "a number above 0")
                sizes[field.name] = float(value)
            elif field.name not in ("upsampling_ratios", "head_dim"):
                value = sizes[field.name] = given.setdefault(field.name, field.default)
                check(_is_size(value), field.name, "a whole number above 0")

        hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
        sizes["head_dim"] = given.setdefault("head_dim", hidden // heads)
        check(_is_size(sizes["head_dim"]) and sizes["head_dim"] % 2 == 0, "head_dim", "even")
        kv_heads = given.setdefault("num_key_value_heads", heads)
        check(kv_heads == heads, "num_key_value_heads", f"num_attention_heads ({heads})")
        inner = given.setdefault("vector_quantization_hidden_dimension", sizes["codebook_dim"])
        check(inner != hidden, "vector_quantization_hidden_dimension", "other than hidden_size")
        check(inner == sizes["codebook_dim"], "codebook_dim", f"that of its projection ({inner})")
        check(hidden % sizes["upsample_groups"] == 0, "upsample_groups", f"a divisor of {hidden}")
        semantic, levels = sizes["num_semantic_quantizers"], sizes["num_quantizers"]
        check(semantic < levels, "num_semantic_quantizers", f"less than num_quantizers ({levels})")
        return cls(**sizes)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclass(slots=True, eq=False)
class _State:
    """One row per conversation; the memory a step reads and writes in place.

    Attributes:
        contexts: the last inputs of each convolution in turn, float32 `[rows, channels, n]`.
        ring: the transformer's keys and values.
    """

    contexts: list[Tensor]
    ring: KeyRing

    @property
    def rows(self) -> int:
        return self.ring.offset.shape[0]

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor of the state; the first axis of each is the row."""
        return [*self.contexts, self.ring.keys, self.ring.values, self.ring.offset]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def reset(self, row: int) -> None:
        """Makes a row new: its next step is the first of a conversation."""
        for tensor in self.tensors:
            tensor[row].zero_()


class DecodeState(_State):
    """Where each row's decoding stands.

    A row takes 8.7 MB at the released sizes: 8 layers of 265 keys and values of 512 channels
    (8.68 MB) and the convolutions' inputs (30 kB).
    """

    __slots__ = ()


class EncodeState(_State):
    """Where each row's encoding stands; a row takes 8.7 MB at the released sizes."""

    __slots__ = ()


def _audio_encoder(config: CodecConfig) -> SeaNet:
    channels = config.num_filters
    layers: list[nn.Module] = [CausalConv(1, channels, config.kernel_size)]
    for ratio in reversed(config.upsampling_ratios):
        layers += _residuals(config, channels)
        layers += [nn.ELU(), CausalConv(channels, 2 * channels, 2 * ratio, stride=ratio)]
        channels *= 2
    last = CausalConv(channels, config.hidden_size, config.last_kernel_size)
    return SeaNet([*layers, nn.ELU(), last])


def _audio_decoder(config: CodecConfig) -> SeaNet:
    channels = config.num_filters * 2 ** len(config.upsampling_ratios)
    layers: list[nn.Module] = [CausalConv(config.hidden_size, channels, config.kernel_size)]
    for ratio in config.upsampling_ratios:
        layers += [nn.ELU(), CausalConvTranspose(channels, channels // 2, ratio)]
        channels //= 2
        layers += _residuals(config, channels)
    return SeaNet([*layers, nn.ELU(), CausalConv(channels, 1, config.last_kernel_size)])


def _residuals(config: CodecConfig, channels: int) -> list[nn.Module]:
    inner, kernel = channels // config.compress, config.residual_kernel_size
    return [
        ResidualBlock(channels, inner, kernel, dilation=config.dilation_growth_rate**i)
        for i in range(config.num_residual_layers)
    ]


class Codec(nn.Module):
    """Mimi with 8 codebooks. Call `finalize` once, after the weights are in.

    Args:
        config: sizes.
        num_codebooks: how many of the file's codebooks to build: the first ones of a frame.

    Raises:
        ConfigError: no acoustic codebook is left, or more are asked for than there are.
    """

    def __init__(self, config: CodecConfig, num_codebooks: int = CODEBOOKS) -> None:
        super().__init__()
        semantic = config.num_semantic_quantizers
        if not semantic < num_codebooks <= config.num_quantizers:
            raise ConfigError(
                f"Codec.num_codebooks is {num_codebooks}; this checkpoint's can be from "
                f"{semantic + 1} to {config.num_quantizers}."
            )
        self.config, self.num_codebooks = config, num_codebooks
        hidden = config.hidden_size
        self.encoder = _audio_encoder(config)
        self.encoder_transformer = WindowTransformer(config.transformer)
        self.downsample = CausalConv(
            hidden, hidden, 2 * FRAME_STEPS, stride=FRAME_STEPS, bias=False, replicate=True
        )
        self.quantizer = SplitQuantizer(
            semantic=semantic,
            acoustic=num_codebooks - semantic,
            hidden_size=hidden,
            size=config.codebook_size,
            width=config.codebook_dim,
        )
        self.upsample = CausalConvTranspose(
            hidden, hidden, FRAME_STEPS, groups=config.upsample_groups, bias=False
        )
        self.decoder_transformer = WindowTransformer(config.transformer)
        self.decoder = _audio_decoder(config)

    def finalize(self) -> None:
        """Makes loaded weights ready for use: float32, frozen, codebooks computed."""
        self.float().requires_grad_(False).eval()
        self.quantizer.finalize()

    def new_decode_state(self, rows: int, device: torch.device | str | None = None) -> DecodeState:
        """Memory to decode `rows` conversations, all at their start.

        Args:
            rows: the largest batch that steps on it.
            device: where; None is where the codec is.
        """
        return DecodeState(*self._memory((self.upsample, self.decoder), rows, device))

    def new_encode_state(self, rows: int, device: torch.device | str | None = None) -> EncodeState:
        """Memory to encode `rows` conversations, all at their start; see `new_decode_state`."""
        return EncodeState(*self._memory((self.encoder, self.downsample), rows, device))

    @torch.no_grad()
    def decode_step(
        self, codes: Tensor, state: DecodeState, active: Tensor | None = None
    ) -> Tensor:
        """The audio of the next frames; batch row i goes on where row i of the state stands.

        Args:
            codes: int64 `[B, K, T]`, B at most the state's rows. A code that the codebook does not
                have is read as the nearest one that it has.
            state: moved on in place.
            active: bool `[B]`: rows where it is False keep their state, and their audio means
                nothing; None: all are active.

        Returns:
            float32 `[B, 1, 1920 * T]`, 24 kHz, about -1 to 1 and not clipped.

        Raises:
            ValueError: codes, state and active do not fit each other.
        """
        if codes.dim() != 3 or codes.shape[1] != self.num_codebooks:
            raise ValueError(f"codes are {list(codes.shape)}, not [B, {self.num_codebooks}, T]")
        active = _all_or(active, codes, state)
        if not codes.shape[2]:
            return torch.zeros(len(codes), 1, 0, device=codes.device)
        with full_float32(codes.device):
            pieces = [
                self._decode_piece(piece, state, active)
                for piece in torch.split(codes, MAX_PIECE_FRAMES, dim=-1)
            ]
        return torch.cat(pieces, dim=-1)

    @torch.no_grad()
    def encode_step(
        self, audio: Tensor, state: EncodeState, active: Tensor | None = None
    ) -> Tensor:
        """The codes of the next frames; batch row i goes on where row i of the state stands.

        Args:
            audio: float `[B, 1, 1920 * T]`, 24 kHz, B at most the state's rows.
            state: moved on in place.
            active: bool `[B]`: rows where it is False keep their state, and their codes mean
                nothing; None: all are active.

        Returns:
            int64 `[B, K, T]`.

        Raises:
            AudioError: the audio is not mono, or no whole number of frames.
            ValueError: audio, state and active do not fit each other.
        """
        if audio.shape[-1] % FRAME_SAMPLES:
            raise AudioError(
                f"{audio.shape[-1]} samples are no whole number of frames; push audio in "
                f"multiples of {FRAME_SAMPLES} samples."
            )
        return self._encode(audio, state, active)

    def decode(self, codes: Tensor) -> Tensor:
        """The audio of whole clips: int64 `[B, K, T]` -> float32 `[B, 1, 1920 * T]`, 24 kHz.

        Raises:
            ValueError: the codes are of another shape.
        """
        return self.decode_step(codes, self.new_decode_state(len(codes), codes.device))

    def encode(self, audio: Tensor) -> Tensor:
        """The codes of whole clips: float `[B, 1, n]`, 24 kHz -> int64 `[B, K, ceil(n / 1920)]`.

        A last partial frame is filled as Mimi fills it: each convolution by itself.

        Raises:
            AudioError: the audio is not mono.
        """
        return self._encode(audio, self.new_encode_state(len(audio), audio.device), None)

    @torch.no_grad()
    def _encode(self, audio: Tensor, state: EncodeState, active: Tensor | None) -> Tensor:
        if audio.dim() != 3 or audio.shape[1] != 1:
            raise AudioError(f"Audio of shape {list(audio.shape)} is not [B, 1, samples], mono.")
        active = _all_or(active, audio, state)
        if not audio.shape[2]:
            return torch.zeros(
                len(audio), self.num_codebooks, 0, dtype=torch.int64, device=audio.device
            )
        with full_float32(audio.device):
            pieces = [
                self._encode_piece(piece, state, active)
                for piece in torch.split(audio.float(), MAX_PIECE_FRAMES * FRAME_SAMPLES, dim=-1)
            ]
        return torch.cat(pieces, dim=-1)

    def _decode_piece(self, codes: Tensor, state: DecodeState, active: Tensor) -> Tensor:
        step = _conv_step(state, active)
        x = self.upsample(self.quantizer.decode(codes), step)  # [B, hidden, 2 T]
        x = self.decoder_transformer(x, state.ring, active)
        audio: Tensor = self.decoder(x, step)
        return audio

    def _encode_piece(self, audio: Tensor, state: EncodeState, active: Tensor) -> Tensor:
        step = _conv_step(state, active)
        x = self.encoder(audio, step)  # [B, hidden, 2 T]
        x = self.encoder_transformer(x, state.ring, active)
        return self.quantizer.encode(self.downsample(x, step))

    def _memory(
        self,
        convolutions: tuple[nn.Module, nn.Module],
        rows: int,
        device: str | torch.device | None,
    ) -> tuple[list[Tensor], KeyRing]:
        at = self.upsample.conv.weight.device if device is None else torch.device(device)
        contexts = [
            torch.zeros(rows, *conv.context_shape, dtype=torch.float32, device=at)
            for part in convolutions
            for conv in part.modules()
            if isinstance(conv, CausalConv | CausalConvTranspose)
        ]
        longest = MAX_PIECE_FRAMES * FRAME_STEPS
        return contexts, KeyRing.empty(self.config.transformer, rows, longest, at)


def _conv_step(state: _State, active: Tensor) -> ConvStep:
    first = state.ring.offset[: len(active)] == 0
    return ConvStep(iter(state.contexts), active[:, None, None], first[:, None, None])


def _all_or(active: Tensor | None, batch: Tensor, state: _State) -> Tensor:
    if len(batch) > state.rows:
        raise ValueError(f"a batch of {len(batch)} rows on a state of {state.rows}")
    if active is None:
        return torch.ones(len(batch), dtype=torch.bool, device=batch.device)
    if active.shape != (len(batch),) or active.dtype != torch.bool:
        raise ValueError(f"active is {active.dtype} {list(active.shape)}, not bool [{len(batch)}]")
    return active


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Keeps CUDA from rounding float32 to TF32, which is cuDNN's default for convolutions."""
    cuda: list[Any] = [torch.backends.cudnn.conv, torch.backends.cuda.matmul]  # type: ignore[attr-defined]
    settings = cuda if device.type == "cuda" else []
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision
