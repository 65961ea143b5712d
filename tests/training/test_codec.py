"""Training a codec: the same maths as serving, codebooks, losses, a run of seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from chroma_plugin.audio import FRAME_SAMPLES, OUTPUT_RATE_HZ, Samples
from chroma_plugin.errors import CheckpointError, ChromaError, ConfigError
from chroma_plugin.model.codec import Codec, CodecConfig
from chroma_plugin.model.quantizer import SplitQuantizer
from chroma_plugin.model.weights import load_checkpoint
from chroma_plugin.training.codec import trainer as trainer_module
from chroma_plugin.training.codec.adversary import Adversary
from chroma_plugin.training.codec.corpus import Corpus, make_corpus, sentences
from chroma_plugin.training.codec.judge import judge, pitches, save_picture, whole_frames
from chroma_plugin.training.codec.losses import (
    CEPSTRA,
    Heads,
    Resolution,
    cepstra,
    log_mel,
    low_wave,
    mel_bands,
    spectral_losses,
    targets,
)
from chroma_plugin.training.codec.quantize import QuantizerTrainer
from chroma_plugin.training.codec.trainer import (
    CodecModule,
    CodecPlan,
    CodecTask,
    begin,
    read_codec,
    small_config,
    train_codec,
)
from chroma_plugin.training.codec.whole import decode_whole, encode_whole
from chroma_plugin.training.log import Log
from chroma_plugin.training.loop import LoopPlan, Progress
from chroma_plugin.training.tiny import SMALLEST, make_tiny, save_checkpoint
from tests.training.test_data import Hum

SMALL = CodecConfig(
    hidden_size=32,
    num_filters=4,
    codebook_size=16,
    codebook_dim=8,
    num_quantizers=8,
    upsample_groups=32,
    num_hidden_layers=2,
    intermediate_size=48,
    num_attention_heads=4,
    head_dim=8,
    sliding_window=7,  # shorter than the segments, so that it matters
)
LOOP = LoopPlan(steps=30, lr=3e-3, warmup_steps=5, clip=2.0, autocast=False, log_steps=5)
PLAN = CodecPlan(
    loop=LOOP,
    config=SMALL,
    frames=2,
    quantizer_from=0.3,
    settle_from=0.8,
    decoded_every=1,
    judged=2,
)


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the rest: once is enough."""
    if "picture" not in request.node.name:
        monkeypatch.setattr(Log, "draw", lambda self: False)
        monkeypatch.setattr(trainer_module, "save_picture", lambda *_: None)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def speech(rows: int, frames: int, seed: int = 0) -> Tensor:
    """Something between speech and noise: `[rows, n]`."""
    at = torch.arange(frames * FRAME_SAMPLES) / OUTPUT_RATE_HZ
    hz = 100 + 100 * torch.rand(rows, 1, generator=seeded(seed))
    tone = torch.sin(2 * torch.pi * hz * at) + 0.5 * torch.sin(6 * torch.pi * hz * at)
    return 0.07 * tone + 0.01 * torch.randn(rows, len(at), generator=seeded(seed + 1))


def ready(seed: int = 0) -> CodecModule:
    """Random weights, and codebooks that have begun."""
    torch.manual_seed(seed)
    module = CodecModule(SMALL, seed=seed)
    module.quantizer.start(encode_whole(module.codec, speech(8, 8)[:, None]).detach())
    return module


def corpus(folder: Path, minutes: float = 0.3, **options: bool) -> Corpus:
    return make_corpus(folder, minutes, speaker=Hum(), say=lambda line: None, **options)


# -- the same maths -------------------------------------------------------------------------------


