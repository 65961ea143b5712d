"""Training a codec from speech: what it learns from, by what, and how good it becomes."""

from chroma_plugin.training.codec.corpus import Corpus, make_corpus
from chroma_plugin.training.codec.judge import judge
from chroma_plugin.training.codec.trainer import CodecPlan, read_codec, small_config, train_codec

__all__ = [
    "CodecPlan",
    "Corpus",
    "judge",
    "make_corpus",
    "read_codec",
    "small_config",
    "train_codec",
]
