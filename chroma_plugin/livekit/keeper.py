"""The parent of a server that a worker of LiveKit started: it ends with the worker.

Run as ``python -m chroma_plugin.livekit.keeper WORKER_PID OPTIONS_OF_SERVE``.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from types import FrameType

from chroma_plugin.livekit.local_server import alive

LOOK_S = 0.5
"""Between two looks at the worker."""
END_S = 15.0
"""So long a server has to end its conversations; then it is killed."""
PROGRAM = "from chroma_plugin.cli import main; main()"
"""The program `chroma-plugin`, where only its package is known."""


def keep(worker: int, server: subprocess.Popen[bytes]) -> int:
    """Waits until the server or the worker ends; a server without a worker is ended.

    Returns:
        The server's exit status.
    """
    while server.poll() is None and alive(worker):
        time.sleep(LOOK_S)
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(END_S)
        except subprocess.TimeoutExpired:
            server.kill()
    return server.wait()


def main(arguments: list[str]) -> int:
    """Starts the server and keeps it."""
    server = subprocess.Popen([sys.executable, "-c", PROGRAM, "serve", *arguments[1:]])

    def end(number: int, frame: FrameType | None) -> None:
        server.terminate()

    signal.signal(signal.SIGTERM, end)
    return keep(int(arguments[0]), server)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