def test_training_encodes_as_serving_does(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ready()
    served, seen = module.served(), []
    encode = served.quantizer.encode

    def spy(x: Tensor) -> Tensor:
        seen.append(x)
        return encode(x)

    monkeypatch.setattr(served.quantizer, "encode", spy)
    audio = speech(2, 13)[:, None]
    codes = served.encode(audio)  # in pieces of 8 frames
    z = encode_whole(module.codec, audio)
    assert torch.allclose(z, torch.cat(seen, dim=-1), atol=1e-5 * float(z.detach().abs().max()))
    assert torch.equal(served.quantizer.encode(z), codes)


def test_training_decodes_as_serving_does() -> None:
    module = ready()
    served = module.served()
    codes = torch.randint(1, 16, (2, 8, 13), generator=seeded(3))
    audio, hidden = decode_whole(module.codec, served.quantizer.decode(codes))
    wanted = served.decode(codes)
    assert hidden.shape == (2, 32, 26)
    assert torch.allclose(audio, wanted, atol=1e-5 * float(wanted.abs().max()))


def test_training_quantizes_as_serving_does() -> None:
    module = ready()
    served, audio = module.served(), speech(2, 6, seed=5)
    z = encode_whole(module.codec, audio[:, None])
    rows = torch.tensor([7, 7]), torch.tensor([True, True])
    latents = module.quantizer(z, levels=rows[0], quantized=rows[1], decay=1.0)
    codes = served.encode(audio[:, None])
    wanted = served.quantizer.decode(codes)
    assert torch.allclose(latents.whole, wanted, atol=1e-5)
    assert torch.allclose(module.quantizer.settled(z), wanted, atol=1e-5)
    assert not bool((codes == 0).any())


def test_gradients_reach_every_weight() -> None:
    torch.manual_seed(0)
    task = CodecTask(PLAN, _silent(), _silent())
    task.own.quantizer.start(encode_whole(task.own.codec, speech(8, 8)[:, None]).detach())
    batch = _silent().segments(np.random.default_rng(0), 4, 2)._replace(samples=speech(4, 2))
    task.losses(batch, Progress(fraction=0.5))["loss"].backward()
    for name, parameter in task.own.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), name


def test_no_reconstruction_loss_leads_code_0() -> None:
    module = ready()
    z = encode_whole(module.codec, speech(2, 4)[:, None])
    module.quantizer.bypass(z).whole.square().sum().backward()
    semantic, acoustic = module.quantizer.branches
    assert semantic.input_proj.weight.grad is None
    assert semantic.output_proj.weight.grad is not None
    assert acoustic.input_proj.weight.grad is not None


def test_first_weights_keep_the_level() -> None:
    codec = Codec(small_config(8, 64))
    begin(codec)
    audio = speech(2, 8)[:, None]
    z = encode_whole(codec, audio)
    made, hidden = decode_whole(codec, z)
    assert 0.05 < float(z.detach().std()) < 5 and 0.05 < float(hidden.detach().std()) < 5
    assert float(made.detach().std()) < 5 * float(audio.std())


# -- codebooks ------------------------------------------------------------------------------------


def trainer(levels: int = 2, size: int = 9, width: int = 2) -> QuantizerTrainer:
    torch.manual_seed(0)
    made = QuantizerTrainer(
        SplitQuantizer(semantic=1, acoustic=levels, hidden_size=width, size=size, width=width)
    )
    for branch in made.branches:
        for project in (branch.input_proj, branch.output_proj):
            nn.init.eye_(project.weight[..., 0].detach())
    return made


def blobs(count: int = 8, each: int = 40) -> Tensor:
    """Vectors around points of a circle, `[1, 2, count * each]`."""
    angles = torch.arange(count) * (2 * torch.pi / count)
    points = torch.stack((angles.cos(), angles.sin()), dim=1) * 3
    noise = 0.05 * torch.randn(count, each, 2, generator=seeded(1))
    return (points[:, None] + noise).flatten(0, 1).T[None]


def through(made: QuantizerTrainer, z: Tensor, **changes: object) -> Tensor:
    rows = len(z)
    options: dict[str, object] = {
        "levels": torch.full((rows,), 7),
        "quantized": torch.ones(rows, dtype=torch.bool),
        "decay": 1.0,
    }
    whole: Tensor = made(z, **(options | changes)).whole
    return whole


def test_kmeans_finds_what_there_is() -> None:
    made, z = trainer(), blobs()
    made.start(z)
    assert bool(made.started)
    left = (through(made, z) / 2 - z).square().mean()  # two branches of the same
    assert float(left.detach()) < 0.3 * float(z.var())


def test_entry_0_is_never_the_nearest() -> None:
    made, z = trainer(), blobs()
    made.start(z)
    for _ in range(20):
        through(made, z, decay=0.9)
    made.quantizer.finalize()
    codes = made.quantizer.encode(1.4 * z)  # farther out than any that it learnt from
    assert int(codes.min()) == 1
    for codebook in made.codebooks:
        size = codebook.entries.norm(dim=1)
        assert float(size[0]) > 2 * float(size[1:].max())


