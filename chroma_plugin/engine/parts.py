"""What an engine takes from a checkpoint: the model on its device, the prompt format, the mel
features."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chroma_plugin.config import EngineConfig
from chroma_plugin.errors import ConfigError
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.listener import LogMel
from chroma_plugin.model.prompt import ChatPrompt, PromptFormat, feature_extractor
from chroma_plugin.model.weights import find_checkpoint, load_checkpoint


@dataclass(frozen=True, slots=True)
class Parts:
    """What a checkpoint gives an engine."""

    model: ChromaModel
    prompt: PromptFormat
    mel: LogMel


def load_parts(config: EngineConfig) -> Parts:
    """Loads the checkpoint that a configuration names.

    Raises:
        CheckpointError: it cannot be found or loaded.
        ConfigError: the device is not there, or cannot compute with weights quantised this way.
    """
    cuda = torch.cuda.is_available()
    device = ("cuda" if cuda else "cpu") if config.device == "auto" else config.device
    if device.startswith("cuda") and not cuda:
        raise ConfigError(
            f"EngineConfig.device is {device!r}, but torch sees no CUDA device. Use "
            'device="cpu", or run `chroma-plugin doctor` to see what is wrong.'
        )
    dtype = {"auto": torch.bfloat16 if device != "cpu" else torch.float32}.get(
        config.dtype
    ) or getattr(torch, config.dtype)
    folder = find_checkpoint(config.model)
    model = load_checkpoint(folder, device, dtype, config.quantize)
    prompt = ChatPrompt.from_checkpoint(folder, model.config.audio_token)
    return Parts(model, prompt, LogMel(feature_extractor(folder)))
