"""Makes chroma-tiny: Chroma's architecture in the released layout, small enough to ship.

Its weights are random: it exercises every part of the machinery and speaks noise. Tokenizer, chat
template and feature settings are real files, read as those of the released model are.

Run::

    python -m chroma_plugin.training.tiny chroma_plugin/assets/chroma-tiny
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.config import CODEBOOKS, ChromaConfig
from chroma_plugin.model.layers import Rope
from chroma_plugin.model.weights import released_layout

VOCABULARY = 640
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|text_start|>",
    "<|text_end|>",
]
CODEBOOK_SIZE = 256
SPECIAL_CODES = 3
LEVEL = 0.05
"""RMS of the noise that the random codec speaks: about -26 dBFS."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'audio' -%}<|audio_bos|><|AUDIO|><|audio_eos|>
{%- else -%}{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""

TEXT = """
You are Chroma, an advanced virtual human. You can understand what you hear and answer in speech.
Hello, how are you today? I am well, thank you. And you? Good morning. Good evening. Good night.
What is the capital of France? The capital of France is Paris. The capital of Italy is Rome. The
capital of Germany is Berlin. The capital of Japan is Tokyo. The capital of Spain is Madrid. What
time is it? It is half past nine. It is a quarter to seven. It is noon. It is midnight. What is
two plus three? Two plus three is five. And plus two? That makes seven. Ten minus four is six. How
do you spell house? House is spelt h, o, u, s, e. Please count to five. One, two, three, four,
five. Who are you? My name is Chroma. I am a voice assistant. Say after me: the sun is shining.
What is the weather like? I do not know the weather, I am sorry. Could you say that again, please?
How do I make a taco? Warm a tortilla, add beans, cheese and salsa, and fold it. Thank you very
much. The quick brown fox jumps over the lazy dog, and then it sleeps in the warm afternoon sun.
Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday. January, February, March, April,
May. June, July, August, September, October, November, December. Red, green, blue, yellow, black
and white. six seven eight nine ten eleven twelve thirteen fourteen fifteen twenty thirty forty
fifty hundred
system user assistant
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 640 entries with Chroma's special tokens, in the released file format."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.strip().splitlines(), trainer)
    free = VOCABULARY - len(SPECIAL) - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<|unused_{i}|>" for i in range(free)])  # so that ids are where they are
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """config.json with the released keys, small sizes, and a word on its weights."""
    token = {name: tokenizer.get_vocab()[name] for name in SPECIAL}
    llama = {
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "audio_num_codebooks": CODEBOOKS,
        "vocab_size": CODEBOOK_SIZE + SPECIAL_CODES,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    }
    return {
        "model_type": "chroma",
        "chroma_plugin_weights": "random",
        "audio_num_codebooks": CODEBOOKS,
        "audio_frame_freq": 1920,
        "codebook_pad_token_id": CODEBOOK_SIZE + SPECIAL_CODES - 1,
        "codebook_eos_token_id": 0,
        "text_start_token_id": token["<|text_start|>"],
        "text_end_token_id": token["<|text_end|>"],
        "im_end_token_id": token["<|im_end|>"],
        "thinker_config": {
            "model_type": "qwen2_5_omni_thinker",
            "audio_token_index": token["<|AUDIO|>"],
            "audio_start_token_id": token["<|audio_bos|>"],
            "audio_end_token_id": token["<|audio_eos|>"],
            "tie_word_embeddings": False,
            "audio_config": {
                "num_mel_bins": 128,
                "d_model": 64,
                "encoder_layers": 2,
                "encoder_attention_heads": 4,
                "encoder_ffn_dim": 192,
                "activation_function": "gelu",
                "max_source_positions": 1500,
                "n_window": 100,
                "output_dim": 96,
            },
            "text_config": {
                "vocab_size": VOCABULARY,
                "hidden_size": 96,
                "intermediate_size": 256,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "hidden_act": "silu",
                "rms_norm_eps": 1e-6,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1000000.0,
                    "mrope_section": [4, 4, 4],
                },
            },
        },
        "backbone_config": llama
        | {
            "model_type": "chroma_backbone",
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "head_dim": 24,
            "max_position_embeddings": 2048,
        },
        "decoder_config": llama
        | {
            "model_type": "chroma_decoder",
            "audio_embedding_dim": 96,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "head_dim": 16,
            "max_position_embeddings": 33,
        },
        "codec_config": {
            "model_type": "mimi",
            "sampling_rate": 24000,
            "audio_channels": 1,
            "hidden_size": 64,
            "num_filters": 8,
            "num_residual_layers": 1,
            "upsampling_ratios": [8, 6, 5, 4],
            "kernel_size": 7,
            "last_kernel_size": 3,
            "residual_kernel_size": 3,
            "dilation_growth_rate": 2,
            "use_causal_conv": True,
            "pad_mode": "constant",
            "compress": 2,
            "trim_right_ratio": 1.0,
            "codebook_size": CODEBOOK_SIZE,
            "codebook_dim": 32,
            "vector_quantization_hidden_dimension": 32,
            "num_quantizers": CODEBOOKS,
            "num_semantic_quantizers": 1,
            "use_conv_shortcut": False,
            "upsample_groups": 64,
            "num_hidden_layers": 2,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "hidden_act": "gelu",
            "max_position_embeddings": 8000,
            "norm_eps": 1e-5,
            "sliding_window": 250,
            "layer_scale_initial_scale": 0.01,
            "attention_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }


def make_model(config: dict[str, Any], seed: int = 0) -> ChromaModel:
    """Random weights whose speech is soft noise rather than clipping or silence."""
    torch.manual_seed(seed)
    model = ChromaModel(ChromaConfig.from_dict(config, "chroma-tiny"))
    for name, tensor in model.named_parameters():
        if tensor.dim() >= 2:
            nn.init.normal_(tensor, std=tensor[0].numel() ** -0.5)
        elif name.endswith(".scale"):
            nn.init.constant_(tensor, 0.3)
    for name, tensor in model.codec.state_dict(keep_vars=True).items():
        if name.endswith("embed_sum"):
            nn.init.normal_(tensor)
        elif name.endswith("cluster_usage") or name.endswith("initialized"):
            nn.init.ones_(tensor)
    for module in model.modules():
        if isinstance(module, Rope):
            module.reset()
    model.codec.finalize()
    model.eval().requires_grad_(False)
    codes = torch.randint(CODEBOOK_SIZE, (1, CODEBOOKS, 50))
    last = dict(model.codec.named_parameters())["decoder.layers.14.conv.weight"]
    last.mul_(LEVEL / model.codec.decode(codes).std())
    return model


def save_checkpoint(model: ChromaModel, folder: Path, dtype: torch.dtype) -> None:
    """Writes model.safetensors under the released names."""
    tensors = {}
    for key, place in released_layout(model).items():
        value = place.tensor.detach()
        if place.first_row is not None:
            value = value[place.first_row : place.first_row + place.rows]
        tensors[key] = value.to(dtype).contiguous().clone()
    path = folder / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def main(folder: Path) -> None:
    """Writes the whole checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=128).save_pretrained(folder)
    config = make_config(tokenizer)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_checkpoint(make_model(config), folder, torch.bfloat16)
    total = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{folder}: {total / 1e6:.1f} MB, random weights")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
