"""Codes of records: the codec's own, made once, in several variants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from chroma_plugin.audio import FRAME_SAMPLES
from chroma_plugin.errors import ChromaError
from chroma_plugin.model.codec import Codec, CodecConfig
from chroma_plugin.training.codes import codec_key, encode_folder, encode_shard
from chroma_plugin.training.data import DataPlan, build
from chroma_plugin.training.records import Records, Shard, codes_of
from tests.model.test_codec import SMALL
from tests.training.test_data import Hum


class Ruler(torch.nn.Module):
    """Code k of a frame is its sample at k * 240, in steps of 1 / 500."""

    num_codebooks = 8

    def __init__(self, zero: int = 1000) -> None:
        super().__init__()
        self.zero = torch.nn.Parameter(torch.tensor(float(zero)))

    @torch.no_grad()
    def encode(self, audio: torch.Tensor) -> torch.Tensor:
        frames = audio.reshape(len(audio), -1, 8, FRAME_SAMPLES // 8)[..., 0]
        return (frames * 500 + self.zero).round().long().transpose(1, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    plan = DataPlan(train=4, heldout=2, shard_dialogues=2, speaker_dialogues=2, turns=(1, 2))
    build(plan, tmp_path, speaker=Hum())
    return tmp_path


def test_the_first_variant_is_what_the_codec_makes_of_the_clip(folder: Path) -> None:
    torch.manual_seed(0)
    mimi = Codec(CodecConfig.from_dict(SMALL))
    for name, tensor in mimi.named_parameters():  # so that sound, not biases, makes the codes
        if tensor.dim() >= 2:
            torch.nn.init.normal_(tensor, std=(2 / tensor[0].numel()) ** 0.5)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(tensor)
    for name, tensor in mimi.state_dict(keep_vars=True).items():
        if name.endswith("embed_sum"):
            torch.nn.init.normal_(tensor, std=0.05)
        elif name.endswith(("cluster_usage", "initialized")):
            torch.nn.init.ones_(tensor)
    mimi.finalize()
    assert encode_shard(mimi, folder / "train-00000", variants=1, batch=3)
    shard = Records(folder).shards[0]
    for clip in [clip for clip in Records(folder).clips if clip.shard.path == shard.path]:
        samples = clip.samples()
        whole = np.pad(samples, (0, -len(samples) % FRAME_SAMPLES))
        wanted = mimi.encode(torch.from_numpy(whole)[None, None])[0].numpy()
        codes = clip.codes()
        assert codes.dtype == np.int16 and codes.shape == (8, len(whole) // FRAME_SAMPLES)
        assert len(np.unique(codes[0])) > 3
        assert np.mean(codes == wanted) > 0.98  # a tie may fall the other way in a batch


def test_other_variants_begin_elsewhere_in_a_frame_and_at_another_level(folder: Path) -> None:
    encode_shard(Ruler(), folder / "train-00000", variants=4, seed=5)
    clip = Records(folder)[0].turns[0].answer
    samples, found = clip.samples(), set()
    for variant in range(4):
        values = (clip.codes(variant).T.reshape(-1) - 1000) / 500
        shifts = range(0, FRAME_SAMPLES) if variant else [0]
        fits = {}
        for shift in shifts:
            placed = np.pad(samples, (shift, -(len(samples) + shift) % FRAME_SAMPLES))[::240]
            if len(placed) == len(values):
                gain = float(placed @ values / (placed @ placed))
                fits[float(np.abs(placed * gain - values).max())] = shift, gain
        assert min(fits) < 0.0025
        shift, gain = fits[min(fits)]
        assert abs(20 * np.log10(gain)) < 2.6
        found.add((shift, round(gain, 2)))
    assert (0, 1.0) in found and len(found) == 4


def test_codes_are_made_once_for_a_codec(folder: Path) -> None:
    mimi, path = Ruler(), folder / "train-00000"
    assert encode_shard(mimi, path, variants=2)
    before = codes_of(path).read_bytes()
    assert not encode_shard(mimi, path, variants=2)
    assert codes_of(path).read_bytes() == before
    codes_of(path).unlink()
    assert encode_shard(mimi, path, variants=2) and codes_of(path).read_bytes() == before
    assert encode_shard(mimi, path, variants=3)
    assert encode_shard(mimi, path, variants=3, seed=1)
    assert encode_shard(Ruler(900), path, variants=3, seed=1)
    assert codec_key(mimi) == codec_key(Ruler()) != codec_key(Ruler(900))


def test_progress_tells_of_every_shard(folder: Path) -> None:
    told: list[str] = []
    assert encode_folder(Ruler(), folder, told.append, variants=1) == 3
    assert len(told) == 3 and told[-1].startswith("codes of 3/3 shards, 3 made")
    assert encode_folder(Ruler(), folder, told.append, variants=1) == 0


def test_no_shard_and_no_variants_are_refused(folder: Path) -> None:
    with pytest.raises(ChromaError, match="train-00099"):
        encode_shard(Ruler(), folder / "train-00099")
    with pytest.raises(ChromaError, match="0 variants"):
        encode_shard(Ruler(), folder / "train-00000", variants=0)


def test_a_damaged_file_of_codes_is_made_anew(folder: Path) -> None:
    path = folder / "train-00000"
    codes_of(path).write_bytes(b"half")
    assert encode_shard(Ruler(), path, variants=1)
    assert Shard(path).encoded.variants == 1
