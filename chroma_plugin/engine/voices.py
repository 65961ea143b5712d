"""Voices that are ready to speak: computed once, the least recently used put away first.

A voice that is kept somewhere (`VoiceKeeper`) brings its codes along, is given those that were
made here, and leaves the shelf when it is deleted.
"""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from chroma_plugin.audio import FRAME_SAMPLES
from chroma_plugin.config import EngineConfig
from chroma_plugin.engine.runner import ReadyVoice, Runner
from chroma_plugin.errors import VoiceError
from chroma_plugin.model.codec import Codec
from chroma_plugin.voice import Voice, VoiceKeeper

log = logging.getLogger(__name__)

REPLY_POSITIONS = 32
"""Positions that a voice must leave for a reply: about a second."""


class VoiceShelf:
    """The voices of an engine, while they fit: so many, and so many bytes.

    A voice that was put away stays valid for the replies that hold it.

    Args:
        runner: computes them.
        config: how many are kept.
        codec: the identity of the codec that encodes them.
        post: has something done on the thread that the shelf belongs to.

    Attributes:
        nbytes: what the kept voices take; other threads may read it.
    """

    def __init__(
        self,
        runner: Runner,
        config: EngineConfig,
        codec: str,
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        self._runner, self._config = runner, config
        self._codec, self._post = codec, post
        self._voices: OrderedDict[str, ReadyVoice] = OrderedDict()
        self._watched: weakref.WeakSet[VoiceKeeper] = weakref.WeakSet()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._voices)

    def ready(self, voice: Voice) -> ReadyVoice:
        """The voice's prompt and cached prefix, from the shelf or computed.

        Raises:
            VoiceError: it was deleted, or its prompt does not fit the backbone.
        """
        if voice.keeper is not None and voice.keeper.gone:
            raise VoiceError(f"The voice {voice.name!r} was deleted; choose another one.")
        ready = self._voices.get(voice.key)
        if ready is not None:
            self._voices.move_to_end(voice.key)
        else:
            ready = self._make(voice)
            room = self._config.backbone_positions - REPLY_POSITIONS
            if ready.positions > room:
                raise VoiceError(
                    f"The voice takes {ready.positions} positions of the backbone; {room} are "
                    "left for it. Use a shorter clip."
                )
            self._keep(voice.key, ready)
        self._watch(voice)
        return ready

    def drop(self, key: str) -> None:
        """Forgets a voice by its `Voice.key`, if it is here."""
        gone = self._voices.pop(key, None)
        if gone is not None:
            self.nbytes -= gone.nbytes

    def _make(self, voice: Voice) -> ReadyVoice:
        keeper = voice.keeper
        codes = None if keeper is None else self._brought(voice, keeper)
        ready = self._runner.prepare_voice(voice, codes)
        if keeper is not None and codes is None:
            keeper.keep_codes(self._codec, ready.prompt.codes.cpu().numpy())
        return ready

    def _brought(self, voice: Voice, keeper: VoiceKeeper) -> Tensor | None:
        """The codes that came with a voice, if they can be those of its clip."""
        codes, sizes = keeper.codes(self._codec), self._runner.model.config
        if codes is None:
            return None
        frames = -(-len(voice.samples) // FRAME_SAMPLES)
        fits = codes.shape == (self._runner.model.codec.num_codebooks, frames)
        if not fits or codes.min() < 0 or codes.max() >= sizes.codebook_size:
            log.warning("codes that were kept for a voice are not those of its clip: made anew")
            return None
        return torch.tensor(codes, device=self._runner.model.device)

    def _watch(self, voice: Voice) -> None:
        """Has a kept voice put away when it is deleted."""
        keeper, key = voice.keeper, voice.key
        if keeper is None or keeper in self._watched:
            return
        self._watched.add(keeper)
        shelf, post = weakref.ref(self), self._post  # the keeper may outlive the engine

        def drop() -> None:
            if (alive := shelf()) is not None:
                alive.drop(key)

        keeper.when_gone(lambda: post(drop))

    def _keep(self, key: str, ready: ReadyVoice) -> None:
        most, most_bytes = self._config.voice_cache, self._config.voice_cache_mb * 1e6
        if ready.nbytes > most_bytes:  # the others stay: they would go and be of no help
            log.warning(
                "a voice of %.1f MB is not kept: EngineConfig.voice_cache_mb is %g",
                ready.nbytes / 1e6,
                self._config.voice_cache_mb,
            )
            return
        self._voices[key] = ready
        self.nbytes += ready.nbytes
        while len(self._voices) > most or self.nbytes > most_bytes:
            _, gone = self._voices.popitem(last=False)
            self.nbytes -= gone.nbytes


def codec_identity(codec: Codec) -> str:
    """What tells codecs apart that make different codes of the same clip: 32 hex digits.

    A hash of the sizes, of every weight that encodes, and of the kind of device, which rounds in
    its own way.
    """
    digest = hashlib.sha256(f"{codec.config} {codec.num_codebooks}".encode())
    for part in (codec.encoder, codec.encoder_transformer, codec.downsample, codec.quantizer):
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(f"{name} {list(tensor.shape)} {tensor.device.type}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:32]
