"""A checkpoint of random weights, as small as the released layout goes: it exercises every part and
speaks noise. Made once a run; what the packaged one says may change without a test noticing.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from chroma_plugin.training.tiny import make_tiny, save_checkpoint

_place = TemporaryDirectory(prefix="chroma-miniature-", ignore_cleanup_errors=True)

MINIATURE = Path(_place.name)
"""The folder; it goes when the run ends."""

save_checkpoint(make_tiny(MINIATURE), MINIATURE, torch.bfloat16)
