"""PCM, resampling, files and levels: what goes in comes out, and what cannot be used says why."""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from chroma_plugin import audio
from chroma_plugin.audio import (
    Resampler,
    fade_out,
    float_to_pcm,
    level_dbfs,
    pcm_to_float,
    read_audio,
    resample,
    write_wav,
)
from chroma_plugin.errors import AudioError


def tone(seconds: float, rate_hz: int, hz: float = 440.0, gain: float = 0.5) -> np.ndarray:
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (gain * np.sin(2 * np.pi * hz * t)).astype(np.float32)


# -- PCM and float ---------------------------------------------------------------------------


def test_pcm_is_the_same_from_bytes_and_int16() -> None:
    pcm = np.array([0, 1, -1, 32767, -32768], np.int16)
    expected = pcm.astype(np.float32) / 32768
    for given in (pcm, pcm.tobytes(), bytearray(pcm.tobytes()), memoryview(pcm.tobytes())):
        samples = pcm_to_float(given)
        assert samples.dtype == np.float32
        np.testing.assert_array_equal(samples, expected)


def test_a_view_of_int16_is_read_by_its_bytes() -> None:
    assert len(pcm_to_float(memoryview(np.zeros(3, np.int16)))) == 3


def test_every_pcm_value_survives_the_way_to_float_and_back() -> None:
    pcm = np.arange(-32768, 32768).astype("<i2").tobytes()
    assert float_to_pcm(pcm_to_float(pcm)) == pcm


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_samples_are_clipped_to_full_scale(dtype: Any) -> None:
    samples = pcm_to_float(np.array([0.5, 3.0, -3.0], dtype))
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, np.array([0.5, 1.0, -1.0], np.float32))


def test_doubles_beyond_float32_are_clipped_too() -> None:
    np.testing.assert_array_equal(pcm_to_float(np.array([1e300])), [1.0])


def test_float_input_is_not_written_to() -> None:
    given = np.array([2.0, 0.0], np.float32)
    pcm_to_float(given)[:] = 7
    np.testing.assert_array_equal(given, [2.0, 0.0])


@pytest.mark.parametrize(
    ("pcm", "says"),
    [
        (b"abc", "3 bytes are no whole number of 16-bit samples"),
        (np.zeros((2, 8), np.float32), r"shape \(2, 8\) is not mono"),
        (np.zeros((8, 1), np.int16), "not mono"),
        (np.zeros(8, np.int32), "type int32; use int16"),
        (np.zeros(8, np.uint8), "type uint8"),
        (np.zeros(8, np.complex64), "type complex64"),
        (np.zeros(8, bool), "type bool"),
        (np.array([0.0, np.nan]), "NaN or infinite"),
        (np.array([0.0, -np.inf], np.float32), "NaN or infinite"),
        (None, "NoneType is not audio"),
        ("hello", "str is not audio"),
        (1.0, "float is not audio"),
    ],
)
def test_what_is_no_pcm_is_refused(pcm: Any, says: str) -> None:
    with pytest.raises(AudioError, match=says):
        pcm_to_float(pcm)


def test_nothing_is_a_piece_of_audio() -> None:
    assert pcm_to_float(b"").size == 0
    assert pcm_to_float(np.zeros(0, np.float32)).size == 0
    assert float_to_pcm(np.zeros(0, np.float32)) == b""


def test_float_to_pcm_clips_and_silences_nan() -> None:
    given = np.array([2.0, -2.0, np.nan, np.inf, -np.inf, 0.5], np.float32)
    pcm = np.frombuffer(float_to_pcm(given), "<i2")
    np.testing.assert_array_equal(pcm, [32767, -32768, 0, 32767, -32768, 16384])


# -- resampling ------------------------------------------------------------------------------


