"""Whether a wheel holds every file of the package, its licence and its command.

python .ci/check_wheel.py WHEEL
"""

from __future__ import annotations

import sys
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

PACKAGE = Path(__file__).parent.parent / "chroma_plugin"


def complaint(wheel: Path) -> str | None:
    """What is wrong with the wheel, or None."""
    wanted = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with ZipFile(wheel) as archive:
        held = set(archive.namelist())
        info = next(name.split("/")[0] for name in held if ".dist-info/" in name)
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        commands = archive.read(f"{info}/entry_points.txt").decode()
    size = wheel.stat().st_size / 1e6
    print(f"{wheel.name}: {len(wanted)} files of the package, {size:.1f} MB")
    if missing := wanted - held:
        return f"not in the wheel: {', '.join(sorted(missing))}"
    if not {"chroma_plugin/py.typed", f"{info}/licenses/LICENSE"} <= held:
        return "py.typed or LICENSE is missing"
    if "chroma_plugin/examples/pipecat_webrtc.py" not in held:
        return "the example that `chroma-plugin talk --web` runs is missing"
    if not any(name.startswith("chroma_plugin/assets/") for name in held):
        return "the wheel holds no assets"
    if metadata["License-Expression"] != "Apache-2.0":
        return f"License-Expression is {metadata['License-Expression']!r}"
    if "chroma-plugin = chroma_plugin.cli:main" not in commands:
        return "the command chroma-plugin is missing"
    return None


if __name__ == "__main__":
    sys.exit(complaint(Path(sys.argv[1])))
