"""Makes chroma-tiny: Chroma's architecture in the released layout, small enough to ship.

`make_tiny` gives the files and the model of a set of sizes. Its weights are random: it exercises
every part of the machinery and speaks noise, until the trainers have been at it. Tokenizer, chat
template and feature settings are real files, read as those of the released model are.

Run::

    python -m chroma_plugin.training.tiny FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

from chroma_plugin.errors import ConfigError
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.config import CODEBOOKS, ChromaConfig
from chroma_plugin.model.layers import Rope
from chroma_plugin.model.weights import released_layout

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
SPECIAL_CODES = 3
MEL_BINS = 128
INPUT_SIZE = 0.3
"""RMS of what goes into a stack that is about to be trained."""
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


@dataclass(frozen=True, slots=True)
class StackSizes:
    """Sizes of one transformer, named as in `config.json`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def section(self) -> dict[str, int]:
        """The fields of `config.json`."""
        return asdict(self) | {"head_dim": self.head_dim}


@dataclass(frozen=True, slots=True)
class TinySizes:
    """What may differ between one small Chroma and another; thinker and backbone are of one width.

    Attributes:
        vocabulary: entries of the tokenizer, special ones included.
        text, audio, backbone, depth: the transformers; of `audio` the key/value heads do not count.
        codec: the two transformers of the codec, likewise; `num_filters` are its convolutions'.
        codebook_size, codebook_dim: entries of a codebook, and their width.
        window: positions of 25 Hz that the codec's transformers look back.
    """

    vocabulary: int
    text: StackSizes
    audio: StackSizes
    backbone: StackSizes
    depth: StackSizes
    codec: StackSizes
    num_filters: int
    codebook_size: int
    codebook_dim: int
    window: int

    def __post_init__(self) -> None:
        if self.text.hidden_size != self.backbone.hidden_size:
            raise ConfigError(
                f"TinySizes: text is {self.text.hidden_size} wide and backbone "
                f"{self.backbone.hidden_size}; they must be equal."
            )
        for field in fields(self):
            stack = getattr(self, field.name)
            if isinstance(stack, StackSizes) and stack.hidden_size % stack.num_attention_heads:
                raise ConfigError(
                    f"TinySizes.{field.name}: hidden_size {stack.hidden_size} must be a multiple "
                    f"of num_attention_heads, {stack.num_attention_heads}."
                )


SMALLEST = TinySizes(
    vocabulary=640,
    text=StackSizes(96, 256, 2, 4, 2),
    audio=StackSizes(64, 192, 2, 4, 4),
    backbone=StackSizes(96, 256, 3, 4, 2),
    depth=StackSizes(64, 128, 2, 4, 2),
    codec=StackSizes(64, 128, 2, 4, 4),
    num_filters=8,
    codebook_size=256,
    codebook_dim=32,
    window=250,
)
"""As small as the layout goes: with random weights it is what tests run on."""

TRAINABLE = TinySizes(
    vocabulary=1000,
    text=StackSizes(192, 512, 3, 6, 3),
    audio=StackSizes(160, 640, 3, 4, 4),
    backbone=StackSizes(192, 512, 5, 6, 3),
    depth=StackSizes(128, 384, 2, 4, 2),
    codec=StackSizes(128, 256, 2, 4, 4),
    num_filters=16,
    codebook_size=512,
    codebook_dim=64,
    window=50,
)
"""Large enough to learn to listen and to speak in a small domain; 18 MB with a codec in float16,
24 MB in float32."""