@pytest.mark.parametrize("from_hz", [8_000, 16_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("to_hz", [8_000, 16_000, 24_000, 48_000])
def test_a_stream_is_resampled_as_the_whole(from_hz: int, to_hz: int) -> None:
    whole = tone(1.0, from_hz)
    expected = resample(whole, from_hz, to_hz)
    for piece in (from_hz // 50, 333, from_hz):  # 20 ms as hosts send, odd, all at once
        stream = Resampler(from_hz, to_hz)
        pieces = [stream.push(whole[i : i + piece]) for i in range(0, len(whole), piece)]
        joined = np.concatenate([*pieces, stream.push(whole[:0], last=True)])
        assert abs(len(joined) - len(expected)) <= 1
        length = min(len(joined), len(expected))
        np.testing.assert_allclose(joined[:length], expected[:length], atol=2e-4)


def test_random_pieces_give_the_same_stream() -> None:
    rng = np.random.default_rng(3)
    whole = rng.uniform(-0.5, 0.5, 24_000).astype(np.float32)
    expected = resample(whole, 24_000, 16_000)
    stream, at, pieces = Resampler(24_000, 16_000), 0, []
    while at < len(whole):
        step = int(rng.integers(0, 700))  # an empty piece too
        pieces.append(stream.push(whole[at : at + step], last=at + step >= len(whole)))
        at += step
    np.testing.assert_allclose(np.concatenate(pieces), expected, atol=2e-4)


def test_a_tone_keeps_its_pitch_and_level() -> None:
    heard = resample(tone(1.0, 48_000), 48_000, 16_000)
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
    assert np.argmax(spectrum) == 440
    assert level_dbfs(heard) == pytest.approx(level_dbfs(tone(1.0, 16_000)), abs=0.1)


def test_the_same_rate_changes_nothing() -> None:
    given = tone(0.1, 16_000)
    np.testing.assert_array_equal(resample(given, 16_000, 16_000), given)
    np.testing.assert_array_equal(Resampler(16_000, 16_000).push(given, last=True), given)


@pytest.mark.parametrize("rates", [(0, 16_000), (16_000, -1), (7, 16_000), (16_000, 10**9)])
def test_a_rate_that_cannot_be_right_is_refused(rates: tuple[int, int]) -> None:
    with pytest.raises(AudioError, match="cannot be right; speech has 8,000 to 48,000 Hz"):
        Resampler(*rates)
    with pytest.raises(AudioError, match="cannot be right"):
        resample(tone(0.1, 16_000), *rates)


# -- reading files ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg"])
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 24_000, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_files_of_any_kind_become_mono_at_the_rate_asked_for(
    tmp_path: Path, kind: str, rate_hz: int, channels: int
) -> None:
    path = tmp_path / f"tone.{kind}"
    soundfile.write(path, np.stack([tone(1.0, rate_hz)] * channels, axis=1), rate_hz)
    samples = read_audio(path, 16_000)
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(16_000, abs=2_500)  # MP3 and OGG pad
    assert level_dbfs(samples) == pytest.approx(level_dbfs(tone(1.0, 16_000)), abs=1.0)


def test_stereo_is_the_mean_of_its_channels(tmp_path: Path) -> None:
    left, right = tone(0.5, 16_000), np.zeros(8_000, np.float32)
    soundfile.write(tmp_path / "s.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "s.wav", 16_000), left / 2, atol=1e-6)


def test_a_file_of_several_blocks_is_whole(tmp_path: Path) -> None:
    samples = tone(70.0, 16_000)
    soundfile.write(tmp_path / "long.wav", samples, 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "long.wav", 16_000), samples)


def wav(data: bytes, *, promised: int | None = None, rate_hz: int = 16_000) -> bytes:
    """A mono PCM16 WAV file whose header says what it is told to say."""
    promised = len(data) if promised is None else promised
    header = struct.pack("<4sI8sIHHIIHH", b"RIFF", min(promised + 36, 2**32 - 1), b"WAVEfmt ",
                         16, 1, 1, rate_hz, rate_hz * 2, 2, 16)  # fmt: skip
    return header + struct.pack("<4sI", b"data", promised) + data


SECOND = float_to_pcm(tone(1.0, 16_000))


@pytest.mark.parametrize(
    ("data", "samples"),
    [
        (wav(SECOND), 16_000),
        (wav(SECOND)[: 44 + 20_000], 10_000),  # cut short
        (wav(SECOND)[: 44 + 20_001], 10_000),  # cut short inside a sample
        (wav(SECOND, promised=10**9), 16_000),
        (wav(SECOND, promised=2**32 - 1), 16_000),  # what a recorder writes that cannot seek
        (wav(SECOND, promised=2_000), 1_000),
    ],
)
def test_a_wav_that_promises_too_much_is_read_as_far_as_it_goes(
    tmp_path: Path, data: bytes, samples: int
) -> None:
    path = tmp_path / "odd.wav"
    path.write_bytes(data)
    assert len(read_audio(path, 16_000)) == samples


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cannot be read as audio .*Use WAV, FLAC, MP3 or OGG"),
        (b"These are words, not sounds. " * 50, "cannot be read as audio"),
        (b"\x89PNG\r\n\x1a\n" + bytes(2_000), "cannot be read as audio"),
        (wav(SECOND)[:30], "cannot be read as audio"),  # cut short inside the header
        (wav(b""), "holds no audio: it is empty or its header is wrong"),
        (wav(SECOND, promised=0), "holds no audio: it is empty or its header is wrong"),
        (wav(SECOND, rate_hz=0), "cannot be read as audio"),
        (wav(SECOND, rate_hz=100), "100 Hz cannot be right"),
    ],
)
def test_what_is_no_audio_is_refused_by_name(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "odd.wav"
    path.write_bytes(data)
    with pytest.raises(AudioError, match=rf"odd\.wav: .*{says}") as caught:
        read_audio(path, 16_000)
    assert str(caught.value).count(str(path)) == 1  # said once


def test_nan_in_a_float_wav_is_refused(tmp_path: Path) -> None:
    for bad in (np.nan, np.inf):
        samples = tone(0.5, 16_000)
        samples[100] = bad
        soundfile.write(tmp_path / "nan.wav", samples, 16_000, subtype="FLOAT")
        with pytest.raises(AudioError, match="holds NaN or infinite samples; export it again"):
            read_audio(tmp_path / "nan.wav", 16_000)


def test_a_float_wav_above_full_scale_is_clipped(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "loud.wav", tone(0.5, 16_000, gain=4.0), 16_000, subtype="FLOAT")
    assert np.abs(read_audio(tmp_path / "loud.wav", 24_000)).max() == 1.0


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"nothing\.wav: no such file"):
        read_audio(tmp_path / "nothing.wav", 16_000)
    with pytest.raises(AudioError, match=r"cannot be opened .*directory"):
        read_audio(tmp_path, 16_000)


def test_a_file_that_is_too_long_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    soundfile.write(path, tone(3.0, 16_000), 16_000)
    assert len(read_audio(path, 16_000, max_seconds=3.0)) == 48_000
    with pytest.raises(AudioError, match=r"long\.flac: longer than 2 s; cut it first"):
        read_audio(path, 16_000, max_seconds=2.0)


# -- writing files ---------------------------------------------------------------------------


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "reply.wav"
    write_wav(path, SECOND, 24_000)
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype) == (24_000, 1, "PCM_16")
    assert soundfile.read(path, dtype="int16")[0].tobytes() == SECOND
    write_wav(path, b"", 24_000)
    assert soundfile.info(path).frames == 0
    assert os.listdir(tmp_path) == ["reply.wav"]


