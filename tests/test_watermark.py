"""Marks on replies, without Perth: the filter, and the one place where it is put in."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from chroma_plugin.audio import FRAME_SAMPLES, Samples, float_to_pcm, pcm_to_float
from chroma_plugin.errors import EngineFailed
from chroma_plugin.reply import AudioChunk, TextDelta
from chroma_plugin.session import SpeechEngine
from chroma_plugin.watermark import FilterMarker, MarkedEngine, marked, minimum_phase
from tests.fakes import FakeEngine
from tests.server.client import connected
from tests.server.serving import http

RNG_SEED = 7
FRAME = b"\x10\x20" * FRAME_SAMPLES  # what the fake engine says


def gentle() -> FilterMarker:
    """A comb of 1.7 dB, as fine as a mark."""
    comb = 10 ** (1.7 * np.sign(np.sin(np.arange(4097) * 0.37)) / 20)
    return FilterMarker(minimum_phase(np.convolve(comb, np.hanning(9) / 4, "same"), 1024))


def speechlike(samples: int) -> Samples:
    noise = np.random.default_rng(RNG_SEED).standard_normal(samples)
    return (np.convolve(noise, np.hanning(12), "same") * 0.02).astype(np.float32)


@pytest.mark.parametrize("sizes", [[1920] * 25, [1, 7, 300, 4000, 7680, 12], [48000]])
def test_pieces_make_no_difference(sizes: list[int]) -> None:
    sound = speechlike(48000)
    whole = gentle().stream().push(sound)
    stream, done, parts = gentle().stream(), 0, []
    for size in [*sizes, 48000]:
        parts.append(stream.push(sound[done : done + size]))
        assert len(parts[-1]) == len(sound[done : done + size])  # nothing is held back
        done += size
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)


def test_the_filter_is_what_was_asked_for_and_comes_at_once() -> None:
    gain = 10 ** (1.5 * np.sin(np.arange(8193) * 2 * np.pi / 400) / 20)
    taps = minimum_phase(gain, 2048)
    measured = np.abs(np.fft.rfft(taps, 16384))
    np.testing.assert_allclose(20 * np.log10(measured / gain), 0.0, atol=0.05)
    assert np.argmax(np.abs(taps)) == 0
    energy = np.cumsum(taps**2) / np.sum(taps**2)
    assert energy[0] > 0.95


def test_replies_do_not_run_into_one_another() -> None:
    marker, sound = gentle(), speechlike(4000)
    first, other = marker.stream(), marker.stream()
    expected = first.push(sound)
    other.push(np.ones(3000, np.float32))
    np.testing.assert_array_equal(marker.stream().push(sound), expected)
    assert marker.stream().push(np.zeros(0, np.float32)).size == 0


def test_frames_meet_without_a_step() -> None:
    sound, stream = speechlike(FRAME_SAMPLES * 40), gentle().stream()
    frames = sound.reshape(-1, FRAME_SAMPLES)
    mark = np.concatenate([stream.push(frame) for frame in frames]) - sound
    steps = np.abs(np.diff(mark))
    seams = steps[FRAME_SAMPLES - 1 :: FRAME_SAMPLES]
    assert seams.mean() == pytest.approx(steps.mean(), rel=0.5)
    assert seams.max() <= steps.max()


def test_only_sound_is_changed() -> None:
    got = []
    sink = marked(got.append, Halving())
    text, error = TextDelta("one", 0.0), EngineFailed("gone")
    for event in (text, AudioChunk(float_to_pcm(np.full(10, 0.5, np.float32)), 80.0), error):
        sink(event)
    assert got[0] is text and got[2] is error
    assert got[1].start_ms == 80.0
    np.testing.assert_array_equal(pcm_to_float(got[1].pcm), 0.25)


class Halving:
    """A mark that anybody can see, once or twice."""

    def stream(self) -> Halving:
        return self

    def push(self, samples: Samples) -> Samples:
        return samples / 2


HALVED = float_to_pcm(pcm_to_float(FRAME) / 2)


async def test_every_reply_of_an_engine_is_marked_once() -> None:
    fake = FakeEngine(frames=3)
    engine: SpeechEngine = MarkedEngine(fake, Halving())
    await engine.start()
    session = await engine.open_session(instructions="Be brief.")
    for ask in (lambda: session.say("hello"), session.respond):
        chunks = [event async for event in ask() if isinstance(event, AudioChunk)]
        assert [chunk.pcm for chunk in chunks] == [HALVED] * 3
    assert session.instructions == "Be brief."
    assert fake.started
    await engine.close()
    assert fake.closed


async def test_what_an_engine_has_beside_is_still_there() -> None:
    fake = FakeEngine(frames=3)
    engine = MarkedEngine(fake, Halving())
    assert engine.frames == 3
    assert getattr(engine, "stats", None) is None


async def test_over_the_realtime_protocol_within_and_beside_the_conversation() -> None:
    engine = MarkedEngine(FakeEngine(frames=3), Halving())
    async with connected(engine) as client:  # type: ignore[arg-type]
        await client.manual()
        await client.send("response.create")
        await client.until("response.done")
        await client.send("response.create", response={"conversation": "none"})
        await client.until("response.done", 2)
        pcm = [base64.b64decode(e["delta"]) for e in client.of("response.output_audio.delta")]
        assert b"".join(pcm) == HALVED * 6


async def test_over_the_speech_route() -> None:
    engine = MarkedEngine(FakeEngine(frames=3), Halving())
    async with http(engine) as client:
        said = {"model": "chroma", "input": "hello", "response_format": "pcm"}
        answer = await client.post("/v1/audio/speech", json=said)
    assert answer.content == HALVED * 3
