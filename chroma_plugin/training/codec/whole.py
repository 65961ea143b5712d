"""Whole segments through the served codec's modules, with gradients.

Serving writes contexts and keys in place, a frame at a time, and computes no gradient. Here all
positions of a segment are there at once: zeros lie before the first one, as in a new state. The
weights are the very ones that serve; a test holds both passes to each other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chroma_plugin.model.codec import Codec
from chroma_plugin.model.layers import rotate
from chroma_plugin.model.seanet import CausalConv, CausalConvTranspose, ResidualBlock, SeaNet
from chroma_plugin.model.window import TransformerLayer, WindowTransformer


def encode_whole(codec: Codec, audio: Tensor) -> Tensor:
    """What the quantizer gets: `[B, 1, 1920 * T]` -> `[B, hidden, T]`."""
    x = _through(codec.encoder, audio)
    return _convolve(codec.downsample, _attend(codec.encoder_transformer, x))


def decode_whole(codec: Codec, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the quantizer gives to audio.

    Args:
        codec: its weights are used.
        x: `[B, hidden, T]`.

    Returns:
        Audio `[B, 1, 1920 * T]`, and the decoder transformer's output `[B, hidden, 2 * T]`.
    """
    hidden = _attend(codec.decoder_transformer, _transpose(codec.upsample, x))
    return _through(codec.decoder, hidden), hidden


def _through(net: SeaNet | ResidualBlock, x: Tensor) -> Tensor:
    layers = net.layers if isinstance(net, SeaNet) else net.block
    for layer in layers:
        if isinstance(layer, CausalConv):
            x = _convolve(layer, x)
        elif isinstance(layer, CausalConvTranspose):
            x = _transpose(layer, x)
        elif isinstance(layer, ResidualBlock):
            x = x + _through(layer, x)
        else:
            x = F.elu(x)
    return x


def _convolve(layer: CausalConv, x: Tensor) -> Tensor:
    past = layer.context_shape[1]
    y: Tensor = layer.conv(F.pad(x, (past, 0), mode="replicate" if layer.replicate else "constant"))
    return y


def _transpose(layer: CausalConvTranspose, x: Tensor) -> Tensor:
    """By torch's own: for a whole segment it is faster than the served sum, and equal to it."""
    conv, stride = layer.conv, layer.stride
    return F.conv_transpose1d(
        F.pad(x, (1, 0)), conv.weight, conv.bias, stride, padding=stride, groups=conv.groups
    )


def _attend(net: WindowTransformer, x: Tensor) -> Tensor:
    config, x = net.config, x.transpose(1, 2)
    at = torch.arange(x.shape[1], device=x.device)
    age = at[:, None] - at
    visible = (age >= 0) & (age < config.window)  # [T, T]
    exponents = torch.arange(0, config.head_dim, 2, device=x.device).float() / config.head_dim
    angles = at[:, None].float() / config.rope_theta**exponents
    angles = torch.cat((angles, angles), dim=-1)  # [T, head_dim]
    turn = angles.cos(), angles.sin()
    for layer in net.layers:
        assert isinstance(layer, TransformerLayer)
        x = _layer(layer, x, turn, visible)
    return x.transpose(1, 2)


def _layer(
    layer: TransformerLayer, x: Tensor, turn: tuple[Tensor, Tensor], visible: Tensor
) -> Tensor:
    own = layer.self_attn
    y = layer.input_layernorm(x)
    q, k, v = (_heads(project, y, own.heads) for project in (own.q_proj, own.k_proj, own.v_proj))
    y = F.scaled_dot_product_attention(rotate(q, *turn), rotate(k, *turn), v, visible)
    x = x + layer.self_attn_layer_scale(own.o_proj(y.transpose(1, 2).flatten(2)))
    added: Tensor = layer.mlp_layer_scale(layer.mlp(layer.post_attention_layernorm(x)))
    return x + added


def _heads(project: nn.Module, x: Tensor, heads: int) -> Tensor:
    y: Tensor = project(x).unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, heads, T, head_dim]
    return y
