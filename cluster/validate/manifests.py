"""Kubernetes manifests: their form by a strict schema, then what keeps the cluster shut, bounded and at zero when idle."""

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

Document = dict[str, Any]
PART_OF = {"app.kubernetes.io/part-of": "manet"}
_BOUNDED = ("memory", "ephemeral-storage", "cpu")
_PLUGIN = "nvidia.com/gpu"


def faults(documents: list[Document]) -> list[str]:
    """What is wrong with manifests that are applied together, a line each."""
    found = [f"{_name(document)}: {fault}" for document in documents for fault in _form(document)]
    if found:
        return found  # the rest relies on their form
    for document in documents:
        if document["kind"] == "RayCluster":
            found += [f"{_name(document)}: {fault}" for fault in _cluster(document["spec"])]
        for place, template in _templates(document):
            found += [f"{_name(document)}: {place}: {fault}" for fault in _pod(template)]
            if place.startswith("group "):
                found += [f"{_name(document)}: {place}: {fault}" for fault in _worker(template["spec"])]
        if document["kind"] == "NetworkPolicy":
            found += [f"{_name(document)}: {fault}" for fault in _policy(document["spec"])]
    return [*found, *_together(documents)]


def _name(document: Document) -> str:
    return f"{document.get('kind', '?')} {document.get('metadata', {}).get('name', '?')}"


@cache
def _schema() -> Document:
    schema: Document = yaml.safe_load(files("cluster.validate").joinpath("kubernetes.schema.yaml").read_text())
    return schema


def _form(document: Document) -> Iterator[str]:
    from jsonschema import Draft202012Validator

    schema = _schema()
    kind = document.get("kind")
    if kind == "Secret":
        yield "a secret's value has no place in a file; make it with kubectl create secret --from-file"
        return
    if kind not in schema["$defs"] or kind not in {each["$ref"].split("/")[-1] for each in schema["oneOf"]}:
        yield "kind is not known here"
        return
    validator = Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": schema["$defs"]})
    for error in sorted(validator.iter_errors(document), key=lambda error: [str(part) for part in error.absolute_path]):
        yield f"{'.'.join(map(str, error.absolute_path)) or 'top'}: {error.message[:200]}"


def _templates(document: Document) -> Iterator[tuple[str, Document]]:
    spec = document.get("spec", {})
    if document["kind"] == "RayCluster":
        yield "head", spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            yield f"group {group['groupName']}", group["template"]
    elif "submitterPodTemplate" in spec:
        yield "submitter", spec["submitterPodTemplate"]


