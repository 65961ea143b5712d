"""The package as it is installed and read: its import, names, metadata, tree and README."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import chroma_plugin

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
EXTRAS = {"pipecat", "web", "livekit", "server", "otel", "ray", "plot", "train", "eval"}
EXTRAS |= {"all", "dev"}


def fresh(code: str) -> str:
    """What the code prints in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def installed() -> importlib.metadata.PackageMetadata:
    try:
        return importlib.metadata.metadata("chroma-plugin")
    except importlib.metadata.PackageNotFoundError:
        if os.environ.get("CI"):
            raise
        pytest.skip('not installed; run `pip install -e ".[dev]"`')


def repository_files() -> set[str]:
    """What git knows, and what it would be told next: no caches, nothing ignored."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("no git repository")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.splitlines() if (ROOT / name).exists()}


# -- import ----------------------------------------------------------------------------------


def test_import_is_light() -> None:
    heavy = ["torch", "torchaudio", "transformers", "numpy", "pipecat", "livekit"]
    code = (
        "import json, sys, time; start = time.perf_counter(); import chroma_plugin; "
        "ms = 1000 * (time.perf_counter() - start); "
        f"print(json.dumps([ms, [name for name in {heavy} if name in sys.modules]]))"
    )
    runs = [json.loads(fresh(code)) for _ in range(5)]
    assert all(loaded == [] for _, loaded in runs), runs
    assert min(ms for ms, _ in runs) < 100, runs


@pytest.mark.parametrize("name", chroma_plugin.__all__)
def test_public_names_resolve(name: str) -> None:
    value = getattr(chroma_plugin, name)
    assert name == "__version__" or value.__name__ == name


def test_public_names_are_listed_once_and_unknown_ones_refused() -> None:
    assert sorted(chroma_plugin._HOME) == sorted(set(chroma_plugin.__all__) - {"__version__"})
    assert dir(chroma_plugin) == sorted(set(chroma_plugin.__all__))
    with pytest.raises(AttributeError, match="Engines"):
        chroma_plugin.Engines  # noqa: B018


def test_the_core_needs_no_torchaudio() -> None:
    """None in sys.modules is, to find_spec and to import, a package that is not installed."""
    code = """
import sys
sys.modules["torchaudio"] = None
import importlib, pkgutil
import chroma_plugin.engine, chroma_plugin.model
for part in chroma_plugin.model, chroma_plugin.engine:
    for module in pkgutil.walk_packages(part.__path__, part.__name__ + "."):
        importlib.import_module(module.name)
        print(module.name)
assert sys.modules["torchaudio"] is None
"""
    imported = fresh(code).split()
    assert {"chroma_plugin.model.chroma", "chroma_plugin.engine.engine"} <= set(imported)


# -- distribution ----------------------------------------------------------------------------


def test_installed_metadata() -> None:
    metadata = installed()
    assert metadata["Version"] == chroma_plugin.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra") or []) == EXTRAS
    required = metadata.get_all("Requires-Dist") or []
    assert not [line for line in required if "torchaudio" in line and "extra ==" not in line]


def test_installed_command() -> None:
    installed()
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="chroma-plugin")
    assert callable(command.load())


def test_torchaudio_always_comes_with_its_torch() -> None:
    pair = {"torch==2.11.*", "torchaudio==2.11.*"}
    extras = PROJECT["optional-dependencies"]
    with_torchaudio = {name for name, needs in extras.items() if "torchaudio" in " ".join(needs)}
    assert with_torchaudio == {"train", "eval"}
    assert all(pair <= set(extras[name]) for name in with_torchaudio)
    assert "train" in str(extras["dev"]) and "train" in str(extras["all"])


def test_constraints_name_every_dependency() -> None:
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    needs = {re.split(r"[\[<>=~ ]", need)[0] for group in groups for need in group}
    names = needs - {"chroma-plugin"}
    assert names <= pinned, f"refresh with `bash .ci/constraints`: {names - pinned}"


def test_the_package_is_typed() -> None:
    assert (Path(chroma_plugin.__file__).parent / "py.typed").is_file()


# -- what a newcomer sees --------------------------------------------------------------------


def test_top_level_holds_what_is_expected() -> None:
    top = {name.split("/")[0] for name in repository_files()}
    files = {"CHANGELOG.md", "LICENSE", "README.md", "constraints.txt", "pyproject.toml"}
    files |= {"Dockerfile", "compose.yaml", ".dockerignore"}
    assert top - {"examples"} == files | {".ci", ".gitignore", "chroma_plugin", "docs", "tests"}


def printed_tree() -> set[str]:
    """The paths of README's tree: two blanks deepen it, a name's line may go on with what it is."""
    (block,) = re.findall(r"^```text\n(chroma_plugin/\n.*?)^```", README, re.DOTALL | re.MULTILINE)
    paths, parents = set(), list[str]()
    for line in block.splitlines():
        name = line.split()[0]
        del parents[(len(line) - len(line.lstrip())) // 2 :]
        paths.add("".join(parents) + name)
        parents.append(name)
    return paths


def test_readme_prints_the_real_tree() -> None:
    """Every module and every folder of modules, but for the __init__.py of the latter."""
    real = {"chroma_plugin/__init__.py", "chroma_plugin/assets/"}
    for path in map(Path, repository_files()):
        if path.parts[0] == "chroma_plugin" and path.suffix == ".py":
            real |= {f"{parent}/" for parent in path.parents if parent.name}
            real |= {str(path)} - {f"{path.parent}/__init__.py"}
        elif len(path.parts) > 1 and not path.parts[0].startswith("."):
            real.add(f"{path.parts[0]}/")
    printed = printed_tree()
    assert printed == real, f"to add: {sorted(real - printed)}; to drop: {sorted(printed - real)}"


def test_readme_code_is_python_that_imports() -> None:
    """Each Python block compiles, and every name that it imports is there."""
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for module, names in re.findall(r"^from (\S+) import (.+)$", block, re.MULTILINE):
            found = importlib.import_module(module)
            assert not [name for name in names.split(", ") if not hasattr(found, name)], module


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
