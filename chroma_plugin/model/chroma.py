"""ChromaModel: the parts together, and the plain loop for one conversation.

`generate_greedy` is the specification: it does one thing after the other, keeps nothing between
calls, and is what every faster path is tested against.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chroma_plugin.config import DepthPositions
from chroma_plugin.model.backbone import Backbone
from chroma_plugin.model.codec import Codec, CodecConfig
from chroma_plugin.model.config import CODEBOOKS, ChromaConfig
from chroma_plugin.model.depth import DepthDecoder
from chroma_plugin.model.layers import KVCache, Transformer
from chroma_plugin.model.prompt import VoicePrompt, lay_out_voice
from chroma_plugin.model.thinker import Thinker


@dataclass(frozen=True, slots=True)
class Generation:
    """What the plain loop made.

    Attributes:
        codes: int64 `[F, K]`, without the end-of-speech frame.
        text_ids: the thinker's tokens; the last one may be im_end.
        backbone_logits: float32 `[F, V]`: codebook 0's, one row a frame.
        text_logits: float32 `[vocabulary]`: the first token's.
        ended: the model said that it had finished.
    """

    codes: Tensor
    text_ids: list[int]
    backbone_logits: Tensor
    text_logits: Tensor
    ended: bool


class ChromaModel(nn.Module):
    """Thinker, backbone, depth decoder and codec."""

    def __init__(self, config: ChromaConfig) -> None:
        super().__init__()
        self.config = config
        self.thinker = Thinker(
            config.text, config.audio, config.text_vocabulary, tied=config.tied_lm_head
        )
        self.backbone = Backbone(config.backbone, CODEBOOKS, config.audio_vocabulary)
        self.depth = DepthDecoder(
            config.depth,
            CODEBOOKS,
            config.audio_vocabulary,
            self.backbone.audio_embedding,
            config.backbone.hidden_size,
        )
        self.codec = Codec(CodecConfig.from_dict(dict(config.codec)), CODEBOOKS)

    @property
    def device(self) -> torch.device:
        return self.backbone.codebook0_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.codebook0_head.weight.dtype

    def embed_tokens(self, ids: list[int]) -> Tensor:
        """Embeddings `[len(ids), hidden]`."""
        embeds: Tensor = self.thinker.embedding(torch.tensor(ids, device=self.device))
        return embeds

    @torch.inference_mode()
    def voice_prompt(
        self, transcript_ids: list[int], samples: Tensor, codes: Tensor | None = None
    ) -> VoicePrompt:
        """Encodes a reference clip and lays it out.

        Args:
            transcript_ids: tokens of what is said in it.
            samples: float32 `[n]`, mono, 24 kHz.
            codes: int64 `[K, P]`, what this codec made of the samples before; None: not known.
        """
        if codes is None:
            codes = self.codec.encode(samples.to(self.device)[None, None])[0]
        start, end = self.embed_tokens([self.config.text_start, self.config.text_end])
        embeds = lay_out_voice(
            self.embed_tokens(transcript_ids),
            self.backbone.audio_embedding.frame(codes.T),
            start,
            end,
        )
        return VoicePrompt(codes, embeds)

    @torch.inference_mode()
    def generate_greedy(
        self,
        dialogue: Tensor,
        voice: Tensor,
        max_frames: int,
        *,
        numbering: DepthPositions = "generate",
        say: list[int] | None = None,
    ) -> Generation:
        """One reply, the likeliest code each time.

        Args:
            dialogue: the thinker's input so far, `[S, hidden]`.
            voice: the backbone's prompt, `[P, hidden]`.
            max_frames: the cap on the reply's length.
            numbering: positions of the depth decoder.
            say: tokens to speak instead of the thinker's own; im_end is added.

        Returns:
            Codes, text and the logits that tests compare.
        """
        forced = None if say is None else [*say, self.config.im_end]
        thinker_cache = KVCache.empty(
            self.config.text, 1, len(dialogue) + max_frames // 2 + 1, dialogue
        )
        backbone_cache = KVCache.empty(
            self.config.backbone, 1, len(voice) + 2 * max_frames + 2, voice
        )
        depth_steps = self.depth.new_steps(1, numbering)

        hidden = self._read(self.thinker.transformer, dialogue, thinker_cache, 0)
        text_logits = self.thinker.lm_head(hidden)
        read = len(voice)
        if read:
            self._read(self.backbone.transformer, voice, backbone_cache, 0)
        text_ids: list[int] = []
        frames: list[Tensor] = []
        logits: list[Tensor] = []
        inputs: list[Tensor] = []
        ended = False
        for step in range(max_frames):
            if step % 2 == 0 and self.config.im_end not in text_ids:  # the next pair of text
                if text_ids:
                    place = len(dialogue) + len(text_ids) - 1
                    hidden = self._read(
                        self.thinker.transformer,
                        self.embed_tokens(text_ids[-1:]),
                        thinker_cache,
                        place,
                    )
                token = int(self.thinker.lm_head(hidden).argmax())
                text_ids.append(token if forced is None else forced[len(text_ids)])
                inputs += [hidden, self.embed_tokens(text_ids[-1:])[0]]
            state = self._read(self.backbone.transformer, torch.stack(inputs), backbone_cache, read)
            read += len(inputs)
            logits.append(self.backbone.codebook0_head(state).float())
            frame = self.depth.frame(
                state[None],
                logits[-1].argmax()[None],
                depth_steps,
                lambda scores, codebook: scores.argmax(dim=-1),
            )[0]
            if self.config.is_end_of_speech(frame.tolist()):
                ended = True
                logits.pop()
                break
            frames.append(frame)
            inputs = [self.backbone.audio_embedding.frame(frame)]
        return Generation(
            codes=torch.stack(frames) if frames else torch.zeros(0, CODEBOOKS, dtype=torch.int64),
            text_ids=text_ids,
            backbone_logits=torch.stack(logits) if logits else torch.zeros(0),
            text_logits=text_logits.float(),
            ended=ended,
        )

    def _read(self, stack: Transformer, x: Tensor, cache: KVCache, start: int) -> Tensor:
        """Reads `[T, hidden]` at positions from `start` on; the last hidden state `[hidden]`."""
        positions = torch.arange(start, start + len(x), device=x.device)[None]
        out: Tensor = stack(x[None], positions, cache, span=start + len(x))
        return out[0, -1]