def test_entries_follow_and_dead_ones_begin_anew() -> None:
    made, z = trainer(), blobs()
    made.start(z)
    moved = z + torch.tensor([20.0, 0.0])[None, :, None]
    before = float((through(made, moved) / 2 - moved).detach().square().mean())
    for _ in range(60):
        through(made, moved, decay=0.9)
    after = float((through(made, moved) / 2 - moved).detach().square().mean())
    assert after < 0.01 * before
    made.quantizer.finalize()
    used = made.quantizer.encode(moved)[0, 0].unique()
    assert len(used) > 4


def test_a_decay_of_1_leaves_the_codebooks_alone() -> None:
    made = trainer()
    made.start(blobs())
    before = [c.embed_sum.clone() for c in made.codebooks]
    through(made, blobs() + 1.0)
    assert all(torch.equal(a, c.embed_sum) for a, c in zip(before, made.codebooks, strict=True))


def test_rows_go_round_or_use_fewer_levels() -> None:
    made, z = trainer(), blobs().repeat(3, 1, 1)
    made.start(z)
    quantized = torch.tensor([True, True, False])
    out = through(made, z, quantized=quantized, levels=torch.tensor([2, 1, 2]))
    errors = (out / 2 - z).square().mean(dim=(1, 2))
    assert float(errors[2]) < 1e-10
    assert float(errors[0]) != float(errors[1]) and float(errors[0]) > 1e-10


def test_gradients_go_straight_through() -> None:
    made, z = trainer(), blobs().requires_grad_(True)
    made.start(z.detach())
    through(made, z).sum().backward()
    assert torch.allclose(z.grad, torch.ones_like(z))  # of the acoustic branch alone


# -- losses ---------------------------------------------------------------------------------------


def test_equal_audio_has_no_spectral_loss() -> None:
    resolutions = (Resolution(256, 64, 24), Resolution(1024, 256, 80, 0.3, 0.5))
    x = speech(2, 4)
    assert all(float(v) < 1e-4 for v in spectral_losses(x, x, resolutions).values())
    losses = spectral_losses((0.5 * x).requires_grad_(True), x, resolutions)
    assert all(float(v.detach()) > 0.05 for v in losses.values())
    phase = spectral_losses(-x, x, resolutions)  # only the wave is another
    assert float(phase["mel"]) < 1e-4 < 0.1 < float(phase["low"])


def test_bands_weigh_their_bins_to_one() -> None:
    bands = mel_bands(256, 80)
    assert bands.shape == (129, 80) and bool((bands >= 0).all())
    assert torch.allclose(bands.sum(dim=0), torch.ones(80))
    assert bool((bands.argmax(dim=0).diff() >= 0).all())


def test_the_low_wave_is_what_is_below_380_hz() -> None:
    at = torch.arange(24_000) / OUTPUT_RATE_HZ
    low, high = (torch.sin(2 * torch.pi * hz * at)[None] for hz in (120.0, 1000.0))
    assert low_wave(low).shape == (1, 800)
    assert float(low_wave(low).std()) > 100 * float(low_wave(high)[:, 20:-20].std())
    wanted = low[:, ::30] / 0.06
    assert torch.allclose(low_wave(low)[:, 20:-20], wanted[:, 20:-20], atol=0.2)


def test_targets_are_a_frame_each() -> None:
    x = speech(3, 4)
    found = targets(x, cepstra(x).mean(dim=1))
    assert [t.shape for t in found] == [(3, 4, 640), (3, 4, 64), (3, 4, 48)]
    assert torch.equal(found.mel[1, 2, :80], log_mel(x)[1, 16] + 4.0)
    loud, louder = (targets(n * x, cepstra(n * x).mean(dim=1)).cepstra for n in (50, 100))
    assert torch.allclose(loud, louder, atol=0.05)  # the level is no part of it
    assert not bool(targets(0 * x, cepstra(x).mean(dim=1)).cepstra.any())


def test_heads_find_what_is_there() -> None:
    heads, x = Heads(32), speech(2, 4)
    wanted = targets(x, cepstra(x).mean(dim=1))
    z = nn.Parameter(torch.randn(2, 32, 4, generator=seeded(1)))
    hidden = nn.Parameter(torch.randn(2, 32, 8, generator=seeded(2)))
    optimiser = torch.optim.Adam([*heads.parameters(), z, hidden], lr=0.02)
    totals = []
    for _ in range(60):
        parts = [*heads.latent(z, wanted), *heads.decoder(hidden, wanted)]
        total = torch.stack([*parts, heads.semantic(z, wanted)]).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.3 * totals[0]


