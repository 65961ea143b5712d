"""Memory against agreement: what quantised weights save, and how far they stray.

The model as it is makes replies, its codes drawn at temperature 1. Then every kind of weights reads
these same replies, dialogue, text and frames: one that strays once is not judged by all that would
have followed. It knows nothing of the engine: rows and time do not change what weights say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from chroma_plugin.audio import FRAME_MS
from chroma_plugin.bench.hearing import speech
from chroma_plugin.bench.report import Report, memory, ratio, rounded
from chroma_plugin.bench.sizes import Setup, sizes
from chroma_plugin.config import DEFAULT_INSTRUCTIONS, Quantize
from chroma_plugin.engine.parts import Parts
from chroma_plugin.model.chroma import ChromaModel
from chroma_plugin.model.layers import KVCache, Transformer
from chroma_plugin.model.listener import Listener
from chroma_plugin.model.memory import weight_bytes
from chroma_plugin.model.quantize import count_bytes
from chroma_plugin.voice import Voice

TOPICS = ("the sea", "trains", "bread", "winter", "a violin", "the moon", "chess", "gardens")
"""Each reply has one in its instructions, so that their texts differ."""


@dataclass(frozen=True, slots=True)
class AgreementPlan:
    """What is compared.

    Attributes:
        kinds: of weights, beside those that are not quantised.
        replies: how many are made and read.
        reply_s: their greatest length.
        speech_s: the length of the question.
    """

    kinds: Sequence[Quantize] = ("int8", "fp8", "int4")
    replies: int = 8
    reply_s: float = 4.0
    speech_s: float = 4.0


@dataclass(frozen=True, slots=True)
class Said:
    """One reply.

    Attributes:
        text_ids: its tokens; the last one may be im_end.
        codes: int64 `[F, K]`, without the end-of-speech frame.
    """

    text_ids: list[int]
    codes: Tensor


@dataclass(frozen=True, slots=True)
class Judged:
    """What some weights say of a reply that is given.

    Attributes:
        picks: int64 `[T]`: the likeliest token in each token's place.
        codes: float32 `[F, K, V]`: log-probabilities of the codes in each code's place.
    """

    picks: Tensor
    codes: Tensor


def measure_agreement(setup: Setup, plan: AgreementPlan) -> Report:
    """Makes the replies, has every kind read them, and compares.

    Raises:
        ChromaError: the weights cannot be loaded, or do not fit.
    """
    frames = max(round(plan.reply_s * 1000 / FRAME_MS), 1)
    parts = setup.load()
    voice = voice_prompt(parts)
    replies = [
        make_reply(parts.model, dialogue(parts, i, plan.speech_s), voice, frames, setup.seed + i)
        for i in range(plan.replies)
    ]
    facts, device = setup.facts(parts), parts.model.device
    truth = _judge_all(parts, replies, plan.speech_s)
    rows = [_row("none", parts.model, replies, truth, truth)]
    del parts  # one copy of the weights at a time
    for kind in plan.kinds:
        parts = replace(setup, quantize=kind).load()
        judged = _judge_all(parts, replies, plan.speech_s)
        rows.append(_row(kind, parts.model, replies, truth, judged))
        del parts
    for row in rows:
        row["weights_ratio"] = ratio(row["weights_mb"], rows[0]["weights_mb"])
    figures = {
        "kinds": rows,
        "tokens": sum(len(reply.text_ids) for reply in replies),
        "codes": sum(reply.codes.numel() for reply in replies),
    }
    return Report("agreement", facts, asdict(plan), figures, memory(device))


def _judge_all(parts: Parts, replies: list[Said], speech_s: float) -> list[Judged]:
    voice = voice_prompt(parts)
    return [
        judge(parts.model, dialogue(parts, i, speech_s), voice, reply)
        for i, reply in enumerate(replies)
    ]


def _row(
    kind: Quantize,
    model: ChromaModel,
    replies: list[Said],
    truth: list[Judged],
    judged: list[Judged],
) -> dict[str, Any]:
    """One kind's line of the table; likelihoods and divergences are in nats a code."""
    equal = torch.cat([a.picks == b.picks for a, b in zip(truth, judged, strict=True)])
    likelihoods, divergences = [], []
    for reply, before, after in zip(replies, truth, judged, strict=True):
        codes = reply.codes.cpu()[..., None]
        likelihoods.append(after.codes.gather(-1, codes).flatten())
        change = before.codes.exp() * (before.codes - after.codes)
        divergences.append(change.sum(dim=-1).flatten())
    return {
        "kind": kind,
        "weights_mb": rounded(count_bytes(model) / 1e6, 1),
        "released_gb": rounded(weight_bytes(sizes("real"), torch.bfloat16, kind) / 1e9, 2),
        "text_equal": rounded(float(equal.float().mean()), 4),
        "code_log_likelihood": rounded(float(torch.cat(likelihoods).mean()), 4),
        "code_divergence": rounded(float(torch.cat(divergences).mean()), 5),
    }


# -- a reply, made and read ------------------------------------------------------------------


@torch.inference_mode()
def voice_prompt(parts: Parts) -> Tensor:
    """The backbone's prompt of the packaged voice, `[P, hidden]`."""
    voice = Voice.default()
    ids = parts.prompt.encode(voice.transcript)
    return parts.model.voice_prompt(ids, torch.tensor(voice.samples)).embeds


