"""VoiceStore: a folder of voices, each with the consent that makes it usable.

::

    FOLDER/
      .lock
      voices/NAME/voice.json     transcript, consent, hashes
      voices/NAME/sample.flac    the clip, 24 kHz mono
      voices/NAME/codes-ID.npy   what the codec of that identity made of it, if an engine did
      consents/ID.json           consents that wait for their voice, or were given for one

A name is an id (`ada-2`), never a path. A voice is written beside its place and moved there, under
a lock that other processes heed; what is deleted is gone, its codes too, and engines that hold it
are told. A voice without a consent record is refused. Knows no engine and no server.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chroma_plugin.audio import OUTPUT_RATE_HZ, replace_file
from chroma_plugin.errors import VoiceError
from chroma_plugin.file_lock import file_lock
from chroma_plugin.voice import Voice
from chroma_plugin.voice_clip import as_flac, decode_clip
from chroma_plugin.voice_consent import Consent, check_consent
from chroma_plugin.voice_keeping import Codes, KeptVoice, read_codes
from chroma_plugin.voice_upload import decode_upload

log = logging.getLogger(__name__)

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
STOCK_NAMES = frozenset(
    {"alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage"}
    | {"shimmer", "verse"}
)
"""What stock clients ask for when nobody told them otherwise: the default voice."""
RESERVED = STOCK_NAMES | {"default"}
"""Names that mean the default voice everywhere."""
DEVICES = re.compile(r"con|prn|aux|nul|com\d|lpt\d")
"""Names that no folder can have on Windows."""
CODEC = re.compile(r"[0-9a-f]{32}")
MAX_CODECS = 8
"""Codecs whose codes are kept for a voice; the oldest ones go first."""


@dataclass(frozen=True, slots=True)
class VoiceRecord:
    """What the store knows of a voice.

    Attributes:
        name: its id.
        transcript: what is said in the clip.
        consent: the record of it.
        sample_sha256: of the file that was given.
        key: of the voice, as `Voice.key`.
        seconds: the length of the clip.
        when: when it was added, in seconds since 1970.
    """

    name: str
    transcript: str
    consent: Consent
    sample_sha256: str
    key: str
    seconds: float
    when: float


def default_folder() -> Path:
    """Where voices are kept: $CHROMA_VOICES, or the user's data folder."""
    if given := os.environ.get("CHROMA_VOICES"):
        return Path(given)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "chroma-plugin" / "voices"


