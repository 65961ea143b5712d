"""Marks on what an engine speaks: where they are put in, and one kind of them, a filter.

A `Marker` makes a `MarkStream` for each reply; `MarkedEngine` passes the sound of every reply of
every session through one. Knows neither torch nor what finds a mark again: see
`chroma_plugin.perth`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chroma_plugin.audio import Samples, float_to_pcm, pcm_to_float
from chroma_plugin.errors import ChromaError
from chroma_plugin.reply import AudioChunk, ReplyEvent, Sink
from chroma_plugin.session import Session, SpeechEngine

_FFT_STEP = 1024
"""Lengths of transforms are rounded up to it, so that few of them occur."""


class MarkStream(Protocol):
    """The sound of one reply on its way through a mark."""

    def push(self, samples: Samples) -> Samples:
        """The next samples, float32 mono at 24 kHz, marked: as many as went in, none held back.

        So a reply is as long as it was, its first sound as early, and a piece needs no end.
        """


class Marker(Protocol):
    """Makes the marks of replies; called on event loops, so it must be quick."""

    def stream(self) -> MarkStream:
        """For one reply, from its beginning."""


class FilterMarker:
    """A mark that is a filter: it colours speech by a pattern too fine to be heard.

    Args:
        taps: its impulse response, float `[T]`, of which the first one belongs to the present.
    """

    def __init__(self, taps: NDArray[np.float64]) -> None:
        self.taps = taps
        self.spectrum = lru_cache(maxsize=32)(self._spectrum)

    def _spectrum(self, size: int) -> NDArray[np.complex64]:
        return np.fft.rfft(self.taps, size).astype(np.complex64)

    def stream(self) -> FilterStream:
        """For one reply; what comes out does not depend on the pieces that go in."""
        return FilterStream(self)


class FilterStream:
    """One reply through a `FilterMarker`."""

    def __init__(self, marker: FilterMarker) -> None:
        self._marker = marker
        self._past = np.zeros(len(marker.taps) - 1, np.float32)

    def push(self, samples: Samples) -> Samples:
        """The next samples, filtered. About 0.1 ms for a frame of 80 ms."""
        if not len(samples):
            return samples
        past = len(self._past)
        heard = np.concatenate([self._past, samples])
        size = -(-len(heard) // _FFT_STEP) * _FFT_STEP
        spectrum = np.fft.rfft(heard, size) * self._marker.spectrum(size)
        self._past = heard[len(heard) - past :]
        marked = np.fft.irfft(spectrum, size)[past : len(heard)]
        return marked.astype(np.float32)


def minimum_phase(gain: NDArray[np.float64], taps: int) -> NDArray[np.float64]:
    """The filter of a given gain that answers soonest (by the cepstrum; Oppenheim and Schafer).

    It has no delay, and nothing of it comes before the sound that it answers to, where the ear
    would notice it first.

    Args:
        gain: linear, more than 0, at `[N / 2 + 1]` equally spaced frequencies from 0 up to half
            the sample rate; N several times as many as the taps.
        taps: how long it may be; the last quarter is faded.

    Returns:
        The impulse response, float64 `[taps]`.
    """
    size = 2 * (len(gain) - 1)
    cepstrum = np.fft.irfft(np.log(gain), size)
    cepstrum[1 : size // 2] *= 2.0
    cepstrum[size // 2 + 1 :] = 0.0
    response = np.fft.irfft(np.exp(np.fft.rfft(cepstrum)), size)[:taps]
    fade = taps // 4
    response[taps - fade :] *= 0.5 + 0.5 * np.cos(np.linspace(0.0, np.pi, fade))
    return np.asarray(response, np.float64)


class MarkedEngine:
    """An engine whose replies are marked, whoever asks for them; all else is as it was.

    Args:
        engine: what speaks.
        marker: how it is marked.
    """

    def __init__(self, engine: SpeechEngine, marker: Marker) -> None:
        self._engine, self._marker = engine, marker

    def __getattr__(self, name: str) -> Any:  # what an engine has beside: its figures, for one
        return getattr(self._engine, name)

    async def start(self) -> None:
        """Makes the engine ready."""
        await self._engine.start()

    async def open_session(self, **settings: Any) -> Session:
        """Opens a conversation, as `SpeechEngine.open_session`, in which replies are marked."""
        session = await self._engine.open_session(**settings)
        session.before_reader(lambda sink: marked(sink, self._marker.stream()))
        return session

    async def close(self) -> None:
        """Ends every session and frees the engine."""
        await self._engine.close()


def marked(sink: Sink, stream: MarkStream) -> Callable[[ReplyEvent | ChromaError], None]:
    """A sink for one reply's events that hands them on with their sound marked."""

    def put(event: ReplyEvent | ChromaError) -> None:
        if isinstance(event, AudioChunk):
            samples = stream.push(pcm_to_float(event.pcm))
            event = replace(event, pcm=float_to_pcm(samples))
        sink(event)

    return put
