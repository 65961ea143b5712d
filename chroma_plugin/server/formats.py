"""Audio as it goes over the wire: PCM16 at 24 kHz, or G.711 at 8 kHz, to samples and back.

Knows no protocol: an event's format has been read before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from chroma_plugin.audio import (
    INPUT_RATE_HZ,
    OUTPUT_RATE_HZ,
    Resampler,
    Samples,
    float_to_pcm,
    pcm_to_float,
)
from chroma_plugin.errors import AudioError

Encoding = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]


@dataclass(frozen=True, slots=True)
class WireFormat:
    """How samples are written: PCM16 little endian, mu-law or A-law, and how many a second."""

    encoding: Encoding = "audio/pcm"
    rate_hz: int = OUTPUT_RATE_HZ

    @property
    def bytes_per_second(self) -> int:
        return self.rate_hz * (2 if self.encoding == "audio/pcm" else 1)


class Decoder:
    """What a client sends, as float32 at 16 kHz, piece by piece."""

    def __init__(self, wire: WireFormat) -> None:
        self._wire = wire
        self._resampler = Resampler(wire.rate_hz, INPUT_RATE_HZ)

    def push(self, data: bytes) -> Samples:
        """The next piece.

        Raises:
            AudioError: half a sample; nothing of the piece was used.
        """
        return self._resampler.push(_decoded(data, self._wire.encoding))

    def flush(self) -> Samples:
        """What the resampler still holds, to be called where a turn ends; the next piece begins
        anew."""
        rest = self._resampler.push(np.zeros(0, np.float32), last=True)
        self._resampler = Resampler(self._wire.rate_hz, INPUT_RATE_HZ)
        return rest


class Encoder:
    """What the engine speaks (PCM16 at 24 kHz), as a client wants it, piece by piece."""

    def __init__(self, wire: WireFormat) -> None:
        self._wire = wire
        self._plain = wire == WireFormat()
        self._resampler = Resampler(OUTPUT_RATE_HZ, wire.rate_hz)

    def push(self, pcm: bytes, *, last: bool = False) -> bytes:
        """The next piece; `last` lets out what the resampler still holds."""
        if self._plain:
            return pcm
        return _encoded(self._resampler.push(pcm_to_float(pcm), last=last), self._wire.encoding)


def decode(data: bytes, wire: WireFormat) -> Samples:
    """A whole recording as float32 at 16 kHz.

    Raises:
        AudioError: half a sample.
    """
    resampler = Resampler(wire.rate_hz, INPUT_RATE_HZ)
    return resampler.push(_decoded(data, wire.encoding), last=True)


def _decoded(data: bytes, encoding: Encoding) -> Samples:
    if encoding == "audio/pcm":
        if len(data) % 2:
            raise AudioError(
                f"{len(data)} bytes are no whole number of 16-bit samples; send PCM16 little "
                "endian in pieces of even length."
            )
        return pcm_to_float(data)
    table = _mu_law() if encoding == "audio/pcmu" else _a_law()
    return table[np.frombuffer(data, np.uint8)].astype(np.float32) / 32768.0


def _encoded(samples: Samples, encoding: Encoding) -> bytes:
    pcm = np.frombuffer(float_to_pcm(samples), "<i2")
    if encoding == "audio/pcm":
        return pcm.tobytes()
    return _companding(encoding)[pcm.astype(np.int32) + 32768].tobytes()


@cache
def _mu_law() -> NDArray[np.int16]:
    """The sample that each of the 256 codes of ITU-T G.711 mu-law stands for."""
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    size = (((code & 15) << 3) + 132 << (code >> 4 & 7)) - 132
    return np.asarray(np.where(code & 128, -size, size), np.int16)


@cache
def _a_law() -> NDArray[np.int16]:
    """The sample that each of the 256 codes of ITU-T G.711 A-law stands for."""
    code = np.arange(256, dtype=np.int32) ^ 0x55
    segment = code >> 4 & 7
    size = ((code & 15) << 4) + np.where(segment > 0, 0x108, 8) << np.maximum(segment - 1, 0)
    return np.asarray(np.where(code & 128, size, -size), np.int16)


@cache
def _companding(encoding: Encoding) -> NDArray[np.uint8]:
    """The code of every 16-bit sample, the lowest first: the one nearest to it."""
    table = (_mu_law() if encoding == "audio/pcmu" else _a_law()).astype(np.int32)
    order = np.argsort(table, kind="stable")
    edges = (table[order][1:] + table[order][:-1]) / 2
    nearest = np.searchsorted(edges, np.arange(-32768, 32768))
    return order[nearest].astype(np.uint8)