def test_the_adversary_trains_each_side_by_its_own_loss() -> None:
    torch.manual_seed(0)
    adversary = Adversary(channels=2)
    made = speech(1, 2).requires_grad_(True)
    losses = adversary.losses(made, speech(1, 2, seed=4))
    losses["judge"].backward(retain_graph=True)
    assert made.grad is None
    assert all(p.grad is not None for p in adversary.parameters())
    adversary.zero_grad()
    (losses["fool"] + losses["alike"]).backward()
    assert made.grad is not None and bool(made.grad.any())
    assert all(p.grad is None and p.requires_grad for p in adversary.parameters())


# -- corpus and judgement -------------------------------------------------------------------------


def test_a_corpus_is_spoken_once(tmp_path: Path) -> None:
    lines: list[str] = []
    first = make_corpus(tmp_path, 0.3, speaker=Hum(), workers=1, say=lines.append)
    again = make_corpus(tmp_path, 0.3, speaker=Hum(fails_on=lambda *_: True))
    assert 0.3 <= first.minutes < 0.5 and first.clips == len(first.texts) == len(first.voices)
    assert np.array_equal(first.audio, again.audio) and first.texts == again.texts
    assert len(set(first.voices)) > 2
    with pytest.raises(ChromaError, match="Take another folder"):
        make_corpus(tmp_path, 0.4, speaker=Hum())


def test_segments_are_of_clips_and_of_silence(tmp_path: Path) -> None:
    spoken = corpus(tmp_path)
    rng = np.random.default_rng(0)
    batch = spoken.segments(rng, 200, 4)
    assert batch.samples.shape == (200, 4 * FRAME_SAMPLES)
    assert batch.cepstrum_means.shape == (200, CEPSTRA - 1)
    silent = (batch.samples[:, 0] == 0) & (batch.samples[:, 1] == 0)
    assert 0 < int(silent.sum()) < 150
    assert 0.03 < float(batch.samples.abs().max()) < 0.5
    again = spoken.segments(np.random.default_rng(0), 200, 4)
    assert torch.equal(batch.samples, again.samples)


def test_texts_of_the_corpus() -> None:
    texts = sentences(np.random.default_rng(0))
    drawn = [next(texts) for _ in range(200)]
    assert len(set(drawn)) > 120 and all(text[-1] in ".?!" for text in drawn)


def test_pitch_of_a_tone_and_of_noise() -> None:
    at = np.arange(OUTPUT_RATE_HZ) / OUTPUT_RATE_HZ
    for hz in (85.0, 130.0, 250.0):
        tone = sum(np.sin(2 * np.pi * n * hz * at) / n for n in range(1, 8))
        found = pitches((0.1 * tone).astype(np.float32))
        assert np.abs(found / hz - 1).max() < 0.01
    noise = np.random.default_rng(0).normal(size=OUTPUT_RATE_HZ).astype(np.float32)
    assert np.isnan(pitches(noise)).mean() > 0.9
    assert len(pitches(noise[:100])) == 0


def test_a_verdict_counts_codes_and_differences() -> None:
    served = ready().served()
    clips: list[Samples] = [speech(1, 5, seed=i)[0, :-100].numpy() for i in range(2)]
    verdict = judge(served, clips)
    codes = np.concatenate(
        [served.encode(torch.from_numpy(whole_frames(c))[None, None])[0] for c in clips], axis=1
    )
    assert verdict.frames == 10 and verdict.used == [len(np.unique(row)) for row in codes]
    assert verdict.mel > 0.1 and 0 <= verdict.pitch <= 1
    assert all(1 <= p <= n + 0.1 for p, n in zip(verdict.perplexity, verdict.used, strict=True))


