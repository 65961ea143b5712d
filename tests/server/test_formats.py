"""Wire formats: G.711 beside the standard library's, streams beside whole recordings."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from chroma_plugin.errors import AudioError
from chroma_plugin.server.formats import Decoder, Encoder, WireFormat, decode

MU, A = WireFormat("audio/pcmu", 8000), WireFormat("audio/pcma", 8000)


def tone(rate_hz: int, seconds: float = 0.5) -> Any:
    time = np.arange(int(rate_hz * seconds)) / rate_hz
    return (0.4 * np.sin(2 * np.pi * 440 * time) * 32767).astype("<i2")


@pytest.mark.parametrize(("wire", "name"), [(MU, "ulaw2lin"), (A, "alaw2lin")])
def test_g711_is_the_standard_one(wire: WireFormat, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        audioop = pytest.importorskip("audioop")  # gone in Python 3.13
    codes = bytes(range(256))
    wanted = np.frombuffer(getattr(audioop, name)(codes, 2), "<i2")
    from chroma_plugin.server.formats import _decoded, _encoded

    heard = _decoded(codes, wire.encoding) * 32768
    assert np.array_equal(heard, wanted)
    back = _encoded(heard / np.float32(32768), wire.encoding)
    assert np.array_equal(_decoded(back, wire.encoding) * 32768, wanted)


@pytest.mark.parametrize("wire", [WireFormat(), MU, A, WireFormat("audio/pcm", 16000)])
def test_there_and_back_is_the_same_sound(wire: WireFormat) -> None:
    encoder, spoken = Encoder(wire), tone(24000).tobytes()
    pieces = [spoken[i : i + 3840] for i in range(0, len(spoken), 3840)]
    sent = b"".join(encoder.push(p) for p in pieces) + encoder.push(b"", last=True)
    assert len(sent) == pytest.approx(wire.bytes_per_second * 0.5, abs=4)
    heard, wanted = decode(sent, wire), tone(16000) / 32768
    middle = slice(1600, 6400)
    assert len(heard) == pytest.approx(8000, abs=4)
    assert np.abs(heard[middle] - wanted[middle]).max() < 0.02


def test_pieces_are_decoded_as_a_stream() -> None:
    data = tone(24000).tobytes()
    decoder = Decoder(WireFormat())
    heard = np.concatenate([decoder.push(data[i : i + 960]) for i in range(0, len(data), 960)])
    whole = decode(data, WireFormat())
    assert len(heard) > 0.8 * len(whole)
    assert np.allclose(heard, whole[: len(heard)], atol=1e-3)


def test_half_a_sample_is_refused() -> None:
    with pytest.raises(AudioError, match="3 bytes"):
        Decoder(WireFormat()).push(b"odd")
    assert len(Decoder(MU).push(b"odd")) >= 0
