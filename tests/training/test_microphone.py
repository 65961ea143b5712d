"""What a microphone makes of clean speech, measured."""

from __future__ import annotations

import numpy as np
import pytest

from chroma_plugin.audio import INPUT_RATE_HZ, Samples, level_dbfs
from chroma_plugin.training.microphone import (
    CLEAN,
    Conditions,
    coloured_noise,
    heard,
    noisy,
    room_response,
    with_silence,
)


def tone(seconds: float = 1.0, hz: float = 440.0) -> Samples:
    time = np.arange(int(seconds * INPUT_RATE_HZ)) / INPUT_RATE_HZ
    return (0.1 * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def only(**changes: object) -> Conditions:
    """One disturbance, always."""
    values = {"room": 0, "band": 0, "clipped": 0, "noise": 0, "level_dbfs": (-20.0, -20.0)}
    return Conditions(**{**values, **changes})  # type: ignore[arg-type]


def band_db(samples: Samples, low: float, high: float) -> float:
    power = np.abs(np.fft.rfft(samples)) ** 2
    hz = np.fft.rfftfreq(len(samples), 1 / INPUT_RATE_HZ)
    return float(10 * np.log10(power[(hz >= low) & (hz < high)].mean() + 1e-20))


def test_clean_speech_changes_its_level_only() -> None:
    out = noisy(tone(), np.random.default_rng(0), CLEAN)
    assert level_dbfs(out) == pytest.approx(-23, abs=0.01)
    assert np.corrcoef(out, tone())[0, 1] == pytest.approx(1)


def test_it_is_the_same_for_the_same_seed_and_stays_in_range() -> None:
    for seed in range(30):
        one, two = (noisy(tone(), np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(one, two)
        assert one.dtype == np.float32 and len(one) == len(tone())
        assert np.isfinite(one).all() and np.abs(one).max() <= 1
    assert not np.array_equal(one, noisy(tone(), np.random.default_rng(99)))


def test_noise_is_as_strong_as_asked() -> None:
    clean = tone()
    out = noisy(clean, np.random.default_rng(3), only(noise=1, snr_db=(10.0, 10.0)))
    speech = np.dot(out, clean) / np.dot(clean, clean) * clean
    snr = level_dbfs(speech) - level_dbfs(out - speech)
    assert snr == pytest.approx(10, abs=0.5)


@pytest.mark.parametrize(("colour", "slope_db"), [(0.0, 0.0), (1.0, -3.0), (2.0, -6.0)])
def test_noise_has_its_colour(colour: float, slope_db: float) -> None:
    noise = coloured_noise(np.random.default_rng(0), 1 << 16, colour)
    falls = band_db(noise, 2000, 4000) - band_db(noise, 1000, 2000)
    assert falls == pytest.approx(slope_db, abs=0.6)
    assert level_dbfs(noise) == pytest.approx(0, abs=0.01)


def test_a_room_echoes_after_the_sound_and_falls_by_60_db() -> None:
    response = room_response(np.random.default_rng(0), 0.3, INPUT_RATE_HZ)
    assert response[0] == 1 and not response[1:30].any()
    early, late = response[300:1300], response[-1000:]
    assert level_dbfs(early) - level_dbfs(late) == pytest.approx(45, abs=12)
    click = np.zeros(INPUT_RATE_HZ, np.float32)
    click[1000] = 0.5
    out = noisy(click, np.random.default_rng(1), only(room=1))
    assert not np.abs(out[:1000]).max() > 1e-6 and np.abs(out[1400:3000]).max() > 1e-4


def test_a_narrow_band_takes_the_highs_away() -> None:
    hiss = np.random.default_rng(0).standard_normal(INPUT_RATE_HZ).astype(np.float32) * 0.1
    out = noisy(hiss, np.random.default_rng(0), only(band=1))
    assert band_db(out, 7500, 8000) < band_db(out, 500, 2500) - 6


def test_clipping_flattens_peaks() -> None:
    out = noisy(tone(), np.random.default_rng(0), only(clipped=1))
    assert np.mean(np.abs(out) > 0.999 * np.abs(out).max()) > 0.1


def test_silence_is_put_around() -> None:
    out = with_silence(tone(0.5), np.random.default_rng(0))
    sounding = np.flatnonzero(out)
    assert 0.05 <= sounding[0] / INPUT_RATE_HZ <= 0.6
    assert 0.1 <= (len(out) - 1 - sounding[-1]) / INPUT_RATE_HZ <= 0.81


def test_a_users_turn_is_both_and_silence_stays_silent() -> None:
    out = heard(tone(0.5), np.random.default_rng(0), CLEAN)
    assert len(out) > len(tone(0.5)) and out[0] == 0
    assert not noisy(np.zeros(1000, np.float32), np.random.default_rng(0)).any()
