"""Where the engine is: in this process, at an address, or in a server of this machine."""

from __future__ import annotations

import asyncio
import os

from chroma_plugin.errors import ConfigError
from chroma_plugin.livekit.local_server import LocalServer
from chroma_plugin.session import SpeechEngine

URL_VARIABLE = "CHROMA_ENGINE_URL"
"""Names the server of models that are not told where their engine is."""


class Backend:
    """An engine that is started, or reached, when it is used first.

    Args:
        engine: one in this process; the address of a server; a `LocalServer`; or None, which is
            what $CHROMA_ENGINE_URL names, or else a `LocalServer` of the embedded model.
        api_key: of the server.
        voice: the server's name of a voice.
        voice_consent: for voices that are sent to it.
    """

    def __init__(
        self,
        engine: SpeechEngine | LocalServer | str | None,
        *,
        api_key: str | None = None,
        voice: str | None = None,
        voice_consent: str = "",
    ) -> None:
        self.place = engine or os.environ.get(URL_VARIABLE) or LocalServer()
        remote = isinstance(self.place, str | LocalServer)
        if not remote and (voice is not None or api_key is not None):
            raise ConfigError(
                "voice by its name and api_key are for an engine on a server; this one is in this "
                "process. Give it a Voice."
            )
        self._api_key, self._voice, self._consent = api_key, voice, voice_consent
        self._lock = asyncio.Lock()
        self._engine: SpeechEngine | None = None
        self._url = ""  # of the engine

    @property
    def provider(self) -> str:
        """Where it is, for metrics."""
        return self.place if isinstance(self.place, str) else "chroma_plugin"

    async def engine(self) -> SpeechEngine:
        """The engine, started.

        Raises:
            ChromaError: it cannot be started, or reached.
        """
        async with self._lock:
            if isinstance(self.place, LocalServer):
                url = await self.place.address()  # which starts it, again if it has died
            elif isinstance(self.place, str):
                url = self.place
            else:
                await self.place.start()
                return self.place
            if self._engine is None or url != self._url:
                if self._engine is not None:
                    await self._engine.close()
                self._engine, self._url = self._remote(url), url
                await self._engine.start()
            return self._engine

    def _remote(self, url: str) -> SpeechEngine:
        from chroma_plugin.client.engine import RemoteEngine

        return RemoteEngine(
            url, api_key=self._api_key, voice=self._voice, voice_consent=self._consent
        )

    async def aclose(self) -> None:
        """Ends the connections; an engine of this process stays, as others may use it."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()
