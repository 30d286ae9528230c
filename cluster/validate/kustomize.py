"""What `kubectl kustomize` builds, for the few fields that this project's kustomizations use; any other field is refused."""

import copy
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]
_FIELDS = {"apiVersion", "kind", "resources", "components", "images", "patches"}


def build(folder: Path) -> tuple[list[Document], list[str]]:
    """The manifests of a kustomization's folder, and what is wrong with it; a test holds them against kubectl's."""
    faults: list[str] = []
    return _build(folder.resolve(), [], faults, ()), faults


def _build(folder: Path, given: list[Document], faults: list[str], within: tuple[Path, ...]) -> list[Document]:
    file, inside = folder / "kustomization.yaml", (*within, folder)
    if folder in within:
        faults.append(f"{folder.name}/kustomization.yaml includes itself")
        return given
    if not file.exists():
        faults.append(f"no {folder.name}/kustomization.yaml")
        return given
    wanted = yaml.safe_load(file.read_text())
    faults += [
        f"{folder.name}/kustomization.yaml: field {name} is not known here" for name in sorted(set(wanted) - _FIELDS)
    ]
    documents = list(given)
    for name in wanted.get("resources", []):
        path = (folder / name).resolve()
        if path.is_dir():
            documents += _build(path, [], faults, inside)
        elif path.exists():
            documents += [document for document in yaml.safe_load_all(path.read_text()) if document]
        else:
            faults.append(f"{folder.name}/kustomization.yaml: resource {name} is not there")
    for name in wanted.get("components", []):
        documents = _build((folder / name).resolve(), documents, faults, inside)
    for patch in wanted.get("patches", []):
        _patch(documents, patch, folder, faults)
    for image in wanted.get("images", []):
        _rename(documents, image)
    return documents


def _patch(documents: list[Document], patch: Document, folder: Path, faults: list[str]) -> None:
    target = patch.get("target", {})
    found = [
        document
        for document in documents
        if all(document[key] == target[key] for key in ("kind",) if key in target)
        and target.get("name", document["metadata"]["name"]) == document["metadata"]["name"]
    ]
    if not found or set(target) - {"kind", "name"}:
        faults.append(f"{folder.name}/kustomization.yaml: a patch's target {target} is nowhere")
    text = (folder / patch["path"]).read_text() if "path" in patch else patch.get("patch", "")
    operations = yaml.safe_load(text)
    if not isinstance(operations, list):
        faults.append(f"{folder.name}/kustomization.yaml: only JSON patches (a list of op, path, value) are known here")
        return
    for document in found:
        for operation in operations:
            try:
                _apply(document, operation)
            except (KeyError, IndexError, TypeError, ValueError):
                faults.append(f"{folder.name}: patch {operation.get('op')} {operation.get('path')}: no such place")


def _apply(document: Document, operation: Document) -> None:
    """One operation of RFC 6902: add, replace or remove."""
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    place: Any = document
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place[part]
    value, kind = copy.deepcopy(operation.get("value")), operation["op"]
    if isinstance(place, list):
        if kind == "add":
            place.insert(len(place) if last == "-" else int(last), value)
        elif kind == "replace":
            place[int(last)] = value
        elif kind == "remove":
            del place[int(last)]
        else:
            raise ValueError(kind)
    elif kind == "add":
        place[last] = value
    elif kind in {"replace", "remove"}:
        del place[last]  # it must be there
        if kind == "replace":
            place[last] = value
    else:
        raise ValueError(kind)


def _rename(place: object, image: Document) -> None:
    """Give containers of the image `name` its newName and newTag, wherever they stand."""
    if isinstance(place, list):
        for each in place:
            _rename(each, image)
    elif isinstance(place, dict):
        for key, value in place.items():
            if key in {"containers", "initContainers"} and isinstance(value, list):
                for container in value:
                    if container.get("image", "").split(":")[0] == image["name"]:
                        container["image"] = f"{image.get('newName', image['name'])}:{image['newTag']}"
            else:
                _rename(value, image)
