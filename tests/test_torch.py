"""What is taken for granted of torch on this machine: float32 convolutions that are right.

The codec is made of them. It stays in float32 whatever the rest is in, since three digits, which is
what bfloat16 has, are audibly too few; so no convolution of it is ever run in bfloat16 on the CPU.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from chroma_plugin.model.weights import load_checkpoint
from tests.miniature import MINIATURE


def by_hand(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int,
    dilation: int,
    padding: int,
    groups: int,
) -> Tensor:
    """A convolution in float64, one output at a time."""
    rows, channels, length = x.shape
    made, _, taps = weight.shape
    signal = np.zeros((rows, channels, length + 2 * padding))
    signal[..., padding : padding + length] = x.numpy()
    kernel, level = weight.double().numpy(), bias.double().numpy()
    count = (signal.shape[-1] - dilation * (taps - 1) - 1) // stride + 1
    out = np.zeros((rows, made, count))
    inside, outside = channels // groups, made // groups
    for channel in range(made):
        first = channel // outside * inside
        for step in range(count):
            begin = step * stride
            end = begin + dilation * (taps - 1) + 1
            window = signal[:, first : first + inside, begin:end:dilation]
            out[:, channel, step] = (window * kernel[channel]).sum(axis=(1, 2)) + level[channel]
    return torch.from_numpy(out)


@pytest.mark.parametrize(
    ("channels", "made", "taps", "options"),
    [
        (1, 8, 7, {}),  # the codec's first
        (8, 4, 3, {"dilation": 2}),
        (8, 16, 8, {"stride": 4}),
        (16, 32, 16, {"stride": 8}),
        (32, 1, 3, {}),  # its last
        (16, 16, 4, {"stride": 2, "groups": 16}),
        (32, 64, 1, {}),
        (128, 64, 3, {"padding": 1}),  # the audio tower's
        (64, 64, 3, {"padding": 1, "stride": 2}),
    ],
)
def test_float32_convolutions(channels: int, made: int, taps: int, options: dict[str, int]) -> None:
    options = {"stride": 1, "dilation": 1, "padding": 0, "groups": 1} | options
    layer = nn.Conv1d(channels, made, taps, **options)  # type: ignore[arg-type]
    x = torch.randn(2, channels, 75)
    with torch.no_grad():
        got = layer(x)
        wanted = by_hand(x, layer.weight, layer.bias, **options)  # type: ignore[arg-type]
    assert got.dtype == torch.float32
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() < 2e-6 * wanted.abs().max()


@pytest.mark.parametrize(("channels", "stride", "groups"), [(16, 8, 1), (8, 4, 1), (16, 2, 16)])
def test_float32_transposed_convolutions(channels: int, stride: int, groups: int) -> None:
    layer = nn.ConvTranspose1d(channels, 16, 2 * stride, stride=stride, groups=groups)
    x = torch.randn(2, channels, 20)
    wanted = torch.zeros(2, 16, 21 * stride, dtype=torch.float64)
    inside, outside = channels // groups, 16 // groups
    with torch.no_grad():
        kernel = layer.weight.double()
        for step in range(20):
            for group in range(groups):
                into = slice(group * inside, (group + 1) * inside)
                out = slice(group * outside, (group + 1) * outside)
                piece = torch.einsum("bi,iot->bot", x[:, into, step].double(), kernel[into])
                wanted[:, out, step * stride : (step + 2) * stride] += piece
        wanted += layer.bias[:, None].double()
        got = layer(x)
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() < 2e-6 * wanted.abs().max()


def test_the_codec_stays_in_float32() -> None:
    model = load_checkpoint(MINIATURE, dtype=torch.bfloat16)
    parts = {"thinker": model.thinker, "backbone": model.backbone, "depth": model.depth}
    for name, part in parts.items():
        assert {p.dtype for p in part.parameters()} == {torch.bfloat16}, name
    assert {p.dtype for p in model.codec.parameters()} == {torch.float32}
    buffers = [b for b in model.codec.buffers() if b.is_floating_point()]
    assert {b.dtype for b in buffers} == {torch.float32}
    codes = torch.randint(model.config.codebook_size, (1, 8, 3))
    audio = model.codec.decode(codes)
    assert audio.dtype == torch.float32
    whole = load_checkpoint(MINIATURE)
    assert torch.equal(audio, whole.codec.decode(codes))
    assert torch.equal(model.codec.encode(audio), whole.codec.encode(audio))
