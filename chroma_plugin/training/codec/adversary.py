"""A small judge of spectrograms that is trained against the codec: what sharpens harmonics.

Without it a codec learns the mean of what could have been; with it, one of them. It costs about as
much as the codec itself, so it is for a GPU.

Sources: multi-scale STFT discriminator of EnCodec (arXiv 2210.13438, section 3.4); hinge loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chroma_plugin.training.codec.losses import spectrum

WINDOWS = (2048, 1024, 512)


class _Scale(nn.Module):
    """One window: complex spectrogram to a map of opinions."""

    def __init__(self, window: int, channels: int) -> None:
        super().__init__()
        self.window = window
        shapes = [(2, channels, 1), *[(channels, channels, 2)] * 3, (channels, channels, 1)]
        self.layers = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(
                nn.Conv2d(inputs, outputs, (9, 3), (stride, 1), padding=(4, 1))
            )
            for inputs, outputs, stride in shapes
        )
        self.last = nn.Conv2d(channels, 1, (3, 3), padding=(1, 1))

    def forward(self, samples: Tensor) -> list[Tensor]:
        """`[B, n]` -> features of each layer, and the opinions last."""
        parts = torch.view_as_real(spectrum(samples, self.window, self.window // 4))
        size = (parts.square().sum(dim=-1, keepdim=True) + 1e-6).sqrt()
        x = (parts * size**-0.7).permute(0, 3, 1, 2)  # magnitudes to the power of 0.3
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return [*features, self.last(x)]


class Adversary(nn.Module):
    """Tells made speech from real speech, in three windows.

    Args:
        channels: of every layer.
    """

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.scales = nn.ModuleList(_Scale(window, channels) for window in WINDOWS)

    def losses(self, made: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Both sides' losses; their sum may go backward at once.

        `judge` trains this module alone; `fool` and `alike` (features of both against each other)
        train the codec alone.

        Args:
            made: `[B, n]`, with gradients.
            real: `[B, n]`.
        """
        zero = made.new_zeros(())
        sums = {"judge": zero, "fool": zero, "alike": zero}
        for scale in self.scales:
            of_real, of_made = scale(real), scale(made.detach())
            judge = F.relu(1 - of_real[-1]).mean() + F.relu(1 + of_made[-1]).mean()
            with _frozen(scale):
                seen = scale(made)
            alike = zero
            for a, b in zip(seen[:-1], of_real[:-1], strict=True):
                goal = b.detach()
                alike = alike + (a - goal).abs().mean() / (goal.abs().mean() + 1e-3)
            sums["judge"] = sums["judge"] + judge
            sums["fool"] = sums["fool"] - seen[-1].mean()
            sums["alike"] = sums["alike"] + alike / (len(seen) - 1)
        return {name: value / len(self.scales) for name, value in sums.items()}


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Gradients pass through, and none stay."""
    parameters = list(module.parameters())
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