def test_a_written_file_has_the_usual_rights_and_keeps_its_own(tmp_path: Path) -> None:
    path, usual = tmp_path / "reply.wav", tmp_path / "usual"
    usual.touch()
    write_wav(path, SECOND, 24_000)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)
    path.chmod(0o640)
    write_wav(path, SECOND, 24_000)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.wav").symlink_to(tmp_path / "reply.wav")
    write_wav(tmp_path / "link.wav", SECOND, 24_000)
    assert (tmp_path / "link.wav").is_symlink()
    assert soundfile.info(tmp_path / "reply.wav").frames == 16_000


def test_on_a_full_disk_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "reply.wav"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(audio.os, "replace", full)
    with pytest.raises(AudioError, match=r"reply\.wav: cannot be written \(No space left on"):
        write_wav(path, SECOND, 24_000)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["reply.wav"]  # no half of a file beside it


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_device_is_written_to_and_never_replaced() -> None:
    with pytest.raises(AudioError, match=r"/dev/full: cannot be written .No space left on device"):
        write_wav("/dev/full", SECOND, 24_000)
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"none/reply\.wav: cannot be written .No such file"):
        write_wav(tmp_path / "none" / "reply.wav", SECOND, 24_000)
    with pytest.raises(AudioError, match=r"cannot be written .*directory"):
        write_wav(tmp_path, SECOND, 24_000)


# -- levels ----------------------------------------------------------------------------------


def test_a_fade_ends_in_silence_and_leaves_the_rest() -> None:
    given = np.ones(2_400, np.float32)
    faded = fade_out(given, 10.0)
    np.testing.assert_array_equal(faded[:2_160], 1.0)
    assert faded[-1] == 0.0
    assert (np.diff(faded[2_160:]) < 0).all()
    assert given[-1] == 1.0  # a copy


@pytest.mark.parametrize("count", [0, 1, 50])
def test_a_fade_longer_than_the_sound_fades_all_of_it(count: int) -> None:
    faded = fade_out(np.ones(count, np.float32), 1_000.0)
    assert len(faded) == count
    assert not count or faded[-1] == 0.0
    np.testing.assert_array_equal(fade_out(np.ones(count, np.float32), 0.0), np.ones(count))


def test_levels() -> None:
    assert level_dbfs(np.ones(100, np.float32)) == pytest.approx(0.0)
    assert level_dbfs(np.full(100, 0.1, np.float32)) == pytest.approx(-20.0, abs=1e-3)
    assert level_dbfs(tone(1.0, 16_000, gain=1.0)) == pytest.approx(-3.01, abs=0.01)
    assert level_dbfs(np.zeros(100, np.float32)) == float("-inf")
    assert level_dbfs(np.zeros(0, np.float32)) == float("-inf")
