"""Codes of all targets and reference clips of a shard, made once by a codec.

Each clip is encoded several times: as it is, and begun at a random place within a frame and at a
random level. Trained on the one and only code of each clip, a small backbone learns it by heart.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save

from chroma_plugin.audio import FRAME_SAMPLES, Samples, replace_file
from chroma_plugin.errors import ChromaError
from chroma_plugin.model.codec import Codec
from chroma_plugin.training.records import Encoded, Kind, Shard, codes_of

GAIN_DB = 2.4
"""Levels of variants lie within this of the clip's own."""


def codec_key(codec: Codec) -> str:
    """A hash of a codec's weights: codes of one are no codes of another."""
    digest = hashlib.sha256()
    for name, tensor in sorted(codec.state_dict().items()):
        digest.update(name.encode() + str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def encode_shard(
    codec: Codec,
    path: str | Path,
    *,
    variants: int = 4,
    seed: int = 0,
    batch: int = 16,
    key: str | None = None,
) -> bool:
    """Makes a shard's codes, unless this codec has made as many variants of them before.

    Args:
        codec: finalized; it runs where its weights are.
        path: the shard, without any suffix: `folder / "train-00007"`.
        variants: how often each clip is encoded; the first time as it is.
        seed: what shifts and levels are drawn by.
        batch: clips encoded at a time, clips of much the same length together.
        key: of `codec_key`, where it is known already.

    Returns:
        Whether they had to be made.

    Raises:
        ChromaError: there is no such shard.
    """
    if variants < 1:
        raise ChromaError(f"{variants} variants; 1 or more are needed.")
    shard = Shard(Path(path))
    key = f"{key or codec_key(codec)} {seed}"
    if _made(codes_of(shard.path)) == (key, variants):
        return False
    rng = np.random.default_rng([seed, *shard.path.name.encode()])
    tensors: dict[str, NDArray[np.generic]] = {}
    for kind, spans in shard.spans.items():
        shifts = rng.integers(0, FRAME_SAMPLES, (variants, len(spans)))
        gains = 10 ** (rng.uniform(-GAIN_DB, GAIN_DB, shifts.shape) / 20)
        shifts[0], gains[0] = 0, 1
        rows = [
            _encoded(codec, shard, kind, shift, gain, batch)
            for shift, gain in zip(shifts, gains, strict=True)
        ]
        frames = [[codes.shape[1] for codes in row] for row in rows]
        flat = [codes for row in rows for codes in row]
        empty = np.zeros((codec.num_codebooks, 0), np.int16)
        tensors[f"{kind}_codes"] = np.concatenate([empty, *flat], axis=1)
        tensors[f"{kind}_frames"] = np.array(frames, np.int64).reshape(variants, len(spans))
        tensors[f"{kind}_shifts"] = shifts.astype(np.int16)
        tensors[f"{kind}_gains"] = gains.astype(np.float32)
    replace_file(codes_of(shard.path), save(tensors, {"codec": key}))
    return True


def encode_folder(
    codec: Codec,
    folder: str | Path,
    progress: Callable[[str], None] | None = None,
    *,
    variants: int = 4,
    seed: int = 0,
    batch: int = 16,
) -> int:
    """Makes the codes of every shard in a folder that has none of this codec.

    Returns:
        How many shards were encoded.
    """
    key, start, made = codec_key(codec), time.monotonic(), 0
    names = sorted(path.stem for path in Path(folder).glob("*-[0-9]*[0-9].jsonl"))
    for number, name in enumerate(names, 1):
        path = Path(folder) / name
        made += encode_shard(codec, path, variants=variants, seed=seed, batch=batch, key=key)
        if progress:
            seconds = time.monotonic() - start
            progress(f"codes of {number}/{len(names)} shards, {made} made, {seconds:.1f} s")
    return made


def _made(path: Path) -> tuple[str, int] | None:
    """By which codec and in how many variants codes are there; None where none can be used."""
    try:
        there = Encoded(path)
    except ChromaError:
        return None
    return there.key, there.variants


def _encoded(
    codec: Codec,
    shard: Shard,
    kind: Kind,
    shifts: NDArray[np.integer],
    gains: NDArray[np.floating],
    batch: int,
) -> list[NDArray[np.int16]]:
    """Codes `[K, F]` of every clip of a kind, each begun `shifts` samples into its first frame."""
    spans = shard.spans[kind]
    by_length = sorted(range(len(spans)), key=lambda place: spans[place][1] - spans[place][0])
    device = next(codec.parameters()).device
    done: dict[int, NDArray[np.int16]] = {}
    for first in range(0, len(by_length), batch):
        places = by_length[first : first + batch]
        clips = [_varied(shard.audio(kind, *spans[p]), shifts[p], gains[p]) for p in places]
        audio = np.zeros((len(clips), 1, max(len(clip) for clip in clips)), np.float32)
        for row, clip in enumerate(clips):
            audio[row, 0, : len(clip)] = clip
        codes = codec.encode(torch.from_numpy(audio).to(device)).cpu().numpy().astype(np.int16)
        for row, place in enumerate(places):
            done[place] = codes[row, :, : len(clips[row]) // FRAME_SAMPLES]
    return [done[place] for place in range(len(spans))]


def _varied(samples: Samples, shift: int, gain: float) -> Samples:
    """The clip so many samples later, at another level, filled up to whole frames."""
    peak = float(np.abs(samples).max(initial=1e-9))
    after = -(len(samples) + int(shift)) % FRAME_SAMPLES
    return np.pad(samples * np.float32(min(gain, 1 / peak)), (int(shift), after))
