"""Voices by the names that clients give: of the folder, the packaged one, one brought along."""

from __future__ import annotations

import asyncio
import base64
import binascii
from contextlib import suppress

from chroma_plugin.audio import OUTPUT_RATE_HZ, pcm_to_float
from chroma_plugin.errors import VoiceError
from chroma_plugin.server.protocol import ProtocolError
from chroma_plugin.server.session_config import InlineVoice
from chroma_plugin.voice import Voice
from chroma_plugin.voice_store import STOCK_NAMES, VoiceStore


class Voicing:
    """Finds voices.

    Args:
        store: the folder of voices; None: there is none.
        inline: clients may bring one along, with its consent.
    """

    def __init__(self, store: VoiceStore | None = None, *, inline: bool = True) -> None:
        self._store, self._inline = store, inline
        self.default = Voice.default()

    async def follow_removals(self, every_s: float = 5.0) -> None:
        """Has the engine let go of voices that another process deletes, until it is cancelled."""
        while self._store is not None:
            await asyncio.sleep(every_s)
            with suppress(OSError):  # a shared folder that is away for a while
                await asyncio.to_thread(self._store.notice_removals)

    async def find(self, name: str | None, param: str) -> Voice:
        """The voice of that name; None is the default one.

        Raises:
            ProtocolError: there is none, or it cannot be used.
        """
        if name is None or name in STOCK_NAMES or name == self.default.name:
            return self.default
        if self._store is not None and name in await asyncio.to_thread(self._store.names):
            try:
                return await asyncio.to_thread(self._store.get, name)
            except VoiceError as error:
                raise ProtocolError("invalid_value", str(error), param) from error
        raise ProtocolError(
            "voice_not_found",
            f"There is no voice {name[:60]!r}. GET /v1/audio/voices lists those that are.",
            param,
        )

    def inline(self, given: InlineVoice) -> Voice:
        """A voice that came with the connection: PCM16 at 24 kHz, base64, and its consent.

        Raises:
            ProtocolError: this server takes none, its consent is missing, or it is no audio.
            VoiceError: clip or transcript cannot be used.
        """
        if not self._inline:
            raise ProtocolError(
                "inline_voice_refused",
                "This server takes no voices along; enrol it: POST /v1/audio/voices.",
                "session.chroma.voice",
            )
        if not given.consent.strip():
            raise ProtocolError(
                "consent_required",
                "A voice needs the consent of its owner: say in `consent` who gave it, and how.",
                "session.chroma.voice.consent",
            )
        try:
            pcm = base64.b64decode(given.pcm, validate=True)
        except (binascii.Error, ValueError):
            raise ProtocolError(
                "invalid_value", "The voice's pcm is not base64.", "session.chroma.voice.pcm"
            ) from None
        return Voice.from_samples(
            pcm_to_float(pcm), OUTPUT_RATE_HZ, given.transcript, name=given.name
        )