@torch.inference_mode()
def dialogue(parts: Parts, number: int, speech_s: float) -> Tensor:
    """The thinker's input before a reply, `[S, hidden]`: instructions with a topic, a question."""
    model, prompt = parts.model, parts.prompt
    listener = Listener(parts.mel, model.thinker.audio_tower)
    listener.push(speech(speech_s))
    listener.update(final=True)
    instructions = f"{DEFAULT_INSTRUCTIONS} Talk about {TOPICS[number % len(TOPICS)]}."
    before = [*prompt.system(instructions), *prompt.audio_before]
    after = [*prompt.audio_after, *prompt.reply_open]
    return torch.cat([model.embed_tokens(before), listener.embeds, model.embed_tokens(after)])


@torch.inference_mode()
def make_reply(model: ChromaModel, heard: Tensor, voice: Tensor, frames: int, seed: int) -> Said:
    """A reply with greedy text and codes drawn at temperature 1.

    Args:
        model: whose reply it is.
        heard: of `dialogue`.
        voice: of `voice_prompt`.
        frames: the most that are made.
        seed: of the draws.
    """
    dice = torch.Generator(model.device).manual_seed(seed)
    config, depth_steps = model.config, model.depth.new_steps(1)
    tokens = (frames + 1) // 2
    thinker_cache = KVCache.empty(config.text, 1, len(heard) + tokens, heard)
    backbone_cache = KVCache.empty(config.backbone, 1, len(voice) + 3 * frames, voice)

    def draw(logits: Tensor, codebook: int) -> Tensor:
        spoken = logits[..., : config.codebook_size].float()  # no special ones
        return spoken.softmax(dim=-1).multinomial(1, generator=dice)[:, 0]

    hidden = _read(model.thinker.transformer, heard, thinker_cache, 0)[-1]
    _read(model.backbone.transformer, voice, backbone_cache, 0)
    read, text_ids, made = len(voice), list[int](), list[Tensor]()
    for step in range(frames):
        inputs = [model.backbone.audio_embedding.frame(made[-1])] if made else []
        if step % 2 == 0 and config.im_end not in text_ids:
            if text_ids:
                place = len(heard) + len(text_ids) - 1
                token = model.embed_tokens(text_ids[-1:])
                hidden = _read(model.thinker.transformer, token, thinker_cache, place)[-1]
            text_ids.append(int(model.thinker.lm_head(hidden).argmax()))
            inputs += [hidden, model.embed_tokens(text_ids[-1:])[0]]
        state = _read(model.backbone.transformer, torch.stack(inputs), backbone_cache, read)[-1:]
        read += len(inputs)
        code0 = draw(model.backbone.codebook0_head(state), 0)
        frame = model.depth.frame(state, code0, depth_steps, draw)[0]
        if config.is_end_of_speech(frame.tolist()):
            break
        made.append(frame)
    return Said(text_ids, torch.stack(made) if made else code0.new_zeros(0, model.depth.codebooks))


@torch.inference_mode()
def judge(model: ChromaModel, heard: Tensor, voice: Tensor, said: Said) -> Judged:
    """Reads a reply at once, as `make_reply` made it step by step.

    Args:
        model: which judges.
        heard: of its own `dialogue`.
        voice: of its own `voice_prompt`.
        said: the reply.
    """
    config, codes = model.config, said.codes
    words = model.embed_tokens(said.text_ids)
    x = torch.cat([heard, words[:-1]])
    states = _read(model.thinker.transformer, x, KVCache.empty(config.text, 1, len(x), x), 0)
    states = states[len(heard) - 1 :]  # [T, hidden]
    picks = model.thinker.lm_head(states).argmax(dim=-1)

    inputs, last = list(voice), list[int]()
    for step in range(len(codes)):
        if step:
            inputs.append(model.backbone.audio_embedding.frame(codes[step - 1]))
        if step % 2 == 0 and step // 2 < len(words):
            inputs += [states[step // 2], words[step // 2]]
        last.append(len(inputs) - 1)
    x = torch.stack(inputs)
    cache = KVCache.empty(config.backbone, 1, len(x), x)
    state = _read(model.backbone.transformer, x, cache, 0)[last]  # [F, hidden]
    found = [model.backbone.codebook0_head(state)]

    def given(logits: Tensor, codebook: int) -> Tensor:
        found.append(logits)
        return codes[:, codebook]

    if len(codes):
        model.depth.frame(state, codes[:, 0], model.depth.new_steps(len(codes)), given)
    else:
        found *= model.depth.codebooks
    logits = torch.stack(found, dim=1)[..., : config.codebook_size].float()
    return Judged(picks.cpu(), logits.log_softmax(dim=-1).cpu())


def _read(stack: Transformer, x: Tensor, cache: KVCache, start: int) -> Tensor:
    """Reads `[T, hidden]` at positions from `start` on; their states `[T, hidden]`."""
    positions = torch.arange(start, start + len(x), device=x.device)[None]
    states: Tensor = stack(x[None], positions, cache, span=start + len(x))
    return states[0]