def make_tokenizer(
    texts: Iterable[str] = TEXT.strip().splitlines(), vocabulary: int = SMALLEST.vocabulary
) -> PreTrainedTokenizerFast:
    """A byte-level BPE with Chroma's special tokens, in the released file format.

    Args:
        texts: what its merges are learnt from.
        vocabulary: how many entries it has; where the texts give fewer, unused ones fill it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    free = vocabulary - len(SPECIAL) - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<|unused_{i}|>" for i in range(free)])  # so that ids are where they are
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_config(tokenizer: PreTrainedTokenizerFast, sizes: TinySizes = SMALLEST) -> dict[str, Any]:
    """config.json with the released keys, small sizes, and a word on its weights."""
    token = {name: tokenizer.get_vocab()[name] for name in SPECIAL}
    audio, codec = sizes.audio, sizes.codec
    turns = sizes.text.head_dim // 2  # of rotary positions: 16, 24, 24 of 64 in the released one
    time = turns // 4
    space = (turns - time) // 2
    llama = {
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "audio_num_codebooks": CODEBOOKS,
        "vocab_size": sizes.codebook_size + SPECIAL_CODES,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    }
    return {
        "model_type": "chroma",
        "chroma_plugin_weights": "random",
        "audio_num_codebooks": CODEBOOKS,
        "audio_frame_freq": 1920,
        "codebook_pad_token_id": sizes.codebook_size + SPECIAL_CODES - 1,
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
                "num_mel_bins": MEL_BINS,
                "d_model": audio.hidden_size,
                "encoder_layers": audio.num_hidden_layers,
                "encoder_attention_heads": audio.num_attention_heads,
                "encoder_ffn_dim": audio.intermediate_size,
                "activation_function": "gelu",
                "max_source_positions": 1500,
                "n_window": 100,
                "output_dim": sizes.text.hidden_size,
            },
            "text_config": {"vocab_size": sizes.vocabulary}
            | asdict(sizes.text)
            | {
                "hidden_act": "silu",
                "rms_norm_eps": 1e-6,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1000000.0,
                    "mrope_section": [turns - 2 * space, space, space],
                },
            },
        },
        "backbone_config": llama
        | sizes.backbone.section
        | {
            "model_type": "chroma_backbone",
            "max_position_embeddings": 2048,
        },
        "decoder_config": llama
        | sizes.depth.section
        | {
            "model_type": "chroma_decoder",
            "audio_embedding_dim": sizes.backbone.hidden_size,
            "max_position_embeddings": 33,
        },
        "codec_config": {
            "model_type": "mimi",
            "sampling_rate": 24000,
            "audio_channels": 1,
            "hidden_size": codec.hidden_size,
            "num_filters": sizes.num_filters,
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
            "codebook_size": sizes.codebook_size,
            "codebook_dim": sizes.codebook_dim,
            "vector_quantization_hidden_dimension": sizes.codebook_dim,
            "num_quantizers": CODEBOOKS,
            "num_semantic_quantizers": 1,
            "use_conv_shortcut": False,
            "upsample_groups": codec.hidden_size,
            "num_hidden_layers": codec.num_hidden_layers,
            "intermediate_size": codec.intermediate_size,
            "num_attention_heads": codec.num_attention_heads,
            "num_key_value_heads": codec.num_attention_heads,
            "head_dim": codec.head_dim,
            "hidden_act": "gelu",
            "max_position_embeddings": 8000,
            "norm_eps": 1e-5,
            "sliding_window": sizes.window,
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
    codes = torch.randint(model.config.codebook_size, (1, CODEBOOKS, 50))
    last = dict(model.codec.named_parameters())["decoder.layers.14.conv.weight"]
    last.mul_(LEVEL / model.codec.decode(codes).std())
    return model


@torch.no_grad()
def ready_to_learn(model: ChromaModel) -> ChromaModel:
    """Random weights at scales that training starts well from, all of them trainable.

    Inputs of a stack are of one size, whatever they stand for, and what a block adds is small.
    """
    thinker, backbone = model.thinker, model.backbone
    for stack in (thinker.transformer, backbone.transformer, model.depth.transformer):
        for name, weight in stack.named_parameters():
            if name.endswith(("attention.out.weight", "mlp.down.weight")):
                weight.mul_((2 * stack.config.layers) ** -0.5)
    for name, weight in thinker.audio_tower.named_parameters():
        if name.endswith(("out_proj.weight", "fc2.weight")):
            weight.mul_((2 * thinker.audio_tower.config.layers) ** -0.5)
    nn.init.normal_(thinker.embedding.weight, std=INPUT_SIZE)
    thinker.audio_tower.proj.weight.mul_(INPUT_SIZE)
    nn.init.normal_(backbone.audio_embedding.table.weight, std=INPUT_SIZE * CODEBOOKS**-0.5)
    return model.requires_grad_(True).train()


def sharpen(model: ChromaModel, temperature: float) -> None:
    """Makes codes drawn at temperature 1 what they were at this one: divides their heads by it.

    Args:
        model: is changed in place. Its heads are no embeddings, so nothing else changes.
        temperature: above 0.
    """
    with torch.no_grad():
        model.backbone.codebook0_head.weight.div_(temperature)
        model.depth.heads.div_(temperature)


def save_checkpoint(
    model: ChromaModel,
    folder: Path,
    dtype: torch.dtype,
    codec_dtype: torch.dtype | None = None,
) -> None:
    """Writes model.safetensors under the released names.

    Args:
        model: whose weights.
        folder: where; it must exist.
        dtype: how they are stored.
        codec_dtype: how those of the codec are; as the others if None.
    """
    tensors = {}
    for key, place in released_layout(model).items():
        value = place.tensor.detach()
        if place.first_row is not None:
            value = value[place.first_row : place.first_row + place.rows]
        kind = codec_dtype if codec_dtype and key.startswith("codec_model.") else dtype
        tensors[key] = value.to(kind).contiguous().clone()
    path = folder / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def make_tiny(
    folder: Path, sizes: TinySizes = SMALLEST, texts: Iterable[str] | None = None, seed: int = 0
) -> ChromaModel:
    """Writes every file of a small checkpoint but its weights, and makes the model.

    Args:
        folder: where; made if missing.
        sizes: of the model and its tokenizer.
        texts: what the tokenizer learns its entries from; None: a few everyday sentences.
        seed: of the weights, which are random.

    Raises:
        CheckpointError: the sizes do not fit each other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(TEXT.strip().splitlines() if texts is None else texts,
                               sizes.vocabulary)  # fmt: skip
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=MEL_BINS).save_pretrained(folder)
    config = make_config(tokenizer, sizes)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return make_model(config, seed)


def main(folder: Path) -> None:
    """Writes a checkpoint of random weights."""
    save_checkpoint(make_tiny(folder), folder, torch.bfloat16)
    total = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{folder}: {total / 1e6:.1f} MB, random weights")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
