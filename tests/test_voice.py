"""What makes a clip usable as a voice, and what every refusal says about mending it."""

from __future__ import annotations

import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from chroma_plugin.errors import VoiceError
from chroma_plugin.voice import Voice

WORDS = "the quick brown fox jumps over the lazy dog and sleeps in the warm afternoon sun"
"""Eighty characters: right for 3 to 20 s."""


def speech(seconds: float = 6.0, rate_hz: int = 24_000, gain: float = 0.3) -> np.ndarray:
    """Something as loud and as full of pauses as speech: a tone that comes and goes."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (gain * np.sin(2 * np.pi * 200 * t) * (np.sin(2 * np.pi * t) > -0.5)).astype(np.float32)


def test_the_packaged_voice_is_one() -> None:
    voice = Voice.default()
    assert voice.name == "default"
    assert voice.transcript.startswith("The quick brown fox")
    assert 3 <= voice.seconds <= 30
    assert voice is Voice.default()  # read once


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [3.0, 6.0, 19.9])
def test_clips_of_any_rate_become_24_khz(rate_hz: int, seconds: float) -> None:
    voice = Voice.from_samples(speech(seconds, rate_hz), rate_hz, WORDS)
    assert voice.samples.dtype == np.float32
    assert voice.samples.flags.c_contiguous
    assert voice.seconds == pytest.approx(seconds, abs=0.001)


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg"])
@pytest.mark.parametrize("channels", [1, 2])
def test_files_of_any_kind_make_a_voice(tmp_path: Path, kind: str, channels: int) -> None:
    path = tmp_path / f"anna.{kind}"
    soundfile.write(path, np.stack([speech(rate_hz=48_000)] * channels, axis=1), 48_000)
    voice = Voice.from_file(path, WORDS)
    assert voice.name == "anna"
    assert Voice.from_file(path, WORDS, "Anna").name == "Anna"
    assert voice.seconds == pytest.approx(6.0, abs=0.2)


def test_int16_samples_make_the_same_voice() -> None:
    pcm = (speech() * 32767).astype(np.int16)
    given = pcm.astype(np.float32) / 32768
    same = Voice.from_samples(given, 24_000, WORDS)
    assert Voice.from_samples(pcm, 24_000, WORDS).key == same.key  # type: ignore[arg-type]


def test_the_callers_samples_stay_the_callers() -> None:
    given = speech()
    voice = Voice.from_samples(given, 24_000, WORDS)
    key = voice.key
    given[:] = 0.0  # still writable, and no longer of the voice
    assert voice.samples.any()
    assert voice.key == key
    with pytest.raises(ValueError, match="read-only"):
        voice.samples[:] = 0.0


def test_white_space_in_a_transcript_does_not_count() -> None:
    messy = "  " + WORDS.replace(" ", " \n\t ") + "\n"
    voice = Voice.from_samples(speech(), 24_000, messy)
    assert voice.transcript == WORDS


# -- refusals: each says what is wrong and how to mend it ------------------------------------


def clipped() -> np.ndarray:
    return (speech() * 10).clip(-1, 1)


def mostly_silent() -> np.ndarray:
    samples = speech(8.0)
    samples[: 24_000 * 6] = 0.0
    return samples


def with_nan() -> np.ndarray:
    samples = speech()
    samples[1_000] = np.nan
    return samples


@pytest.mark.parametrize(
    ("samples", "transcript", "wrong", "mend"),
    [
        (speech(), "", "transcript is empty", "write down what is said in the clip"),
        (speech(), "  \n ", "transcript is empty", "write down what is said in the clip"),
        (speech(), None, "transcript is empty", "write down what is said in the clip"),
        (speech(2.9), WORDS, "2.9 s long; at least 3 s", "Record a sentence or two more"),
        (speech(0.0), WORDS, "0.0 s long; at least 3 s", "Record a sentence or two more"),
        (speech(30.5), WORDS * 4, "30.5 s long; at most 30 s", "and its transcript with it"),
        (np.zeros(100_000), WORDS, "clip is silent", "Record closer to the microphone"),
        (speech(gain=0.003), WORDS, r"very quiet \(-5\d dBFS\)", "raise its level"),
        (clipped(), WORDS, r"% of the clip is clipped; at most 0\.5%", "at a lower level"),
        (mostly_silent(), WORDS, "8.% of the clip is silence; at most 70%", "Trim the pauses"),
        (speech(), "hi", r"2 characters for 6\.0 s of audio \(0\.3", "exactly what is said"),
        (speech(), WORDS * 4, "speech has 4 to 30", "exactly what is said"),
        (np.stack([speech(), speech()]), WORDS, "is not mono", "mix its channels first"),
        (with_nan(), WORDS, "NaN or infinite", "cannot be used"),
        (np.zeros(100_000, np.int64), WORDS, "type int64", "use int16, or float32"),
        (None, WORDS, "NoneType is not audio", "use PCM16 bytes"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_how_to_mend_it(
    samples: Any, transcript: Any, wrong: str, mend: str
) -> None:
    with pytest.raises(VoiceError, match=wrong) as caught:
        Voice.from_samples(samples, 24_000, transcript)
    assert mend in str(caught.value)


@pytest.mark.parametrize("rate_hz", [0, -24_000, 24])
def test_a_rate_that_cannot_be_right_is_refused(rate_hz: int) -> None:
    with pytest.raises(VoiceError, match=r"reference clip cannot be used.*cannot be right"):
        Voice.from_samples(speech(), rate_hz, WORDS)


def test_a_file_that_is_no_clip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words.wav").write_text("no audio at all")
    with pytest.raises(VoiceError, match=r"reference clip cannot be used.*Use WAV, FLAC"):
        Voice.from_file(tmp_path / "words.wav", WORDS)
    with pytest.raises(VoiceError, match=r"reference clip cannot be used.*none\.wav: no such"):
        Voice.from_file(tmp_path / "none.wav", WORDS)
    soundfile.write(tmp_path / "hour.wav", np.zeros(8_000 * 601, np.int16), 8_000)
    with pytest.raises(VoiceError, match="longer than 600 s; cut it first"):
        Voice.from_file(tmp_path / "hour.wav", WORDS)


# -- keys ------------------------------------------------------------------------------------


def test_equal_voices_have_equal_keys_whatever_their_names() -> None:
    anna = Voice.from_samples(speech(), 24_000, WORDS, "Anna")
    again = Voice.from_samples(speech(), 24_000, WORDS, "Anna again")
    assert anna.key == again.key == anna.key
    assert len(anna.key) == 64
    assert anna != again  # two objects; the key is what tells voices apart


def test_another_clip_or_transcript_is_another_key() -> None:
    anna = Voice.from_samples(speech(), 24_000, WORDS)
    assert anna.key != Voice.from_samples(speech(gain=0.31), 24_000, WORDS).key
    assert anna.key != Voice.from_samples(speech(), 24_000, WORDS + " indeed").key


def test_a_voice_is_forgotten_when_nobody_holds_it() -> None:
    voice = Voice.from_samples(speech(), 24_000, WORDS)
    assert voice.key
    samples, gone = weakref.ref(voice.samples), weakref.ref(voice)
    del voice
    gc.collect()
    assert gone() is None
    assert samples() is None


def test_a_voice_can_be_pickled() -> None:
    voice = Voice.from_samples(speech(), 24_000, WORDS, "Anna")
    again = pickle.loads(pickle.dumps(voice))
    assert (again.name, again.transcript, again.key) == ("Anna", WORDS, voice.key)


def test_speaking_rate_is_kept_within_reason() -> None:
    assert Voice.from_samples(speech(6.0), 24_000, WORDS).chars_per_second == pytest.approx(80 / 6)
    slow = Voice.from_samples(speech(18.0), 24_000, WORDS)
    assert slow.chars_per_second == 8.0
    fast = Voice.from_samples(speech(3.0), 24_000, WORDS)
    assert fast.chars_per_second == 25.0
