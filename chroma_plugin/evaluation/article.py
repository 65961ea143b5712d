"""The figures that Chroma 1.0 was published with, to stand beside ours.

Source: the article on Chroma 1.0, its sections on voice cloning, latency and benchmarks.
"""

from __future__ import annotations

SIMILARITY = 0.81
"""Speaker similarity of Chroma on SEED-TTS-EVAL's English list."""
HUMAN_SIMILARITY = 0.73
"""Of the human recordings of the same texts."""
COSYVOICE_SIMILARITY = 0.72
"""Of CosyVoice 3."""

PREFERENCES: dict[str, tuple[float, float, float]] = {
    "naturalness": (24.4, 57.2, 18.3),
    "similarity": (40.6, 42.4, 17.0),
}
"""Percent of the votes for Chroma, for ElevenLabs (eleven_multilingual_v2), and deuce."""
ELEVENLABS_TO_RECORDINGS = (92.0, 8.0)
"""Percent that hold ElevenLabs, and the original recordings, for the more natural."""

LATENCY: dict[str, float] = {
    "reasoner_ms": 119.12,
    "backbone_ms": 8.48,
    "decoder_ms": 19.27,
    "total_ms": 146.87,
    "rtf": 0.43,
}
"""One stream on one H200: time to first token by part; the decoder is the depth decoder."""
REPLY_S, REPLY_TOOK_S = 38.80, 16.58
"""The reply that the latency was measured on, and how long it took."""

URO: dict[str, float] = {
    "StoralEval": 71.14,
    "TruthfulEval": 51.69,
    "Gsm8kEval": 22.74,
    "MLC": 60.26,
    "CommonEval": 62.07,
}
"""Scores of 100 on URO-Bench's basic track. The article writes Storal, TruthfulQA, GSM8K, MLC and
CommonVoice; the keys are the names of the sets in the benchmark's own files."""
URO_OVERALL = 57.44
URO_OVERALL_BEST = 69.09
"""Of GLM-4-Voice, the best of the comparison."""


def relative_gain(ours: float, baseline: float) -> float:
    """How much more one is than the other: 0.81 to 0.73 is 0.1096, the article's 10.96%."""
    return ours / baseline - 1
