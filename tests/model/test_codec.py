"""The codec: equal to transformers' Mimi and to recorded results, streamed or whole, row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from chroma_plugin.errors import AudioError, CheckpointError, ConfigError
from chroma_plugin.model.codec import Codec, CodecConfig, full_float32
from chroma_plugin.model.seanet import CausalConvTranspose, ConvStep
from tests.host_reads import NoHostReads

ASSETS = Path(__file__).parents[1] / "assets"
PREFIX = "codec_model."
SMALL = {
    "hidden_size": 32,
    "num_filters": 4,
    "codebook_size": 64,
    "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16,
    "upsample_groups": 32,
    "num_quantizers": 10,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
RENAMED = (  # current transformers -> released files
    ("encoder.encoder_seanet.", "encoder."),
    ("encoder.encoder_transformer.", "encoder_transformer."),
    ("encoder.downsample.", "downsample."),
    ("decoder.decoder_seanet.", "decoder."),
    ("decoder.decoder_transformer.", "decoder_transformer."),
    ("decoder.upsample.", "upsample."),
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_codes(rows: int, frames: int, seed: int = 0) -> Tensor:
    return torch.randint(64, (rows, 8, frames), generator=seeded(seed))


def noise(rows: int, samples: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 1, samples, generator=seeded(seed)) * 0.3


def error(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, in parts of the largest value."""
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.fixture(scope="module")
def mimi() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.MimiModel(transformers.MimiConfig(**SMALL)).eval()
    generator = seeded(1)
    with torch.no_grad():  # nothing that matters may be zero, one or tiny
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            noise = torch.rand(tensor.shape, generator=generator)
            if "layer_scale" in name:
                tensor.copy_(noise * 0.5)
            elif "layernorm" in name:
                tensor.copy_(noise + 0.5)
            elif name.endswith("embed_sum"):
                tensor.copy_(noise - 0.5)
                tensor[0] *= 1e-5
            elif name.endswith("cluster_usage"):
                tensor.copy_(noise + 0.5)
                tensor[0] = 0.0  # a dead entry, divided by the least usage instead
    return model


@pytest.fixture(scope="module")
def codec(mimi: Any) -> Codec:
    weights = {}
    for name, tensor in mimi.state_dict().items():
        for ours, released in RENAMED:
            if name.startswith(ours):
                name = released + name.removeprefix(ours)
        weights[name] = tensor
    codec = Codec(CodecConfig.from_dict(SMALL))
    codec.load_state_dict({name: weights[name] for name in codec.state_dict()})
    codec.finalize()
    return codec