def _cluster(spec: Document) -> Iterator[str]:
    auth = spec.get("authOptions", {})
    if auth.get("mode") != "token" or not auth.get("secretName"):
        yield "authOptions: set mode token and secretName: the cluster would obey anyone who reaches it"
    if not spec.get("enableInTreeAutoscaling") or spec.get("autoscalerOptions", {}).get("version") != "v2":
        yield "set enableInTreeAutoscaling true and autoscalerOptions.version v2, which knows the groups' priority"
    else:
        yield from _container(spec["autoscalerOptions"], "autoscalerOptions")
    if spec["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield 'headGroupSpec.rayStartParams: set num-cpus "0": the head must outlive everything else'
    groups = spec["workerGroupSpecs"]
    names = [group["groupName"] for group in groups]
    yield from (f"group {name} is there twice" for name in sorted({name for name in names if names.count(name) > 1}))
    yield from (
        f"group {group['groupName']}: set minReplicas 0; idle nodes cost" for group in groups if group["minReplicas"]
    )


def _container(container: Document, place: str) -> Iterator[str]:
    security = container.get("securityContext", {})
    if security.get("allowPrivilegeEscalation") is not False or security.get("capabilities", {}).get("drop") != ["ALL"]:
        yield f"{place}: securityContext: set allowPrivilegeEscalation false and capabilities {{drop: [ALL]}}"
    if security.get("readOnlyRootFilesystem") is not True:
        yield f"{place}: securityContext: set readOnlyRootFilesystem true"
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    if "memory" not in requests or any(requests.get(name) != limits.get(name) for name in _BOUNDED):
        yield f"{place}: resources: requests and limits of {', '.join(_BOUNDED)} must be the same: what is given stays"


def _pod(template: Document) -> Iterator[str]:
    spec = template["spec"]
    if PART_OF.items() - template.get("metadata", {}).get("labels", {}).items():
        yield f"label {PART_OF} is missing: no network policy would hold for it"
    security = spec.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        yield "securityContext: set runAsNonRoot true and runAsUser above 0"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "securityContext: set seccompProfile {type: RuntimeDefault}"
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for container in spec["containers"]:
        place = f"container {container['name']}"
        yield from _container(container, place)
        if not re.search(r":\d[\w.-]*$", container["image"]):
            yield f"{place}: image {container['image']}: name a version"
        mounts = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", [])}
        yield from (f"{place}: volume {name} is not there" for name in sorted(set(mounts) - volumes))
        if "/tmp" not in mounts.values():  # noqa: S108 - a path inside the container
            yield f"{place}: mount a volume at /tmp: Ray writes there and the root is read-only"
        for variable in container.get("env", []):
            if re.search(r"TOKEN|SECRET|PASSWORD|ACCESS_KEY", variable["name"]) and "value" in variable:
                yield f"{place}: env {variable['name']}: take it from a secret (valueFrom.secretKeyRef)"


def _worker(spec: Document) -> Iterator[str]:
    if spec.get("automountServiceAccountToken") is not False or not spec.get("serviceAccountName"):
        yield "set serviceAccountName and automountServiceAccountToken false: a worker asks Kubernetes for nothing"
    asks = any(_PLUGIN in container["resources"]["limits"] for container in spec["containers"])
    tolerated = {toleration["key"] for toleration in spec.get("tolerations", [])}
    if asks and _PLUGIN not in tolerated:
        yield f"tolerations: {_PLUGIN} is missing: clouds keep other pods off their GPU nodes by it"
    if spec.get("nodeSelector", {}).get("karpenter.sh/capacity-type") == "spot" and "spot" not in tolerated:
        yield "tolerations: spot is missing"


def _policy(spec: Document) -> Iterator[str]:
    """A rule without a peer, or to everywhere on any port, is no rule."""
    for direction, side in (("ingress", "from"), ("egress", "to")):
        for rule in spec.get(direction, []):
            if not rule.get(side):
                yield f"{direction}: a rule without {side!r} is open to all"
            for peer in rule.get(side, []):
                block = peer.get("ipBlock")
                if block is not None and direction == "ingress":
                    yield f"ingress: from {block['cidr']}: addresses outside have no place; use kubectl port-forward"
                elif block is not None and (
                    not rule.get("ports") or "169.254.169.254/32" not in block.get("except", [])
                ):
                    yield f"egress: to {block['cidr']}: name ports, and except 169.254.169.254/32 (the node's own keys)"
                elif peer.get("namespaceSelector") == {}:
                    yield f"{direction}: any namespace is too many"


def _together(documents: list[Document]) -> Iterator[str]:
    """What must be there beside a RayCluster."""
    clusters = [document for document in documents if document["kind"] == "RayCluster"]
    kinds: dict[str, list[Document]] = {}
    for document in documents:
        kinds.setdefault(document["kind"], []).append(document)
    for cluster in clusters:
        name, namespace = cluster["metadata"]["name"], cluster["metadata"].get("namespace")
        accounts = {each["metadata"]["name"] for each in kinds.get("ServiceAccount", [])}
        for place, template in _templates(cluster):
            account = template["spec"].get("serviceAccountName")
            if account not in accounts:
                yield f"RayCluster {name}: {place}: service account {account} is not among the manifests"
        everything = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        if not any(policy["spec"] == everything for policy in kinds.get("NetworkPolicy", [])):
            yield f"RayCluster {name}: no NetworkPolicy that denies all by default"
        head = {"ray.io/cluster": name, "ray.io/node-type": "head"}
        budgets = [each["spec"] for each in kinds.get("PodDisruptionBudget", [])]
        if not any(each["selector"].get("matchLabels") == head and each.get("maxUnavailable") == 0 for each in budgets):
            yield f"RayCluster {name}: no PodDisruptionBudget with maxUnavailable 0 for {head}"
        for space in kinds.get("Namespace", []):
            enforced = space["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
            if space["metadata"]["name"] == namespace and enforced != "restricted":
                yield f"Namespace {namespace}: set the label pod-security.kubernetes.io/enforce: restricted"