class VoiceStore:
    """A folder of voices; any number of processes may use it at the same time.

    Args:
        folder: made if it is missing.

    Raises:
        VoiceError: it cannot be made or written to.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._voices, self._consents = self._folder / "voices", self._folder / "consents"
        self._mutex = threading.Lock()
        self._given: dict[str, tuple[VoiceRecord, KeptVoice]] = {}  # voices that somebody has
        self._writing = ThreadPoolExecutor(1, "voice-codes")
        try:
            for part in (self._folder, self._voices, self._consents):
                part.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._locked():
                self._sweep()
        except OSError as error:
            raise VoiceError(
                f"{folder}: no folder for voices can be made there ({error.strerror})."
            ) from error

    # -- voices ------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The names of all voices, in order."""
        return sorted(p.name for p in self._voices.iterdir() if NAME.fullmatch(p.name))

    def records(self) -> list[VoiceRecord]:
        """All voices, in the order of their names; what is damaged is left out."""
        found = []
        for name in self.names():
            try:
                found.append(self.record(name))
            except VoiceError:
                continue
        return found

    def record(self, name: str) -> VoiceRecord:
        """What is known of a voice.

        Raises:
            VoiceError: there is none of that name, or its record is damaged or has no consent.
        """
        try:
            return self._read(name)
        except FileNotFoundError:
            raise VoiceError(f"There is no voice {name!r}; `voices list` shows what is.") from None
        except OSError as error:
            raise _damaged(name) from error

    def _read(self, name: str) -> VoiceRecord:
        """The same; raises OSError if its file is not there, or cannot be read now."""
        path = self._place(name) / "voice.json"
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            consent = Consent(**fields.pop("consent"))
            record = VoiceRecord(**fields, consent=consent)
        except (ValueError, TypeError, KeyError) as error:
            raise _damaged(name) from error
        check_consent(consent)
        return record

    def get(self, name: str) -> Voice:
        """A voice, ready for an engine, with the codes that engines made of it before.

        Raises:
            VoiceError: there is none, it has no consent, or its clip is not the one that was
                enrolled.
        """
        record = self.record(name)
        voice = Voice.from_file(self._place(name) / "sample.flac", record.transcript, name)
        if voice.key != record.key:
            raise VoiceError(
                f"The clip of voice {name!r} is not the one that its consent was given for. "
                "Remove the voice and add it again."
            )
        return voice.kept_by(self._keeper(record))

    def add(self, name: str, clip: bytes, transcript: str, consent: Consent) -> VoiceRecord:
        """Enrols a voice.

        Args:
            name: its id: lower case letters, digits, - and _; none of the reserved ones.
            clip: a file of 3 to 30 s: WAV, FLAC, MP3 or OGG.
            transcript: what is said in it, word for word.
            consent: of its owner.

        Raises:
            VoiceError: the name is taken or none; consent, clip or transcript cannot be used.
        """
        if name in RESERVED:
            raise VoiceError(f"The name {name!r} means the default voice; use another one.")
        place = self._place(name)
        if DEVICES.fullmatch(name):
            raise VoiceError(f"{name!r} is a device's name on Windows; use another one.")
        check_consent(consent)
        samples = decode_upload(clip)
        sample = as_flac(Voice.from_samples(samples, OUTPUT_RATE_HZ, transcript, name).samples)
        voice = Voice.from_samples(decode_clip(sample), OUTPUT_RATE_HZ, transcript, name)
        record = VoiceRecord(
            name=name,
            transcript=voice.transcript,
            consent=consent,
            sample_sha256=hashlib.sha256(clip).hexdigest(),
            key=voice.key,
            seconds=round(voice.seconds, 3),
            when=time.time(),
        )
        new = self._voices / f".new-{secrets.token_hex(8)}"
        with self._locked():
            if place.exists():
                raise VoiceError(f"There is a voice {name!r}; remove it first, or use another id.")
            self.consent(consent.id)  # it may have been withdrawn while the clip was decoded
            try:
                new.mkdir(mode=0o700)
                (new / "sample.flac").write_bytes(sample)
                (new / "voice.json").write_text(json.dumps(asdict(record), indent=1))
                os.replace(new, place)
            except OSError as error:
                raise VoiceError(f"{place}: cannot be written ({error.strerror}).") from error
            finally:
                shutil.rmtree(new, ignore_errors=True)
        return record

    def remove(self, name: str) -> None:
        """Deletes a voice: its clip, its record, its codes, and its consent if no other voice has
        the same one. Engines of this process that hold it let go of it.

        Raises:
            VoiceError: there is none of that name, or it cannot be deleted.
        """
        place = self._place(name)
        gone = self._voices / f".gone-{secrets.token_hex(8)}"
        with self._locked():
            consent_id = None
            try:
                consent_id = self.record(name).consent.id
            except VoiceError:
                if not place.exists():
                    raise
            try:
                os.replace(place, gone)
                shutil.rmtree(gone)
                others = {record.consent.id for record in self.records()}
                if consent_id is not None and consent_id not in others:
                    self._consent_place(consent_id).unlink(missing_ok=True)
            except OSError as error:
                raise VoiceError(f"{place}: cannot be deleted ({error.strerror}).") from error
        self._end(name)

    def notice_removals(self) -> None:
        """Tells engines of this process which voices are gone, whichever process deleted them.

        Raises:
            OSError: the folder is away for now, which removes nobody.
        """
        self._voices.stat()
        for name, (given, _) in list(self._given.items()):
            try:
                there = self._read(name) == given
            except (FileNotFoundError, VoiceError):
                there = False
            if not there:
                self._end(name)

    def _end(self, name: str) -> None:
        with self._mutex:
            _, keeper = self._given.pop(name, (None, None))
        if keeper is not None:
            keeper.end()

    # -- codes -------------------------------------------------------------------------------

    def codes(self, name: str, codec: str) -> Codes | None:
        """The codes `[K, T]` that a codec made of a voice, or None.

        Args:
            name: of the voice.
            codec: its identity, 32 hex digits.
        """
        return read_codes(self._codes_place(name, codec))

    def keep_codes(self, name: str, codec: str, codes: NDArray[np.int64]) -> None:
        """Keeps the codes `[K, T]` that a codec made of a voice; they go when it goes.

        Raises:
            VoiceError: there is no such voice, or the codes cannot be written.
        """
        self._write_codes(self.record(name), codec, codes)

    def settle(self) -> None:
        """Waits until the codes that engines gave back are written; the end of Python does too."""
        self._writing.submit(int).result()

    def _keeper(self, record: VoiceRecord) -> KeptVoice:
        """What ties a voice to this folder: the same one for everybody who asks."""

        def write(codec: str, codes: Codes) -> None:
            with suppress(RuntimeError):  # Python is about to end
                self._writing.submit(self._write_codes_or_say, record, codec, codes)

        found = {}
        for path in self._place(record.name).glob("codes-*.npy"):
            if (codes := read_codes(path)) is not None:
                found[path.stem.removeprefix("codes-")] = codes
        with self._mutex:
            given = self._given.get(record.name)
            if given is not None and given[0] == record:
                return given[1]
            keeper = KeptVoice(found, write)
            self._given[record.name] = record, keeper
        if given is not None:  # another voice by the same name
            given[1].end()
        return keeper

    def _write_codes_or_say(self, record: VoiceRecord, codec: str, codes: Codes) -> None:
        try:
            self._write_codes(record, codec, codes)
        except VoiceError as error:
            log.warning("the codes of a voice are not kept: %s", error)

    def _write_codes(self, record: VoiceRecord, codec: str, codes: Codes) -> None:
        data, path = io.BytesIO(), self._codes_place(record.name, codec)
        np.save(data, codes.astype(np.int64), allow_pickle=False)
        with self._locked():
            if self.record(record.name) != record:
                raise VoiceError(f"The voice {record.name!r} was replaced by another one.")
            try:
                replace_file(path, data.getvalue())
            except OSError as error:
                raise VoiceError(f"{path}: cannot be written ({error.strerror}).") from error
            kept = sorted(path.parent.glob("codes-*.npy"), key=lambda p: p.stat().st_mtime_ns)
            for old in kept[:-MAX_CODECS]:
                old.unlink()

    def _codes_place(self, name: str, codec: str) -> Path:
        if not CODEC.fullmatch(codec):
            raise VoiceError(f"{codec[:40]!r} is no identity of a codec: 32 hex digits.")
        return self._place(name) / f"codes-{codec}.npy"

    # -- consents ----------------------------------------------------------------------------

    def new_consent(
        self, who: str, statement: str, *, language: str = "", recording: bytes | None = None
    ) -> Consent:
        """Writes down a consent; the recording, if there is one, is hashed and not kept.

        Raises:
            VoiceError: it does not say who agreed, or to what.
        """
        consent = Consent(
            " ".join(who.split()),
            statement.strip(),
            time.time(),
            f"cons_{secrets.token_hex(8)}",
            language,
            hashlib.sha256(recording).hexdigest() if recording else "",
        )
        check_consent(consent)
        with self._locked():
            replace_file(self._consent_place(consent.id), json.dumps(asdict(consent)).encode())
        return consent

    def consent(self, consent_id: str) -> Consent:
        """A consent by its id.

        Raises:
            VoiceError: there is none.
        """
        try:
            fields = json.loads(self._consent_place(consent_id).read_text(encoding="utf-8"))
            return Consent(**fields)
        except (OSError, ValueError, TypeError) as error:
            raise VoiceError(f"There is no consent {consent_id[:60]!r}.") from error

    def consents(self) -> list[Consent]:
        """All of them, the oldest first."""
        found = []
        for path in self._consents.glob("cons_*.json"):
            try:
                found.append(self.consent(path.stem))
            except VoiceError:
                continue
        return sorted(found, key=lambda consent: consent.when)

    def remove_consent(self, consent_id: str) -> None:
        """Withdraws a consent; the voices that stand on it go too.

        Raises:
            VoiceError: there is none.
        """
        self.consent(consent_id)
        with self._locked():  # first, so that no voice is added on it meanwhile
            self._consent_place(consent_id).unlink(missing_ok=True)
        for record in self.records():
            if record.consent.id == consent_id:
                self.remove(record.name)

    # -- the folder --------------------------------------------------------------------------

    def _place(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise VoiceError(
                f"{name[:80]!r} is no name of a voice: use 1 to 64 of a-z, 0-9, - and _, a letter "
                "or digit first."
            )
        return self._voices / name

    def _consent_place(self, consent_id: str) -> Path:
        if not re.fullmatch(r"cons_[0-9a-f]{16}", consent_id):
            raise VoiceError(f"There is no consent {consent_id[:60]!r}.")
        return self._consents / f"{consent_id}.json"

    def _sweep(self) -> None:
        """What a process left behind that died while it wrote."""
        for path in self._voices.iterdir():
            if path.name.startswith((".new-", ".gone-")):
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._mutex, file_lock(self._folder / ".lock"):
            yield


def _damaged(name: str) -> VoiceError:
    return VoiceError(
        f"The record of voice {name!r} is damaged or has no consent. Remove the voice and "
        "add it again."
    )
