"""The quick start of the server, as a newcomer does it: serve, talk over the socket, Ctrl+C.

python .ci/check_serve.py CHROMA-PLUGIN    (with a Python that has the `server` extra)
"""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

from websockets.asyncio.client import connect

READY_S = 120.0
REPLY_S = 60.0
END_S = 30.0


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(server: subprocess.Popen[bytes], address: str) -> None:
    """Until `/ready` says 200; SystemExit if the server ends or takes too long."""
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        if server.poll() is not None:
            raise SystemExit(f"The server ended with {server.returncode} before it was ready.")
        try:
            with urllib.request.urlopen(f"http://{address}/ready", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.2)
    raise SystemExit(f"The server was not ready within {READY_S:.0f} s.")


async def talk(address: str) -> float:
    """Types a question; gives the seconds of speech that came back."""
    heard = 0
    message = {"role": "user", "content": [{"type": "input_text", "text": "Who are you?"}]}
    async with asyncio.timeout(REPLY_S), connect(f"ws://{address}/v1/realtime") as line:

        async def send(event: dict[str, Any]) -> None:
            await line.send(json.dumps(event))

        await send({"type": "conversation.item.create", "item": {"type": "message", **message}})
        await send({"type": "response.create"})
        async for raw in line:
            event = json.loads(raw)
            if event["type"] == "error":
                raise SystemExit(f"The server says: {event['error']['message']}")
            if event["type"] == "response.output_audio.delta":
                heard += len(base64.b64decode(event["delta"]))
            if event["type"] == "response.done":
                break
    return heard / 2 / 24_000


def main(command: str) -> None:
    """Serves, talks, stops."""
    address = f"127.0.0.1:{free_port()}"
    server = subprocess.Popen([command, "serve", "--port", address.rpartition(":")[2]])
    try:
        wait_until_ready(server, address)
        seconds = asyncio.run(talk(address))
        print(f"The reply took {seconds:.2f} s.")
        if seconds < 0.24:
            raise SystemExit("That is no reply.")
        server.send_signal(signal.SIGINT)
        code = server.wait(END_S)
        if code not in (0, -signal.SIGINT, 130):
            raise SystemExit(f"After Ctrl+C it ended with {code}.")
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main(sys.argv[1])
