"""Trains a codec: Mimi at any size, from speech alone.

The quantizer is off at first, so that there is something to quantize; then its codebooks begin by
k-means and follow by moving averages. From `settle_from` on, encoder and codebooks stand still:
codes are what they will be, others may already learn from them, and the decoder settles on them in
half as many operations a step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chroma_plugin.audio import FRAME_SAMPLES
from chroma_plugin.errors import CheckpointError, ConfigError
from chroma_plugin.model.codec import CODEBOOKS, Codec, CodecConfig
from chroma_plugin.model.seanet import ResidualBlock
from chroma_plugin.model.window import LayerScale
from chroma_plugin.training.codec.adversary import Adversary
from chroma_plugin.training.codec.corpus import Corpus, Segments
from chroma_plugin.training.codec.judge import Verdict, judge, save_picture
from chroma_plugin.training.codec.losses import (
    Heads,
    Resolution,
    Targets,
    log_mel,
    low_wave,
    spectral_losses,
    targets,
    wave_loss,
)
from chroma_plugin.training.codec.quantize import Latents, QuantizerTrainer
from chroma_plugin.training.codec.whole import decode_whole, encode_whole
from chroma_plugin.training.loop import CHECKPOINT, LoopPlan, Outcome, Progress, decayed, train

LAYER_SCALE = 0.1
START_VECTORS = 8
"""The k-means start takes so many vectors for each entry of a codebook."""

RESOLUTIONS = (
    Resolution(256, 64, 24),
    Resolution(1024, 256, 80, log_weight=0.3, wave_weight=2.0),
    Resolution(2048, 512, 120, log_weight=0.6),
)


def small_config(num_filters: int = 16, hidden_size: int = 128) -> CodecConfig:
    """The codec of chroma-tiny: 8 codebooks of 512 entries, a window of 2 s."""
    return CodecConfig(
        hidden_size=hidden_size,
        num_filters=num_filters,
        codebook_size=512,
        codebook_dim=64 if hidden_size != 64 else 32,
        num_quantizers=CODEBOOKS,
        upsample_groups=hidden_size,
        num_hidden_layers=2,
        intermediate_size=2 * hidden_size,
        num_attention_heads=4,
        head_dim=hidden_size // 4,
        sliding_window=50,
    )


@dataclass(frozen=True, slots=True)
class CodecPlan:
    """What to train, and how.

    Attributes:
        loop: budget, rate, device. Never in bfloat16: in it convolutions are audibly wrong.
        config: sizes of the codec.
        rows: segments of a batch.
        frames: length of a segment in frames of 80 ms.
        long_share: batches of which each has a quarter of the rows, four times as long.
        weights: of the losses, by name.
        resolutions: of the spectral losses.
        quantizer_from: part of the budget after which the quantizer is on.
        settle_from: part after which only the decoder learns: codes no longer change.
        decoded_every: until then the decoder takes part in one step of so many: heads lead the
            encoder as well, and such a step costs a third.
        bypassed: rows that go round the codebooks until then.
        dropped: rows that use only some of the acoustic codebooks until then.
        decay: what a codebook's sums keep from step to step, at first and in the end.
        adversary_from: part after which the adversary is on; None: there is none.
        compile: by torch's compiler, on CUDA.
        judged: held-out clips of an evaluation.
    """

    loop: LoopPlan = field(
        default_factory=lambda: LoopPlan(
            minutes=100, weight_decay=1e-4, clip=2.0, autocast=False, eval_minutes=10
        )
    )
    config: CodecConfig = field(default_factory=small_config)
    rows: int = 4
    frames: int = 13
    long_share: float = 0.1
    weights: Mapping[str, float] = field(
        default_factory=lambda: {
            "mel": 1.0,
            "log": 1.0,
            "low": 1.0,
            "wave": 1.5,
            "head_mel": 1.0,
            "head_wave": 0.3,
            "hidden_mel": 0.5,
            "hidden_wave": 0.5,
            "semantic": 0.3,
            "commit": 0.25,
            "fool": 0.1,
            "alike": 0.2,
            "judge": 1.0,
        }
    )
    resolutions: tuple[Resolution, ...] = RESOLUTIONS
    quantizer_from: float = 0.05
    settle_from: float = 0.6
    decoded_every: int = 4
    bypassed: float = 0.2
    dropped: float = 0.25
    decay: tuple[float, float] = (0.98, 0.995)
    adversary_from: float | None = None
    compile: bool = False
    judged: int = 24

    def __post_init__(self) -> None:
        if self.loop.autocast:
            raise ConfigError(
                "CodecPlan.loop.autocast is on; a codec must be trained in float32: set it off."
            )
        if self.rows % 4 and self.long_share:
            raise ConfigError("CodecPlan.rows must be a multiple of 4, or long_share 0.")


class CodecModule(nn.Module):
    """A codec and all that is thrown away when it is trained.

    Args:
        config: sizes of the codec.
        adversary: whether there is one.
        seed: of the first weights.
    """

    def __init__(self, config: CodecConfig, *, adversary: bool = False, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.codec = Codec(config)
            begin(self.codec)
            self.heads = Heads(config.hidden_size)
            self.adversary = Adversary() if adversary else None
        self.quantizer = QuantizerTrainer(self.codec.quantizer)

    def served(self) -> Codec:
        """A copy of the codec as it will be loaded: on the CPU, finalized, float32, frozen."""
        return _shipped(copy.deepcopy(self.codec))


def _shipped(codec: Codec) -> Codec:
    """Keeps codebooks as entries of usage 1, so that they are rounded once, when they are saved."""
    codec.cpu().finalize()
    for codebook in QuantizerTrainer(codec.quantizer).codebooks:
        codebook.embed_sum.copy_(codebook.entries)
        codebook.cluster_usage.fill_(1.0)
    codec.finalize()
    return codec


@torch.no_grad()
def begin(codec: Codec) -> None:
    """First weights: every layer keeps the level of speech about as it is."""
    for module in codec.modules():
        if isinstance(module, nn.ConvTranspose1d | nn.Conv1d):
            inputs = module.in_channels // module.groups
            taps = 2 if isinstance(module, nn.ConvTranspose1d) else module.kernel_size[0]
            if module.groups > 1:
                nn.init.constant_(module.weight, 0.7)
            else:
                nn.init.normal_(module.weight, std=1.1 / math.sqrt(inputs * taps))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, LayerScale):
            module.scale.fill_(LAYER_SCALE)
    for module in codec.modules():
        if isinstance(module, ResidualBlock):
            list(module.parameters())[-2].mul_(0.5)
    nn.init.constant_(codec.downsample.conv.weight, 0.0)
    taps = codec.downsample.conv.kernel_size[0]
    eye = torch.eye(codec.config.hidden_size)[..., None] / taps * 1.5
    codec.downsample.conv.weight.add_(eye.to(codec.downsample.conv.weight))
    first, last = codec.encoder.layers[0], codec.decoder.layers[-1]
    next(first.parameters()).mul_(8.0)  # speech has a level of 0.07
    next(last.parameters()).mul_(0.3)


class CodecTask:
    """A codec's training as the loop sees it.

    Args:
        plan: what to train, and how.
        corpus: speech to learn from.
        held_out: speech to be judged by.
        folder: where the picture of an evaluation goes; None: nowhere.
    """

    def __init__(
        self, plan: CodecPlan, corpus: Corpus, held_out: Corpus, folder: Path | None = None
    ) -> None:
        self.plan, self.corpus, self.held_out, self.folder = plan, corpus, held_out, folder
        has_adversary = plan.adversary_from is not None
        self.own = CodecModule(plan.config, adversary=has_adversary, seed=plan.loop.seed)
        self.module: nn.Module = self.own
        self.encode: Callable[[Codec, Tensor], Tensor] = encode_whole
        self.decode: Callable[[Codec, Tensor], tuple[Tensor, Tensor]] = decode_whole
        if plan.compile and torch.device(plan.loop.device).type == "cuda":
            self.encode, self.decode = (
                torch.compile(encode_whole, dynamic=False),
                torch.compile(decode_whole, dynamic=False),
            )

    def groups(self) -> list[dict[str, Any]]:
        """See `Task.groups`; the adversary's gradient is clipped by itself."""
        groups = decayed(nn.ModuleList((self.own.codec, self.own.heads)))
        if self.own.adversary is not None:
            groups += decayed(self.own.adversary, lr_scale=0.5, clip=2.0)
        return groups

    def batch(self, number: int) -> Segments:
        """See `Task.batch`."""
        rng = np.random.default_rng((self.plan.loop.seed, number))
        if rng.random() < self.plan.long_share:
            return self.corpus.segments(rng, self.plan.rows // 4, 4 * self.plan.frames)
        return self.corpus.segments(rng, self.plan.rows, self.plan.frames)

    def losses(self, batch: Segments, progress: Progress) -> dict[str, Tensor]:
        """See `Task.losses`."""
        plan, own = self.plan, self.own
        samples = batch.samples
        if not own.quantizer.started and progress.fraction >= plan.quantizer_from:
            self._start_quantizer(samples.device)
        if own.quantizer.started and progress.fraction >= plan.settle_from:
            return self._settling_losses(batch, progress)
        z = self.encode(own.codec, samples[:, None])
        wanted = targets(samples, batch.cepstrum_means)
        latents = own.quantizer.bypass(z)
        mel, wave = own.heads.latent(latents.whole, wanted)
        said = own.heads.semantic(latents.semantic, wanted)
        sums = {"head_mel": mel, "head_wave": wave, "semantic": said}
        if own.quantizer.started:
            latents = self._quantize(z, progress)
            mel, wave = own.heads.latent(latents.whole, wanted)
            said = own.heads.semantic(latents.semantic, wanted)
            sums["head_mel"] = sums["head_mel"] + mel
            sums["head_wave"] = sums["head_wave"] + wave
            sums["semantic"] = sums["semantic"] + said
            sums["commit"] = latents.commit
        if progress.step % plan.decoded_every == 0:
            sums |= self._decoded(latents.whole, samples, wanted, progress)
        return self._total(sums)

    def evaluate(self) -> dict[str, float]:
        """See `Task.evaluate`; and draws the picture, if there is matplotlib."""
        clips = [self.held_out.clip(i) for i in range(min(self.plan.judged, self.held_out.clips))]
        if not self.own.quantizer.started:
            return {"mel": self._continuous_mel(clips)}
        served = self.own.served()
        verdict: Verdict = judge(served, clips)
        if self.folder is not None:
            with suppress(ImportError):
                save_picture(self.folder / "copies.png", served, clips[:4])
        figures = {"mel": verdict.mel, "pitch": verdict.pitch, "pitch_error": verdict.pitch_error}
        used = {f"used {i}": float(n) for i, n in enumerate(verdict.used)}
        return figures | used | {"perplexity": float(np.mean(verdict.perplexity))}

    def _quantize(self, z: Tensor, progress: Progress) -> Latents:
        plan, rows = self.plan, len(z)
        deepest = CODEBOOKS - plan.config.num_semantic_quantizers
        chance = torch.rand(2, rows, device=z.device)
        fewer = torch.randint(1, deepest + 1, (rows,), device=z.device)
        first, last = plan.decay
        out: Latents = self.own.quantizer(
            z,
            levels=torch.where(chance[0] < plan.dropped, fewer, deepest),
            quantized=chance[1] >= plan.bypassed,
            decay=first + (last - first) * progress.fraction / plan.settle_from,
        )
        return out

    def _settling_losses(self, batch: Segments, progress: Progress) -> dict[str, Tensor]:
        """Of the decoder alone, on the codes that will be served."""
        own, samples = self.own, batch.samples
        with torch.no_grad():
            z = self.encode(own.codec, samples[:, None])
        wanted = targets(samples, batch.cepstrum_means)
        return self._total(self._decoded(own.quantizer.settled(z), samples, wanted, progress))

    def _decoded(
        self, latents: Tensor, samples: Tensor, wanted: Targets, progress: Progress
    ) -> dict[str, Tensor]:
        """Losses of the audio, and of what the decoder's transformer makes."""
        plan, adversary = self.plan, self.own.adversary
        made, hidden = self.decode(self.own.codec, latents)
        made = made[:, 0]
        mel, wave = self.own.heads.decoder(hidden, wanted)
        sums = {"hidden_mel": mel, "hidden_wave": wave}
        sums |= spectral_losses(made, samples, plan.resolutions)
        sums["wave"] = wave_loss(low_wave(made).view_as(wanted.wave), wanted)
        if adversary is not None and progress.fraction >= (plan.adversary_from or 0.0):
            sums |= adversary.losses(made, samples)
        return sums

    def _total(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        weighted = [self.plan.weights[name] * value for name, value in sums.items()]
        return {"loss": torch.stack(weighted).sum()} | sums

    @torch.no_grad()
    def _start_quantizer(self, device: torch.device) -> None:
        """Begins the codebooks with latents of batches that training will not see."""
        wanted = START_VECTORS * self.plan.config.codebook_size
        rng = np.random.default_rng((self.plan.loop.seed, 2**31))
        found, count = [], 0
        while count < wanted:
            segments = self.corpus.segments(rng, self.plan.rows, self.plan.frames)
            found.append(encode_whole(self.own.codec, segments.samples[:, None].to(device)))
            count += len(found[-1]) * self.plan.frames
        self.own.quantizer.start(torch.cat(found))

    def _continuous_mel(self, clips: list[Any]) -> float:
        """The held-out mel distance without a quantizer."""
        distances = []
        codec = self.own.codec
        device = codec.upsample.conv.weight.device
        for clip in clips:
            x = torch.from_numpy(clip[: len(clip) // FRAME_SAMPLES * FRAME_SAMPLES])[None]
            x = x.to(device)
            latents = self.own.quantizer.bypass(encode_whole(codec, x[:, None]))
            made = decode_whole(codec, latents.whole)[0][:, 0]
            distances.append(float((log_mel(made, hop=256) - log_mel(x, hop=256)).abs().mean()))
        return float(np.mean(distances))


def train_codec(
    plan: CodecPlan,
    corpus: Corpus,
    held_out: Corpus,
    folder: Path,
    *,
    resume: bool = True,
    say: Callable[[str], None] = print,
) -> tuple[Codec, Outcome]:
    """Trains a codec.

    Args:
        plan: what, and how.
        corpus: speech to learn from.
        held_out: speech to be judged by.
        folder: where the run's checkpoint, log and pictures go.
        resume: go on from the folder's checkpoint.
        say: gets a line of progress at a time.

    Returns:
        The codec, finalized, on the CPU; and how the run ended.
    """
    task = CodecTask(plan, corpus, held_out, folder)
    outcome = train(task, plan.loop, folder, resume=resume, say=say)
    return task.own.served(), outcome


def read_codec(folder: Path, config: CodecConfig) -> Codec:
    """The codec of a run as far as it has come, while it goes on.

    Args:
        folder: of the run.
        config: sizes that it trains.

    Raises:
        CheckpointError: there is no checkpoint, or it is of other sizes.
    """
    path = folder / CHECKPOINT
    codec = Codec(config)
    try:
        module = torch.load(path, map_location="cpu", weights_only=True)["module"]
        names = {name for name in module if name.startswith("codec.")}
        codec.load_state_dict({name.removeprefix("codec."): module[name] for name in names})
    except Exception as error:  # unpickling, keys, shapes: each raises its own kind
        raise CheckpointError(
            f"{path}: holds no codec of these sizes ({type(error).__name__}). Name the folder of a "
            "codec's run, and the sizes that it trains."
        ) from error
    return _shipped(codec)