def test_a_picture_of_copies(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    clips = [speech(1, 5)[0].numpy()]
    save_picture(tmp_path / "copies.png", ready().served(), clips)
    assert (tmp_path / "copies.png").stat().st_size > 1000


# -- a whole run ----------------------------------------------------------------------------------


def _silent() -> Corpus:
    audio = np.zeros(10 * FRAME_SAMPLES, np.int16)
    means = np.zeros((1, CEPSTRA - 1), np.float32)
    return Corpus(audio, np.array([0, len(audio)]), means)


def test_a_run_of_seconds_lowers_its_losses_and_loads(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    model = make_tiny(folder, SMALLEST)
    config = CodecConfig.from_dict(model.config.codec)
    plan = dataclasses.replace(PLAN, config=config)
    spoken = corpus(tmp_path / "corpus")
    lines: list[str] = []
    codec, outcome = train_codec(plan, spoken, spoken, tmp_path / "run", say=lines.append)
    assert outcome.why == "done" and "used 7" in outcome.evaluation
    losses = [float(line.split(" mel ")[1].split()[0]) for line in lines if " low " in line]
    assert losses[-1] < 0.7 * losses[0], losses

    model.codec.load_state_dict(codec.state_dict())
    save_checkpoint(model, folder, torch.float32)
    loaded = load_checkpoint(folder).codec
    clip = torch.from_numpy(whole_frames(spoken.clip(0)))[None, None]
    codes = codec.encode(clip)
    assert torch.equal(loaded.encode(clip), codes) and int(codes.min()) > 0
    assert torch.equal(loaded.decode(codes), codec.decode(codes))


def test_a_codec_run_resumes_with_its_codebooks(tmp_path: Path) -> None:
    spoken = corpus(tmp_path / "corpus")
    plan = dataclasses.replace(PLAN, loop=dataclasses.replace(LOOP, steps=6), quantizer_from=0.0)
    whole, _ = train_codec(plan, spoken, spoken, tmp_path / "whole", say=lambda line: None)

    def interrupt(line: str) -> None:
        if line.startswith("step 5 "):
            raise KeyboardInterrupt

    often = dataclasses.replace(plan.loop, checkpoint_minutes=1e-9)
    with pytest.raises(KeyboardInterrupt):
        train_codec(
            dataclasses.replace(plan, loop=often), spoken, spoken, tmp_path / "parts", say=interrupt
        )
    parts, _ = train_codec(plan, spoken, spoken, tmp_path / "parts", say=lambda line: None)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name


def test_once_settled_only_the_decoder_learns(tmp_path: Path) -> None:
    task = CodecTask(dataclasses.replace(PLAN, settle_from=0.6), _silent(), _silent())
    task.own.quantizer.start(encode_whole(task.own.codec, speech(8, 8)[:, None]).detach())
    batch = _silent().segments(np.random.default_rng(0), 4, 2)._replace(samples=speech(4, 2))
    codes = task.own.served().encode(batch.samples[:, None])
    optimiser = torch.optim.AdamW(task.groups(), lr=0.01)
    before = {name: p.clone() for name, p in task.own.codec.named_parameters()}
    task.losses(batch, Progress(fraction=0.7))["loss"].backward()
    optimiser.step()
    changed = {name for name, p in task.own.codec.named_parameters() if (p != before[name]).any()}
    learning = {n for n in before if n.startswith(("decoder", "upsample")) or "output_proj" in n}
    assert changed == learning
    assert torch.equal(task.own.served().encode(batch.samples[:, None]), codes)


def test_the_codec_of_a_run_that_goes_on(tmp_path: Path) -> None:
    spoken = corpus(tmp_path / "corpus")
    plan = dataclasses.replace(PLAN, loop=dataclasses.replace(LOOP, steps=4), quantizer_from=0.0)
    codec, _ = train_codec(plan, spoken, spoken, tmp_path, say=lambda line: None)
    read = read_codec(tmp_path, SMALL)
    for name, tensor in codec.state_dict().items():
        assert torch.equal(tensor, read.state_dict()[name]), name
    with pytest.raises(CheckpointError, match="of these sizes"):
        read_codec(tmp_path, small_config())


def test_an_adversary_joins_late(tmp_path: Path) -> None:
    spoken = corpus(tmp_path / "corpus")
    plan = dataclasses.replace(PLAN, adversary_from=0.5)
    task = CodecTask(plan, spoken, spoken)
    assert "judge" not in task.losses(task.batch(0), Progress(fraction=0.1))
    assert {"judge", "fool", "alike"} <= task.losses(task.batch(0), Progress(fraction=0.6)).keys()
    assert len(task.groups()) == 4


def test_plans_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="float32"):
        CodecPlan(loop=LoopPlan(steps=1))
    with pytest.raises(ConfigError, match="multiple of 4"):
        dataclasses.replace(PLAN, rows=3)
