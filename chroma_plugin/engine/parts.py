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


def find_device(device: str) -> str:
    """The device that is meant; `auto` is CUDA if there is one, else the CPU.

    Raises:
        ConfigError: it is not there.
    """
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if seen else "cpu"
    number = device.partition(":")[2] if ":" in device else "0"
    if device.startswith("cuda") and not (number.isdecimal() and int(number) < seen):
        there = f"CUDA devices 0 to {seen - 1} only" if seen else "no CUDA device"
        raise ConfigError(
            f"The device is {device!r} (EngineConfig.device, --device), but torch sees {there}. "
            "Use cpu or auto, or run `chroma-plugin doctor` to see what is wrong."
        )
    return device


def load_parts(config: EngineConfig) -> Parts:
    """Loads the checkpoint that a configuration names.

    Raises:
        CheckpointError: it cannot be found or loaded.
        ConfigError: the device is not there, or cannot compute with weights quantised this way.
    """
    device = find_device(config.device)
    dtype = {"auto": torch.bfloat16 if device != "cpu" else torch.float32}.get(
        config.dtype
    ) or getattr(torch, config.dtype)
    folder = find_checkpoint(config.model)
    model = load_checkpoint(folder, device, dtype, config.quantize)
    prompt = ChatPrompt.from_checkpoint(folder, model.config.audio_token)
    return Parts(model, prompt, LogMel(feature_extractor(folder)))
