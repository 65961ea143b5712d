"""What becomes of the mark on replies on its way to a listener, how it sounds, what it costs.

Recordings are marked as replies are, in frames of 80 ms; then they go through codecs and
telephones, are cut into pieces, and the detector is asked about each, marked and unmarked.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

from chroma_plugin.audio import (
    FRAME_SAMPLES,
    OUTPUT_RATE_HZ,
    Samples,
    float_to_pcm,
    level_dbfs,
    pcm_to_float,
    read_audio,
    resample,
)
from chroma_plugin.errors import ChromaError
from chroma_plugin.perth import THRESHOLD, Perth
from chroma_plugin.watermark import Marker

PIECES_S = (1.0, 2.0, 5.0)
AUDIBLE_DBFS = -50.0
"""Pieces below it are pauses, and left out."""
ENCODERS = {
    "Opus 24 kbit/s": ("ogg", "-c:a libopus -b:a 24k -application voip"),
    "Opus 12 kbit/s": ("ogg", "-c:a libopus -b:a 12k -application voip"),
    "MP3 48 kbit/s": ("mp3", "-c:a libmp3lame -b:a 48k"),
    "MP3 32 kbit/s": ("mp3", "-c:a libmp3lame -b:a 32k"),
}
"""Codecs that ffmpeg is asked for: the container, and its options."""

Way = Callable[[Samples], Samples]


@dataclass(frozen=True, slots=True)
class Found:
    """Pieces of one length after one way.

    Attributes:
        pieces: how many there were, marked and unmarked each.
        found: how many marked ones the detector found.
        mistaken: how many unmarked ones it took for marked.
        lowest: its lowest confidence in a marked one.
        highest: its highest in an unmarked one.
    """

    pieces: int
    found: int
    mistaken: int
    lowest: float
    highest: float


@dataclass(slots=True)
class Marks:
    """What was measured.

    Attributes:
        files: of how many recordings.
        seconds: their length together.
        found: by way, then by the length of pieces ("1 s", ..., "whole").
        pesq_wide: PESQ (P.862.2) of marked by unmarked, mean and lowest; None without `pesq`.
        pesq_narrow: the same at 8 kHz (P.862).
        distance_db: mean distance of the log spectra.
        mark_share: seconds of one core for a second of speech, put into it in frames.
        detect_share: the same of the detector.
        streamed_error: the largest difference between marking in frames and in one piece.
        seam_step: the largest step between neighbouring samples of the mark where frames meet, by
            the largest one anywhere; of a mark without seams it is at most 1.
        clipped: samples that were not at full scale before and are now.
    """

    files: int
    seconds: float
    found: dict[str, dict[str, Found]] = field(default_factory=dict)
    pesq_wide: tuple[float, float] | None = None
    pesq_narrow: tuple[float, float] | None = None
    distance_db: float = 0.0
    mark_share: float = 0.0
    detect_share: float = 0.0
    streamed_error: float = 0.0
    seam_step: float = 0.0
    clipped: int = 0

    def show(self, out: Console) -> None:
        """Writes tables."""
        lengths = list(next(iter(self.found.values())))
        table = Table("way", *lengths, "false", "highest unmarked", box=None)
        for way, by_length in self.found.items():
            cells = [f"{f.found}/{f.pieces} ({f.lowest:.2f})" for f in by_length.values()]
            mistaken = sum(f.mistaken for f in by_length.values())
            asked = sum(f.pieces for f in by_length.values())
            highest = max(f.highest for f in by_length.values())
            table.add_row(way, *cells, f"{mistaken}/{asked}", f"{highest:.2f}")
        out.print(
            f"{self.files} recordings, {self.seconds:.1f} s; found/pieces (lowest confidence)"
        )
        out.print(table)
        for name, scores in (("wide", self.pesq_wide), ("narrow", self.pesq_narrow)):
            if scores is not None:
                out.print(f"PESQ {name} band: mean {scores[0]:.2f}, lowest {scores[1]:.2f}")
        out.print(f"log spectral distance: {self.distance_db:.2f} dB")
        out.print(
            f"one core: marking {self.mark_share:.2%}, detecting {self.detect_share:.2%} of real "
            f"time; streamed and whole differ by {self.streamed_error:.1e}, steps at seams are "
            f"{self.seam_step:.2f} of the largest, {self.clipped} samples clipped"
        )

    def line(self) -> str:
        """All of it as one line of JSON."""
        return json.dumps({"bench": "watermark", **asdict(self)})


def ways() -> dict[str, Way]:
    """What may happen to a reply, by name; codecs only where ffmpeg is installed."""
    known: dict[str, Way] = {
        "untouched": lambda x: x,
        "mu-law 8 kHz": lambda x: resample(_mu_law(resample(x, OUTPUT_RATE_HZ, 8000)), 8000, 24000),
        "24-16-24 kHz": lambda x: resample(resample(x, OUTPUT_RATE_HZ, 16000), 16000, 24000),
        "24-8-24 kHz": lambda x: resample(resample(x, OUTPUT_RATE_HZ, 8000), 8000, 24000),
        "12 dB quieter": lambda x: x * np.float32(0.25),
        "noise at 20 dB": _noisy,
        "1% faster": lambda x: resample(x, 24240, 24000),
    }
    if shutil.which("ffmpeg") is not None:
        for name, (container, options) in ENCODERS.items():
            known[name] = _by_ffmpeg(container, options.split())
        opus = known["Opus 24 kbit/s"]
        known["Opus 24 kbit/s, mu-law"] = lambda x: known["mu-law 8 kHz"](opus(x))
    return known


def measure_marks(files: Sequence[Path], *, perth: Perth | None = None) -> Marks:
    """Marks recordings and looks for the mark.

    Raises:
        AudioError: a file cannot be read.
        ChromaError: the mark cannot be made, or ffmpeg fails.
    """
    perth = perth or Perth.load()
    marker = perth.marker()
    clips = [read_audio(path, OUTPUT_RATE_HZ) for path in files]
    marked = [mark_in_frames(clip, marker) for clip in clips]
    report = Marks(len(clips), sum(map(len, clips)) / OUTPUT_RATE_HZ)
    for name, way in ways().items():
        after = [way(clip) for clip in marked], [way(clip) for clip in clips]
        report.found[name] = {
            label: _ask(perth, *after, length_s)
            for label, length_s in [*((f"{s:g} s", s) for s in PIECES_S), ("whole", None)]
        }
    _quality(report, clips, marked)
    _cost(report, clips, perth, marker)
    return report


def mark_in_frames(clip: Samples, marker: Marker) -> Samples:
    """A recording marked as a reply is, rounded to 16 bits as it is sent."""
    stream = marker.stream()
    frames = [clip[i : i + FRAME_SAMPLES] for i in range(0, len(clip), FRAME_SAMPLES)]
    return pcm_to_float(float_to_pcm(np.concatenate([stream.push(frame) for frame in frames])))


def _ask(
    perth: Perth, marked: list[Samples], plain: list[Samples], length_s: float | None
) -> Found:
    sure = [perth.confidence(piece) for clip in marked for piece in _cut(clip, length_s)]
    other = [perth.confidence(piece) for clip in plain for piece in _cut(clip, length_s)]
    return Found(
        pieces=len(sure),
        found=sum(c >= THRESHOLD for c in sure),
        mistaken=sum(c >= THRESHOLD for c in other),
        lowest=round(min(sure, default=0.0), 3),
        highest=round(max(other, default=0.0), 3),
    )


def _cut(clip: Samples, length_s: float | None) -> list[Samples]:
    """Pieces from anywhere: the first one begins half a piece in, where there is room."""
    if length_s is None:
        return [clip]
    length = round(length_s * OUTPUT_RATE_HZ)
    offset = length // 2 if len(clip) >= length + length // 2 else 0
    pieces = [clip[i : i + length] for i in range(offset, len(clip) - length + 1, length)]
    return [piece for piece in pieces if level_dbfs(piece) >= AUDIBLE_DBFS]


def _quality(report: Marks, clips: list[Samples], marked: list[Samples]) -> None:
    distances = [_log_spectral_distance(a, b) for a, b in zip(clips, marked, strict=True)]
    report.distance_db = round(float(np.mean(distances)), 3)
    report.clipped = sum(
        int(np.sum((np.abs(b) >= 0.9999) & (np.abs(a) < 0.9999)))
        for a, b in zip(clips, marked, strict=True)
    )
    try:
        from pesq import pesq
    except ImportError:
        return
    scores = {}
    for rate_hz, band in ((16000, "wb"), (8000, "nb")):
        scores[band] = [
            pesq(
                rate_hz,
                resample(a, OUTPUT_RATE_HZ, rate_hz),
                resample(b, OUTPUT_RATE_HZ, rate_hz),
                band,
            )
            for a, b in zip(clips, marked, strict=True)
        ]
    wide, narrow = scores["wb"], scores["nb"]
    report.pesq_wide = round(float(np.mean(wide)), 2), round(min(wide), 2)
    report.pesq_narrow = round(float(np.mean(narrow)), 2), round(min(narrow), 2)


def _cost(report: Marks, clips: list[Samples], perth: Perth, marker: Marker) -> None:
    whole = np.concatenate(clips)
    stream = marker.stream()
    frames = [whole[i : i + FRAME_SAMPLES] for i in range(0, len(whole), FRAME_SAMPLES)]
    begun_s = time.process_time()
    streamed = np.concatenate([stream.push(frame) for frame in frames])
    marking_s = time.process_time() - begun_s
    begun_s = time.process_time()
    for clip in clips:
        perth.confidence(clip)
    detecting_s = time.process_time() - begun_s
    at_once = marker.stream().push(whole)
    steps = np.abs(np.diff(streamed - whole))
    report.mark_share = round(marking_s / report.seconds, 5)
    report.detect_share = round(detecting_s / report.seconds, 5)
    report.streamed_error = float(np.abs(streamed - at_once).max())
    report.seam_step = round(
        float(steps[FRAME_SAMPLES - 1 :: FRAME_SAMPLES].max() / steps.max()), 3
    )


def _log_spectral_distance(a: Samples, b: Samples) -> float:
    """Root mean square over bins of 20 ms spectra, mean over those with sound, in dB."""
    frames = [x[: len(x) // 480 * 480].reshape(-1, 480) * np.hanning(480) for x in (a, b)]
    loud = (frames[0] ** 2).mean(axis=1) > 1e-6
    levels = [20 * np.log10(np.abs(np.fft.rfft(x[loud])) + 1e-5) for x in frames]
    if not loud.any():
        return 0.0
    return float(np.sqrt(((levels[0] - levels[1]) ** 2).mean(axis=1)).mean())


def _mu_law(samples: Samples) -> Samples:
    """There and back through the eight bits of a telephone (ITU-T G.711), by libsndfile."""
    import io

    data = io.BytesIO()
    soundfile.write(data, samples, 8000, format="WAV", subtype="ULAW")
    data.seek(0)
    back, _ = soundfile.read(data, dtype="float32")
    return np.asarray(back, np.float32)


def _noisy(samples: Samples) -> Samples:
    noise = np.random.default_rng(0).standard_normal(len(samples))
    louder = samples + noise * np.sqrt(np.mean(samples**2)) * 0.1
    return np.asarray(louder, np.float32)


def _by_ffmpeg(container: str, options: list[str]) -> Way:
    def way(samples: Samples) -> Samples:
        raw = ["-f", "f32le", "-ar", str(OUTPUT_RATE_HZ), "-ac", "1"]
        sound = samples.astype("<f4").tobytes()
        coded = _ffmpeg([*raw, "-i", "-", *options, "-f", container, "-"], sound)
        back = _ffmpeg(["-f", container, "-i", "-", *raw, "-"], coded)
        return np.asarray(np.frombuffer(back, "<f4"), np.float32)

    return way


def _ffmpeg(arguments: list[str], data: bytes) -> bytes:
    command = ["ffmpeg", "-v", "error", *arguments]
    done = subprocess.run(command, input=data, capture_output=True, timeout=120)
    if done.returncode:
        raise ChromaError(f"ffmpeg failed: {done.stderr.decode(errors='replace').strip()[-200:]}")
    return done.stdout
