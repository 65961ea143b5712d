"""Voices and those who speak in them. What needs espeak-ng is skipped where it is missing."""

from __future__ import annotations

import shutil
import sys
import threading
import wave
from pathlib import Path

import numpy as np
import pytest

from chroma_plugin.audio import OUTPUT_RATE_HZ, Samples, level_dbfs
from chroma_plugin.errors import AudioError, ChromaError
from chroma_plugin.training.speech import (
    CommandSpeaker,
    EngineSpeaker,
    EspeakSpeaker,
    SyntheticVoice,
    speak_all,
    trimmed,
)
from chroma_plugin.voice import Voice
from tests.fakes import FakeEngine

needs_espeak = pytest.mark.skipif(
    not shutil.which("espeak-ng"), reason="espeak-ng is not installed: apt install espeak-ng"
)
TEXT = "The capital of France is Paris."


def pitch_hz(samples: Samples) -> float:
    """Median over voiced frames, by autocorrelation."""
    found = []
    size = OUTPUT_RATE_HZ * 50 // 1000
    for start in range(0, len(samples) - size, size // 2):
        frame = samples[start : start + size].astype(np.float64)
        same = np.fft.irfft(np.abs(np.fft.rfft(frame - frame.mean(), 2 * size)) ** 2)[:size]
        lags = np.arange(OUTPUT_RATE_HZ // 450, OUTPUT_RATE_HZ // 60)
        best = lags[same[lags].argmax()]
        if same[0] > 1 and same[best] > 0.5 * same[0]:
            found.append(OUTPUT_RATE_HZ / best)
    return float(np.median(found))


def formant_ratio(samples: Samples, other: Samples) -> float:
    """By how much the envelope of a spectrum has to be stretched to be most like another one."""
    hz = 24.0 * np.arange(1, 200)

    def envelope(clip: Samples) -> np.ndarray:
        frames = np.lib.stride_tricks.sliding_window_view(clip, 1000)[::240] * np.hanning(1000)
        return np.log(np.abs(np.fft.rfft(frames)).mean(axis=0)[1:200])

    def smooth(values: np.ndarray) -> np.ndarray:
        return np.convolve(values, np.hanning(15) / np.hanning(15).sum(), "same")

    one, two = smooth(envelope(samples)), smooth(envelope(other))
    ratios = np.arange(0.8, 1.25, 0.01)
    middle = (hz > 400) & (hz < 3600)
    like = [np.corrcoef(np.interp(hz * r, hz, one)[middle], two[middle])[0, 1] for r in ratios]
    return float(ratios[int(np.argmax(like))])


# -- voices --------------------------------------------------------------------------------------


def test_voices_are_drawn_from_the_whole_range() -> None:
    rng = np.random.default_rng(0)
    voices = [SyntheticVoice.draw(rng) for _ in range(1000)]
    assert {voice.variant for voice in voices} == set(SyntheticVoice.VARIANTS)
    assert len({str(voice) for voice in voices}) == 1000
    for name in ("pitch", "speed", "formant"):
        low, high = getattr(SyntheticVoice, name.upper())
        values = [getattr(voice, name) for voice in voices]
        assert low <= min(values) < low * 1.02 and high * 0.98 < max(values) <= high


def test_held_out_voices_are_never_drawn_in_training() -> None:
    rng = np.random.default_rng(0)
    held_out = {SyntheticVoice.draw(rng, held_out=True).variant for _ in range(200)}
    assert held_out == set(SyntheticVoice.HELD_OUT_VARIANTS)
    assert not held_out & set(SyntheticVoice.VARIANTS)


def test_trimmed_speech_has_its_level_and_no_silence() -> None:
    sound = 0.01 * np.sin(np.arange(OUTPUT_RATE_HZ) / 10).astype(np.float32)
    silence = np.zeros(OUTPUT_RATE_HZ, np.float32)
    out = trimmed(np.concatenate([silence, sound, silence]))
    assert len(out) == pytest.approx(1.08 * OUTPUT_RATE_HZ, abs=500)
    assert level_dbfs(out) == pytest.approx(-23.1, abs=0.1)
    assert out.dtype == np.float32


@pytest.mark.parametrize("samples", [[], [0.0] * 100, [1e-5] * 1000])
def test_silence_is_no_speech(samples: list[float]) -> None:
    with pytest.raises(AudioError, match=r"heard.*'hello'"):
        trimmed(np.array(samples, np.float32), "hello")


# -- espeak-ng -----------------------------------------------------------------------------------


@needs_espeak
def test_espeak_speaks_and_says_the_same_again() -> None:
    speaker = EspeakSpeaker()
    one, two = (speaker.speak(TEXT, SyntheticVoice("m1")) for _ in range(2))
    assert np.array_equal(one, two)
    assert one.dtype == np.float32 and 1.0 < len(one) / OUTPUT_RATE_HZ < 3.0
    assert level_dbfs(one) == pytest.approx(-23.1, abs=0.5) and np.abs(one).max() <= 0.96


@needs_espeak
def test_pitch_and_speed_are_as_asked_whatever_the_formants() -> None:
    speaker = EspeakSpeaker()
    plain = speaker.speak(TEXT, SyntheticVoice("f2"))
    for formant in (0.9, 1.15):
        out = speaker.speak(TEXT, SyntheticVoice("f2", formant=formant))
        assert pitch_hz(out) == pytest.approx(pitch_hz(plain), rel=0.04)
        assert len(out) == pytest.approx(len(plain), rel=0.05)
        assert formant_ratio(out, plain) == pytest.approx(formant, abs=0.04)
    higher = speaker.speak(TEXT, SyntheticVoice("f2", pitch=1.25))
    assert pitch_hz(higher) / pitch_hz(plain) == pytest.approx(1.25, rel=0.05)
    faster = speaker.speak(TEXT, SyntheticVoice("f2", speed=190))
    assert len(faster) / len(plain) == pytest.approx(160 / 190, rel=0.08)


@needs_espeak
def test_every_variant_can_be_heard() -> None:
    speaker = EspeakSpeaker()
    for variant in (*SyntheticVoice.VARIANTS, *SyntheticVoice.HELD_OUT_VARIANTS):
        assert len(speaker.speak("Hello.", SyntheticVoice(variant))) > 0.2 * OUTPUT_RATE_HZ


@needs_espeak
def test_an_unknown_variant_and_an_empty_text_are_refused() -> None:
    speaker = EspeakSpeaker()
    with pytest.raises(AudioError, match="no variant 'm99'"):
        speaker.speak(TEXT, SyntheticVoice("m99"))
    with pytest.raises(AudioError, match=r"\?!"):
        speaker.speak("?!", SyntheticVoice("m1"))


@needs_espeak
def test_text_is_never_read_as_an_option() -> None:
    assert len(EspeakSpeaker().speak("--version", SyntheticVoice("m1")))


def test_missing_espeak_says_how_to_install_it() -> None:
    with pytest.raises(ChromaError, match="apt install espeak-ng"):
        EspeakSpeaker(("no-such-espeak",))


# -- commands ------------------------------------------------------------------------------------

TONE = """
import sys, wave, math, struct
text_file, out, voice = sys.argv[1:]
text = open(text_file, encoding="utf-8").read().strip()
if "fail" in text:
    sys.exit("cannot say that")
with wave.open(out, "wb") as file:
    file.setnchannels(1), file.setsampwidth(2), file.setframerate(16000)
    hz = {"low": 100, "high": 300}[voice]
    samples = [int(9000 * math.sin(i * hz * 6.283 / 16000)) for i in range(1000 * len(text))]
    file.writeframes(struct.pack(f"<{len(samples)}h", *samples))
"""


@pytest.fixture
def command(tmp_path: Path) -> str:
    script = tmp_path / "speak it.py"
    script.write_text(TONE)
    return f"{sys.executable} '{script}' {{text_file}} {{out}} {{voice}}"


def test_a_command_speaks(command: str) -> None:
    speaker = CommandSpeaker(command, ["low"], ["high"])
    rng = np.random.default_rng(0)
    voice, other = speaker.draw(rng), speaker.draw(rng, held_out=True)
    assert (voice, other) == ("low", "high") and speaker.describe(voice) == "low"
    out = speaker.speak('Grüße, "you" & $HOME', voice)  # no shell reads it
    assert len(out) == pytest.approx(19 / 16 * OUTPUT_RATE_HZ, rel=0.1)
    assert pitch_hz(out) == pytest.approx(100, rel=0.02)


def test_a_commands_troubles_are_named(command: str) -> None:
    with pytest.raises(AudioError, match="cannot say that"):
        CommandSpeaker(command, ["low"]).speak("please fail", "low")
    with pytest.raises(ChromaError, match=r"lacks \{out\} and \{voice\}"):
        CommandSpeaker("say {text_file}", ["a", "b"])
    with pytest.raises(ChromaError, match="no-such-command: no such command"):
        CommandSpeaker("no-such-command {text_file} {out}").speak("hello", "default")
    with pytest.raises(ChromaError, match="no held-out voices"):
        CommandSpeaker("say {text_file} {out}").draw(np.random.default_rng(0), held_out=True)
    quiet = f"{sys.executable} -c pass {{text_file}} {{out}}"
    with pytest.raises(AudioError, match="no such file"):
        CommandSpeaker(quiet).speak("hello", "default")


# -- an engine -----------------------------------------------------------------------------------


def test_an_engine_speaks_in_a_cloned_voice() -> None:
    speaker = EngineSpeaker(FakeEngine(), [Voice.default()])
    try:
        voice = speaker.draw(np.random.default_rng(0))
        assert speaker.describe(voice).startswith("default ")
        out = speaker.speak("Hello there.", voice)
        assert out.dtype == np.float32 and len(out) > 1000
    finally:
        speaker.close()
        speaker.close()
    assert not any(thread.name == "speaker" for thread in threading.enumerate())


# -- many ----------------------------------------------------------------------------------------


class Clicks:
    """A speaker whose clips are as long as their texts; the longer ones take no longer."""

    def draw(self, rng: np.random.Generator, *, held_out: bool = False) -> int:
        return 1

    def describe(self, voice: int) -> str:
        return str(voice)

    def speak(self, text: str, voice: int) -> Samples:
        if not text:
            raise AudioError("nothing to say")
        return np.full(len(text) * voice, 0.1, np.float32)


def test_many_texts_come_in_order_and_are_not_drawn_ahead_for_ever() -> None:
    drawn: list[int] = []

    def jobs() -> object:
        for count in range(1, 101):
            drawn.append(count)
            yield "x" * count, 2

    spoken = speak_all(Clicks(), jobs(), workers=2)  # type: ignore[arg-type]
    assert len(next(spoken)) == 2 and len(drawn) < 20
    assert [len(clip) for clip in spoken] == [2 * n for n in range(2, 101)]


def test_what_cannot_be_spoken_is_raised() -> None:
    with pytest.raises(AudioError, match="nothing to say"):
        list(speak_all(Clicks(), [("a", 1), ("", 1)]))


def test_the_wav_of_a_command_may_be_of_any_rate(tmp_path: Path) -> None:
    source = tmp_path / "source.wav"
    with wave.open(str(source), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(48000)
        file.writeframes((np.sin(np.arange(48000) / 20) * 9000).astype("<i2").tobytes())
    copy = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[3])"
    speaker = CommandSpeaker(f'{sys.executable} -c "{copy}" {source} {{text_file}} {{out}}')
    assert len(speaker.speak("hello", "default")) == pytest.approx(OUTPUT_RATE_HZ, abs=300)
