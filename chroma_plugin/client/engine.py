"""RemoteEngine: opens sessions on a server in another process. It has the methods of `Engine`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from types import TracebackType
from urllib.parse import urlencode, urlsplit

from chroma_plugin.client.conversation import RemoteConversation
from chroma_plugin.client.line import HEARTBEAT_S, Line
from chroma_plugin.config import DEFAULT_INSTRUCTIONS, SamplingParams
from chroma_plugin.conversation import Message
from chroma_plugin.errors import ConfigError, EngineBusy, EngineClosed
from chroma_plugin.session import Session
from chroma_plugin.voice import Voice

RETRY_S = 0.05
"""Between two knocks at a server that has no room."""


class RemoteEngine:
    """An engine in another process, over the OpenAI Realtime protocol.

    Example:
        ::

            async with RemoteEngine("ws://gpu-1:8000/v1/realtime", api_key=key) as engine:
                session = await engine.open_session()

    Args:
        url: the server's address; `http` is taken for `ws`, and a missing path is filled in.
        api_key: of the server; None where it needs none.
        voice: the server's name of the voice of sessions that are opened without one.
        voice_consent: who agreed, and how, that the voices given to sessions are used: they go
            to the server with it, for the time of the session. Without it only the packaged voice
            and those of the server can be used.
        queue_timeout_s: how long a new session waits for room before `EngineBusy`.
        reconnect_s: how long a lost connection is tried again before its session is lost. The new
            one is told the settings and what was said. A reply that was on its way ends in
            `EngineError`, and is not made a second time unless it is asked for again.
        heartbeat_s: between two pings; a connection on which one stays unanswered for twice as long
            is lost, even if nobody has closed it.

    Raises:
        ConfigError: the address is none, or a time is not positive.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        voice: str | None = None,
        voice_consent: str = "",
        queue_timeout_s: float = 5.0,
        reconnect_s: float = 10.0,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        if not heartbeat_s > 0:
            raise ConfigError(f"heartbeat_s is {heartbeat_s!r}; it must be seconds, more than 0.")
        self._url = realtime_url(url)
        self._key = api_key
        self._voice, self._consent = voice, voice_consent
        self._queue_timeout_s, self._reconnect_s = queue_timeout_s, reconnect_s
        self._heartbeat_s = heartbeat_s
        self._conversations = set[RemoteConversation]()
        self._closing = set[asyncio.Task[None]]()
        self._started = self._closed = False

    async def start(self) -> None:
        """Makes it ready; the server is reached when a session is opened.

        Raises:
            EngineClosed: it was closed before.
        """
        if self._closed:
            raise EngineClosed("The remote engine was closed; make a new one.")
        self._started = True

    async def open_session(
        self,
        *,
        voice: Voice | None = None,
        instructions: str = DEFAULT_INSTRUCTIONS,
        sampling: SamplingParams | None = None,
        history: Iterable[Message] = (),
        max_reply_s: float | None = None,
    ) -> Session:
        """Opens a conversation; see `SpeechEngine.open_session`.

        Raises:
            ConfigError: a setting is of the wrong kind or out of range.
            EngineBusy: the server had no room before the deadline.
            EngineClosed: it was not started, or is closed.
            EngineFailed: the server cannot be reached, or turns us away.
            VoiceError: the voice needs a consent, or the server refuses it.
        """
        if not self._started or self._closed:
            raise EngineClosed("Call `await engine.start()` before open_session().")
        url = self._url
        if max_reply_s is not None:
            url += ("&" if "?" in url else "?") + urlencode({"max_reply_s": max_reply_s})
        line = Line(url, self._key, self._reconnect_s, self._heartbeat_s)
        named = None if voice is not None else self._voice
        if voice is None:  # another object for each name, so that a change of voices is one
            voice = Voice.default() if named is None else replace(Voice.default(), name=named)
        conversation = RemoteConversation(
            line,
            voice=voice,
            voice_name=named,
            consent=self._consent,
            instructions=instructions,
            on_close=self._closes,
        )
        session = Session(  # refuses what it cannot use before anything is taken up
            conversation,
            voice=voice,
            instructions=instructions,
            sampling=sampling or SamplingParams(),
            history=history,
            max_reply_s=max_reply_s,
        )
        if self._closing:  # their room is ours
            await asyncio.wait(self._closing)
        await self._connect(line)
        self._conversations.add(conversation)
        try:
            await conversation.settled()
        except BaseException:  # refused, or given up by the caller
            await session.aclose()
            raise
        return session

    async def _connect(self, line: Line) -> None:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._queue_timeout_s
        while True:
            try:
                await line.open()
                return
            except EngineBusy:
                if loop.time() + RETRY_S > deadline_s:
                    raise
                await asyncio.sleep(RETRY_S)

    def _closes(self, conversation: RemoteConversation) -> None:
        self._conversations.discard(conversation)
        task = asyncio.create_task(conversation.line.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Ends every session; the server goes on. Calling it again is harmless."""
        self._closed = True
        for conversation in list(self._conversations):
            conversation.fail(EngineClosed("The remote engine was closed."))
            conversation.close()
        if self._closing:
            await asyncio.wait(self._closing)

    async def __aenter__(self) -> RemoteEngine:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def realtime_url(url: str) -> str:
    """A server's address as that of its WebSocket.

    Raises:
        ConfigError: it is none.
    """
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in ("ws", "wss") or not parts.netloc:
        raise ConfigError(f"{url!r} is no address of a server; use ws://HOST:PORT/v1/realtime.")
    path = parts.path.rstrip("/")
    if not path.endswith("/realtime"):
        path = f"{path.removesuffix('/v1')}/v1/realtime"
    return parts._replace(scheme=scheme, path=path, fragment="").geturl()