class TestEqualToTransformers:
    def test_decode_past_the_window(self, mimi: Any, codec: Codec) -> None:
        codes = random_codes(2, 300)
        with torch.no_grad():
            wanted = mimi.decode(codes).audio_values
        assert error(codec.decode(codes), wanted) < 1e-5

    @pytest.mark.parametrize("samples", [1, 3, 959, 961, 1920, 4 * 1920 + 1000, 150 * 1920 - 7])
    def test_encode_with_any_end(self, mimi: Any, codec: Codec, samples: int) -> None:
        audio = noise(2, samples)
        with torch.no_grad():
            wanted = mimi.encode(audio, num_quantizers=8).audio_codes
        codes = codec.encode(audio)
        assert codes.dtype == torch.int64
        assert codes.shape == (2, 8, -(-samples // 1920))
        assert torch.equal(codes, wanted)


@pytest.fixture(scope="module")
def whole(codec: Codec) -> tuple[Tensor, Tensor]:
    codes = random_codes(2, 400)
    return codes, codec.decode(codes)


class TestStreaming:
    @pytest.mark.parametrize("frames", [1, 2, 3, 5, 64])
    def test_decode_in_pieces(
        self, codec: Codec, whole: tuple[Tensor, Tensor], frames: int
    ) -> None:
        codes, wanted = whole
        state = codec.new_decode_state(3)
        pieces = [codec.decode_step(piece, state) for piece in torch.split(codes, frames, -1)]
        assert error(torch.cat(pieces, -1), wanted) < 1e-5

    @pytest.mark.parametrize("frames", [1, 2, 3, 5, 64])
    def test_encode_in_pieces(self, codec: Codec, frames: int) -> None:
        audio = noise(2, 150 * 1920)
        state = codec.new_encode_state(2)
        pieces = [
            codec.encode_step(piece, state) for piece in torch.split(audio, frames * 1920, -1)
        ]
        assert torch.equal(torch.cat(pieces, -1), codec.encode(audio))

    def test_a_row_begins_anew_after_a_long_stream(self, codec: Codec) -> None:
        """The ring has gone round several times; what was in it leaves no trace."""
        codes, state = random_codes(1, 8), codec.new_decode_state(1)
        codec.decode_step(random_codes(1, 400, seed=1), state)
        state.reset(0)
        assert torch.equal(codec.decode_step(codes, state), codec.decode(codes))

    def test_nothing_in_nothing_out(self, codec: Codec) -> None:
        assert codec.decode(random_codes(2, 0)).shape == (2, 1, 0)
        assert codec.encode(noise(2, 0)).shape == (2, 8, 0)

    def test_codes_that_the_codebook_lacks_are_its_last(self, codec: Codec) -> None:
        codes = random_codes(1, 4)
        codes[0, :, 2] = 63
        above = codes.clone()
        above[0, :, 2] = torch.arange(64, 72)
        assert torch.equal(codec.decode(above), codec.decode(codes))


class TestRows:
    """A row equals the same conversation alone, whatever its neighbours do."""

    def test_neighbours_do_not_matter(self, codec: Codec) -> None:
        codes, others = random_codes(3, 20), random_codes(3, 20, seed=1)
        others[1] = codes[1]
        assert torch.equal(codec.decode(codes)[1], codec.decode(others)[1])
        audio, noises = noise(3, 20 * 1920), noise(3, 20 * 1920, seed=1)
        noises[1] = audio[1]
        assert torch.equal(codec.encode(audio)[1], codec.encode(noises)[1])

    def test_late_join_and_stall_when_decoding(self, codec: Codec) -> None:
        codes = random_codes(3, 100)
        state = codec.new_decode_state(4)
        generator = seeded(5)
        heard: list[list[Tensor]] = [[], [], []]
        at = [0, 0, 0]
        for step in range(150):
            if step == 40:  # row 2 begins anew in the middle of a conversation
                state.reset(2)
                at[2], heard[2] = 0, []
            active = torch.rand(3, generator=generator) < torch.tensor([1.1, 0.7, 0.7])
            active &= torch.tensor([n < 100 for n in at])
            chunk = torch.stack([codes[r, :, min(at[r], 99)] for r in range(3)])[..., None]
            audio = codec.decode_step(chunk, state, active)
            assert audio.isfinite().all()
            for row in active.nonzero().flatten().tolist():
                heard[row].append(audio[row])
                at[row] += 1
        for row in range(3):
            alone = codec.decode(codes[row : row + 1, :, : at[row]])
            assert error(torch.cat(heard[row], -1), alone[0]) < 1e-5
        assert at[0] == 100 > at[2] > 60

    def test_late_join_and_stall_when_encoding(self, codec: Codec) -> None:
        audio = noise(2, 60 * 1920).view(2, 60, 1920)
        state = codec.new_encode_state(2)
        codec.encode_step(noise(2, 5 * 1920, seed=7), state)
        state.reset(0)
        codec.encode_step(noise(2, 1920, seed=8), state, torch.tensor([False, True]))
        state.reset(1)
        at = [0, 0]
        heard: list[list[Tensor]] = [[], []]
        for step in range(80):
            active = torch.tensor([step % 3 != 0, step % 4 != 1]) & (torch.tensor(at) < 60)
            chunk = torch.stack([audio[r, min(at[r], 59)] for r in range(2)])[:, None]
            codes = codec.encode_step(chunk, state, active)
            for row in active.nonzero().flatten().tolist():
                heard[row].append(codes[row])
                at[row] += 1
        for row in range(2):
            alone = codec.encode(audio[row, : at[row]].reshape(1, 1, -1))
            assert torch.equal(torch.cat(heard[row], -1), alone[0])

    def test_a_stalled_row_keeps_its_state_to_the_bit(self, codec: Codec) -> None:
        state = codec.new_decode_state(3)
        codec.decode_step(random_codes(3, 6), state)
        before = [tensor.clone() for tensor in state.tensors]
        codec.decode_step(random_codes(2, 3, seed=1), state, torch.tensor([True, False]))
        for old, new in zip(before, state.tensors, strict=True):
            assert torch.equal(old[1:], new[1:])
        assert state.ring.offset.tolist() == [18, 12, 12]


@pytest.mark.golden
@pytest.mark.parametrize("name", ["single_turn", "two_turn"])
def test_recorded_results(name: str) -> None:
    folder = ASSETS / "golden" / name
    config = json.loads((folder / "config.json").read_text())["codec_config"]
    codec = Codec(CodecConfig.from_dict(config))
    weights = load_file(folder / "model.safetensors")
    codec.load_state_dict(
        {k.removeprefix(PREFIX): v for k, v in weights.items() if k.startswith(PREFIX)}
    )
    codec.finalize()
    given = load_file(folder / "inputs.safetensors")
    expected = load_file(folder / "expected.safetensors")
    codes = expected["codes"].transpose(1, 2)  # [1, K, F]
    assert error(codec.decode(codes), expected["audio"]) < 1e-3
    assert torch.equal(codec.encode(given["prompt_audio"]), expected["prompt_codes"])


@pytest.fixture(scope="module")
def released() -> Codec:
    with torch.device("meta"):
        return Codec(CodecConfig())


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_transposed_convolution_in_groups(groups: int) -> None:
    torch.manual_seed(0)
    layer = CausalConvTranspose(8, 16, 5, groups=groups)
    x = torch.randn(2, 8, 7)
    yes = torch.ones(2, 1, 1, dtype=torch.bool)
    with torch.no_grad():
        wanted = layer.conv(x)[..., :-5]
        got = layer(x, ConvStep(iter([torch.zeros(2, 8, 1)]), active=yes, first=yes))
    assert error(got, wanted) < 1e-5


class TestReleasedSizes:
    def test_names_and_shapes_are_those_of_the_file(self, released: Codec) -> None:
        manifest = json.loads((ASSETS / "checkpoint-manifest.json").read_text())
        wanted = {k: v for k, v in manifest.items() if k.startswith(PREFIX)}
        ours = {PREFIX + k: list(v.shape) for k, v in released.state_dict().items()}
        assert ours == wanted

    def test_memory_of_a_row(self, released: Codec) -> None:
        assert released.new_decode_state(1).nbytes == pytest.approx(8.71e6, rel=2e-3)
        assert released.new_encode_state(1).nbytes == pytest.approx(8.73e6, rel=2e-3)
        assert released.new_decode_state(4).nbytes == 4 * released.new_decode_state(1).nbytes

    def test_loading_onto_a_codec_without_memory(self, codec: Codec) -> None:
        with torch.device("meta"):
            late = Codec(codec.config)
        late.load_state_dict({k: v.bfloat16() for k, v in codec.state_dict().items()}, assign=True)
        late.finalize()
        audio = late.decode(random_codes(1, 3))
        assert audio.dtype == torch.float32
        assert error(audio, codec.decode(random_codes(1, 3))) < 0.1


@pytest.mark.parametrize("masked", [False, True])
def test_a_step_reads_nothing_back(codec: Codec, masked: bool) -> None:
    active = torch.tensor([True, False]) if masked else None
    decoding, encoding = codec.new_decode_state(2), codec.new_encode_state(2)
    codes, audio = random_codes(2, 2), noise(2, 2 * 1920)
    with NoHostReads():
        codec.decode_step(codes, decoding, active)
        codec.encode_step(audio, encoding, active)
        decoding.reset(0)
    with pytest.raises(AssertionError, match="reads back"), NoHostReads():
        bool(torch.ones(1))


def test_float32_is_not_rounded_on_cuda() -> None:
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    with full_float32(torch.device("cuda")):
        assert convolutions.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert convolutions.fp32_precision == before
    with full_float32(torch.device("cpu")):
        assert convolutions.fp32_precision == before


class TestRefused:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("pad_mode", "reflect"),
            ("use_causal_conv", False),
            ("use_conv_shortcut", True),
            ("audio_channels", 2),
            ("trim_right_ratio", 0.5),
            ("hidden_act", "relu"),
            ("attention_bias", True),
            ("sampling_rate", 16_000),
            ("_frame_rate", 25.0),
            ("model_type", "encodec"),
            ("rope_scaling", {"type": "linear"}),
            ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}),
            ("rope_theta", 0),
            ("upsampling_ratios", [8, 6, 5, 2]),
            ("upsampling_ratios", 960),
            ("upsample_groups", 7),
            ("num_key_value_heads", 2),
            ("head_dim", 7),
            ("codebook_dim", 8),
            ("vector_quantization_hidden_dimension", 32),
            ("num_semantic_quantizers", 10),
            ("norm_eps", "small"),
            ("hidden_size", 31.5),
            ("num_filters", 0),
        ],
    )
    def test_maths_that_is_not_implemented(self, field: str, value: object) -> None:
        with pytest.raises(CheckpointError, match=field) as caught:
            CodecConfig.from_dict({**SMALL, field: value})
        assert "codec_config." in str(caught.value)

    def test_older_files_are_understood(self) -> None:
        old = {**SMALL, "rope_theta": 500.0, "frame_rate": 12.5, "head_dim": None}
        assert CodecConfig.from_dict(old).rope_theta == 500.0
        new = CodecConfig.from_dict({**SMALL, "rope_parameters": {"rope_theta": 500.0}})
        assert new == CodecConfig.from_dict(old)
        assert new.head_dim == 8
        assert CodecConfig.from_dict({}) == CodecConfig()

    @pytest.mark.parametrize("count", [1, 11])
    def test_codebooks_that_are_not_there(self, count: int) -> None:
        with pytest.raises(ConfigError, match="num_codebooks"):
            Codec(CodecConfig.from_dict(SMALL), num_codebooks=count)

    def test_shapes(self, codec: Codec) -> None:
        state, encoding = codec.new_decode_state(1), codec.new_encode_state(1)
        with pytest.raises(ValueError, match="codes are"):
            codec.decode_step(random_codes(1, 1)[:, :7], state)
        with pytest.raises(ValueError, match="a state of 1"):
            codec.decode_step(random_codes(2, 1), state)
        with pytest.raises(ValueError, match="active is"):
            codec.decode_step(random_codes(1, 1), state, torch.ones(1))
        with pytest.raises(AudioError, match="multiples of 1920"):
            codec.encode_step(noise(1, 1919), encoding)
        with pytest.raises(AudioError, match="mono"):
            codec.encode(torch.zeros(1, 2, 1920))

    def test_codebooks_that_were_not_computed(self) -> None:
        with pytest.raises(RuntimeError, match="finalize"):
            Codec(CodecConfig.from_dict(SMALL)).decode(random_codes(1, 1))
