"""The deployment files are in order, and a copy with one thing broken is not: by the functions that a user runs."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from packaging.requirements import Requirement

from cluster.validate import kustomize
from cluster.validate.files import OWN, faults_of
from jobs.cli import _Jobs
from tests.conftest import ROOT

KUBERAY = ROOT / "cluster" / "kuberay"
KUSTOMIZATIONS = sorted(path.parent.relative_to(KUBERAY).as_posix() for path in KUBERAY.rglob("kustomization.yaml"))
BROKEN: list[dict[str, str]] = yaml.safe_load((ROOT / "tests" / "cluster" / "broken.yaml").read_text())
APPLIED = ["overlays/cpu", "overlays/gpu", "job"]


@pytest.mark.parametrize("name", OWN)
def test_own_files_are_in_order(name: str) -> None:
    assert faults_of(ROOT / name) == []


@pytest.mark.parametrize("broken", BROKEN, ids=[f"{each['file']}: {each['fault']}" for each in BROKEN])
def test_a_broken_copy_is_refused(broken: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(KUBERAY, tmp_path / "cluster" / "kuberay")
    copy = tmp_path / broken["file"]
    copy.parent.mkdir(parents=True, exist_ok=True)
    text = (ROOT / broken["file"]).read_text()
    assert broken["there"] in text
    copy.write_text(text.replace(broken["there"], broken["instead"], 1))
    found = faults_of(tmp_path / broken.get("checked", broken["file"]))
    assert any(broken["fault"] in fault for fault in found), found
    assert all("\n" not in fault for fault in found)


def test_each_file_is_broken_three_times() -> None:
    broken = [each.get("checked", each["file"]) for each in BROKEN]
    assert {name: broken.count(name) for name in OWN if broken.count(name) < 3} == {}


@pytest.mark.parametrize("name", APPLIED)
@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl here to compare with")
def test_what_is_checked_is_what_kubectl_builds(name: str) -> None:
    built, faults = kustomize.build(KUBERAY / name)
    done = subprocess.run(
        ["kubectl", "kustomize", KUBERAY / name], capture_output=True, text=True, timeout=60, check=True
    )
    assert not faults
    assert _sorted(built) == _sorted(list(yaml.safe_load_all(done.stdout)))


def _sorted(documents: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(document, sort_keys=True) for document in documents)


@pytest.mark.parametrize("name", ["overlays/cpu", "overlays/gpu"])
def test_decode_pods_have_as_much_decode_as_cpus(name: str) -> None:
    """In the words that Ray's autoscaler reads; the job books all CPUs of a GPU pod, for its decode processes."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _get_custom_resources

    (cluster,) = (each for each in kustomize.build(KUBERAY / name)[0] if each["kind"] == "RayCluster")
    groups = {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}
    cpus = {
        group: int(each["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
        for group, each in groups.items()
    }
    found = {group: _get_custom_resources({}, each["rayStartParams"], group) for group, each in groups.items()}
    assert found == {group: {"decode": cpus[group]} if group == "decode" else {} for group in groups}
    entrypoint = yaml.safe_load((KUBERAY / "job" / "ray-job.yaml").read_text())["spec"]["entrypoint"]
    assert all(f"--model-cpus {cpus[group]} " in entrypoint for group in groups if group.startswith("gpu"))


def test_every_kustomization_is_used() -> None:
    assert set(KUSTOMIZATIONS) == {*APPLIED, "base", "components/tls", "components/monitoring"}
    documents, faults = kustomize.build(KUBERAY / "components" / "monitoring")
    assert [document["kind"] for document in documents] == ["NetworkPolicy", "PodMonitor"]
    assert not faults
    assert faults_of(KUBERAY / "components" / "monitoring") == []


def test_the_commands_of_the_manifests_parse() -> None:
    job = yaml.safe_load((KUBERAY / "job" / "ray-job.yaml").read_text())
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "jobs"]
    group = _Jobs("manet")
    with click.Context(group) as context:
        command = group.get_command(context, words[3])
        assert command is not None
        command.make_context(words[3], words[4:])


def test_the_image_has_what_was_tested_and_what_the_project_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "cluster" / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert len(pinned) > 100
    for text in [*project["dependencies"], *project["optional-dependencies"]["serve"]]:
        wanted = Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate({"sys_platform": "linux", "platform_machine": "x86_64"}):
            name = wanted.name.lower().replace("_", "-")
            assert name in pinned, name
            assert wanted.specifier.contains(pinned[name]), text


def test_versions_are_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    cluster = yaml.safe_load((KUBERAY / "base" / "ray-cluster.yaml").read_text())
    assert f"ray=={cluster['spec']['rayVersion']}" in (ROOT / "cluster" / "constraints.txt").read_text()
    named = [
        *(ROOT / "cluster").rglob("kustomization.yaml"),
        ROOT / "ray_cluster.yaml",
        ROOT / "cluster" / "Dockerfile",
    ]
    tags = {tag for path in named for tag in re.findall(r"(?:manet:|newTag: )(\d[\w.]*)-[cg]pu", path.read_text())}
    assert tags == {version}


def test_nothing_but_code_goes_into_the_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    kept = {line[1:] for line in ignored if line.startswith("!")}
    copied = re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", (ROOT / "cluster" / "Dockerfile").read_text())
    assert {name.split("/")[0] for line in copied for name in line.split()} == kept


def test_faults_are_lines_and_the_exit_code_is_two(tmp_path: Path) -> None:
    (tmp_path / "worker.json").write_text(
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'
    )
    command = [sys.executable, "-m", "cluster.validate", str(tmp_path / "worker.json"), str(tmp_path / "none.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"{tmp_path}/worker.json: statement ?: s3:* is no action that a node needs",
        f"{tmp_path}/none.yaml: no such file",
    ]
    command = [sys.executable, "-m", "cluster.validate", "cluster/iam/worker.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert done.returncode == 0
    assert "cluster/iam/worker.json: still to be put in: ACCOUNT, ARTIFACT-BUCKET" in done.stderr


def test_a_kustomization_that_includes_itself_is_a_fault(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kustomization.yaml").write_text(f"resources: [../{other}]\n")
    assert kustomize.build(tmp_path / "a") == ([], ["a/kustomization.yaml includes itself"])
