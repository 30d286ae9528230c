"""Which checks a file gets, by what it is."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from cluster.validate import dashboard, dockerfile, kustomize, launcher, manifests, policies

OWN = (
    "ray_cluster.yaml",
    "cluster/Dockerfile",
    "cluster/iam/head.json",
    "cluster/iam/worker.json",
    "cluster/kuberay/overlays/cpu",
    "cluster/kuberay/overlays/gpu",
    "cluster/kuberay/job",
    "cluster/grafana/manet.json",
)
"""This project's deployment files, from the repository's root."""

_SECRETS = {
    "an AWS key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a token": re.compile(r"(?<!sha256:)\b[0-9a-f]{64}\b"),
    "a value of RAY_AUTH_TOKEN": re.compile(
        r"RAY_AUTH_TOKEN(?:\s*[:=]\s*|[\"']?,\s*[\"']?value[\"']?:\s*)[\"']?[^\s\"'$}{]"
    ),
    "a value of AWS_SECRET_ACCESS_KEY": re.compile(
        r"AWS_SECRET_ACCESS_KEY(?:\s*[:=]\s*|[\"']?,\s*[\"']?value[\"']?:\s*)[\"']?[^\s\"'$}{]"
    ),
}


_PLACEHOLDER = re.compile(
    r"\b(?:ACCOUNT|REGION|AMI|SUBNET|GROUP|(?:GALLERY|ARTIFACT)-(?:BUCKET|PREFIX)|(?:ami|sg|subnet)-0{17})\b"
)


def placeholders_in(path: Path) -> set[str]:
    """What a file, or what a kustomization builds, still wants put in: ACCOUNT, ami-00000000000000000, ... (comments aside)."""
    if path.is_dir() or path.name == "kustomization.yaml":
        built, _ = kustomize.build(path if path.is_dir() else path.parent)
        return set(_PLACEHOLDER.findall(yaml.safe_dump_all(built)))
    return {found for line in path.read_text().splitlines() for found in _PLACEHOLDER.findall(line.partition("#")[0])}


def faults_of(path: Path) -> list[str]:
    """What is wrong with a deployment file, a line each; nothing when it is in order."""
    if not path.exists():
        return ["no such file"]
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    try:
        texts = {each.name: each.read_text() for each in files}
    except UnicodeDecodeError:
        return ["is no deployment file: not text"]
    secrets = [
        f"{name} holds {fault}; name a secret instead" for name, text in texts.items() for fault in secrets_in(text)
    ]
    try:
        return secrets + _checks(path)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        return [*secrets, f"cannot be parsed: {' '.join(str(error).split())}"]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        return [*secrets, f"has another form than such a file: {type(error).__name__}: {error}"]


def secrets_in(text: str) -> list[str]:
    """Kinds of secrets that stand in a text in the clear."""
    return [name for name, pattern in _SECRETS.items() if pattern.search(text)]


def _checks(path: Path) -> list[str]:
    if path.is_dir() or path.name == "kustomization.yaml":
        built, refused = kustomize.build(path if path.is_dir() else path.parent)
        return refused or manifests.faults(built)
    if path.name.startswith("Dockerfile"):
        return dockerfile.faults(path)
    return _of_documents(path)


def _of_documents(path: Path) -> list[str]:
    documents: list[Any]
    if path.suffix == ".json":
        documents = [json.loads(path.read_text())]
    else:
        documents = [each for each in yaml.safe_load_all(path.read_text()) if each is not None]
    if not documents or not all(isinstance(each, dict) for each in documents):
        return ["is no deployment file: no mapping at its top"]
    first: dict[str, Any] = documents[0]
    if "Statement" in first:
        return policies.faults(first, worker=path.stem.startswith("worker"))
    if "panels" in first:
        return dashboard.faults(first)
    if "cluster_name" in first or "available_node_types" in first:
        return launcher.faults(first)
    return manifests.faults(documents)
