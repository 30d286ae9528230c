"""Written rules as tests: who imports whom, what the README says, what the changelog says."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from jobs.cli import JOBS, _Jobs

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PACKAGES = ("jobs", "manet", "cluster", "tests")
FORBIDDEN = {
    "manet": {"ray", "boto3", "botocore", "requests", "urllib3", "jobs", "cluster", "tests"},
    "cluster": {"torch", "torchvision", "timm", "faiss", "cv2", "jobs", "manet", "tests"},
    "jobs": {"tests", "boto3", "botocore"},
    "tests": set[str](),
}
ONLY_IN = {"boto3": "cluster/", "ray.init": "cluster/session.py", "cv2.setNumThreads": "jobs/"}


def _sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_import_directions(package: str) -> None:
    assert len(_sources(package)) > 5
    for path in _sources(package):
        found = {name.split(".")[0] for name in _imports(path)} & FORBIDDEN[package]
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_no_job_imports_another() -> None:
    commands = {f"jobs.{name}" for name in JOBS}
    for path in _sources("jobs"):
        if path.stem != "pipeline":
            own = {f"jobs.{path.stem}", f"jobs.{path.parent.name}"}
            found = _imports(path) & commands - own
            assert not found, f"{path.name} imports {found}"


def test_one_place_for_each_door() -> None:
    for package in ("jobs", "manet", "cluster"):
        for path in _sources(package):
            name, text = path.relative_to(ROOT).as_posix(), path.read_text()
            for words, home in ONLY_IN.items():
                if re.search(rf"(?m)^(?!\s*#).*(?:import {re.escape(words)}\b|{re.escape(words)}\()", text):
                    assert name.startswith(home), f"{name}: {words} belongs into {home}"


def _tree() -> dict[str, str]:
    """Path -> role, as the README's tree has them."""
    block = README.partition("## Where things are\n\n```\n")[2].partition("```")[0]
    roles: dict[str, str] = {}
    folder = ""
    for line in block.splitlines():
        name, _, role = line.strip().partition(" ")
        if line.startswith("  "):
            name = folder + name
        elif name.endswith("/"):
            folder = name
        roles[name] = role.strip()
    return roles


def test_the_readmes_tree_is_the_real_tree() -> None:
    real = {"ray_cluster.yaml", *(f"{package}/" for package in PACKAGES)}
    for package in ("jobs", "manet", "cluster"):
        for path in (ROOT / package).iterdir():
            if path.name.startswith(("_", ".")):
                continue
            real.add(f"{package}/{path.name}/" if path.is_dir() else f"{package}/{path.name}")
    roles = _tree()
    real.discard("manet/py.typed")
    assert set(roles) == real
    assert all(roles.values())


def test_nothing_else_lies_at_the_top() -> None:
    allowed = {*PACKAGES, "ray_cluster.yaml", "pyproject.toml", "README.md", "LICENSE", "Makefile", "CHANGELOG.md"}
    allowed |= {"CONTRIBUTING.md", "BENCHMARKS.md"}
    made = {"demo", "out", "build"}  # by running things
    here = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") and path.suffix != ".egg-info"}
    assert here - made == allowed


def _commands() -> list[str]:
    """Every command line of this project in the README and in the jobs' own documentation."""
    texts = [README, *(path.read_text() for path in _sources("jobs"))]
    line = re.compile(r"(?m)^(?:  )?(?:ray job submit .* -- )?((?:manet|python -m jobs) .+)$")
    found = [match for text in texts for match in line.findall(text)]
    return sorted({re.sub(r"^python -m jobs", "manet", line) for line in found})


@pytest.mark.parametrize("line", _commands())
def test_commands_in_the_documentation_parse(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    group = _Jobs("manet")
    with click.Context(group) as context:
        command = group.get_command(context, words[0])
        if words[0] == "JOB":
            return
        assert command is not None, line
        while isinstance(command, click.Group):
            words = words[1:]
            command = command.get_command(context, words[0])
            assert command is not None, line
        if "--help" not in words:
            command.make_context(words[0], words[1:])


def test_there_are_commands_to_parse() -> None:
    assert len(_commands()) > 10


def test_the_readmes_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?m)^make (\w+)", README))
    assert targets == {"demo", "test"}
    assert all(re.search(rf"(?m)^{target}:", makefile) for target in targets)


def test_files_that_the_readme_names_exist() -> None:
    for name in re.findall(r"`((?:jobs|manet|cluster|tests)/[\w./]+)`", README) + re.findall(
        r"\]\((\.[\w./]+)\)", README
    ):
        assert (ROOT / name).exists(), name


def test_every_job_is_in_the_readme() -> None:
    for job in JOBS:
        assert f"| `{job}` |" in README


def test_the_version_is_the_changelogs() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.findall(r"(?m)^## (\S+)", (ROOT / "CHANGELOG.md").read_text())[0] == version


def test_files_stay_readable() -> None:
    """ASCII but for words of other languages in data; no file grows into a giant."""
    for package in ("jobs", "manet", "cluster"):
        for path in _sources(package):
            text = path.read_text()
            assert len(text.splitlines()) < 650, path
            if "rendered" not in path.parts:
                assert text.isascii(), path


def test_workers_that_need_no_network_load_no_torch() -> None:
    """It costs each process 400 MB and seconds."""
    light = [
        f"jobs.{name}"
        for name in ("cli", "index", "dedup", "search", "status", "ingest", "render", "fewshot", "extract")
    ]
    code = (
        f"import sys, importlib; [importlib.import_module(name) for name in {light}]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0
