"""IAM policies of the instance profiles: only actions that a node needs, each on as little as it can be bounded to."""

import re
from typing import Any

TAG = "ray-cluster-name"

# Action, resource -> keys of which the statement must have conditions. What is not here no node needs.
_OBJECTS = r"arn:aws:s3:::[^/*]+/[^*]+/\*"
_EC2 = r"arn:aws:ec2:[^*:]+:[^*:]*:"
_BOUNDS: dict[str, dict[str, tuple[str, ...]]] = {
    **{f"s3:{name}": {_OBJECTS: ()} for name in ("GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload")},
    "s3:ListBucket": {r"arn:aws:s3:::[^/*]+": ("s3:prefix",)},
    "s3:ListBucketMultipartUploads": {r"arn:aws:s3:::[^/*]+": ()},  # it knows no prefix
    "ecr:GetAuthorizationToken": {r"\*": ()},  # these with * know no resource
    "ecr:BatchGetImage": {r"arn:aws:ecr:[^*]+:repository/[^*]+": ()},
    "ecr:GetDownloadUrlForLayer": {r"arn:aws:ecr:[^*]+:repository/[^*]+": ()},
    "ec2:DescribeInstances": {r"\*": ()},
    "ec2:RunInstances": {
        _EC2 + r"instance/\*": (
            f"aws:RequestTag/{TAG}",
            "ec2:InstanceType",
            "ec2:InstanceProfile",
            "ec2:MetadataHttpTokens",
        ),
        _EC2 + r"volume/\*": ("ec2:Encrypted",),
        _EC2 + r"network-interface/\*": ("ec2:Subnet", "ec2:AssociatePublicIpAddress"),
        _EC2 + r"(?:image|subnet|security-group)/[^*]+": (),
        _EC2 + r"key-pair/[^*]+\*?": (),
        _EC2 + r"spot-instances-request/\*": (),
    },
    "ec2:CreateTags": {_EC2 + r"instance/\*": ()},  # see _tags
    "ec2:TerminateInstances": {_EC2 + r"instance/\*": (f"aws:ResourceTag/{TAG}",)},
    "iam:PassRole": {r"arn:aws:iam::[^*]+:role/[^*]+": ("iam:PassedToService",)},
    "ssm:UpdateInstanceInformation": {r"\*": ()},
    **{f"ssmmessages:{verb}{kind}Channel": {r"\*": ()} for verb in ("Create", "Open") for kind in ("Control", "Data")},
}
_WORKER = ("s3", "ecr")
_BINDING = {"StringEquals", "StringLike", "ArnEquals", "ArnLike", "Bool"}  # false where the key is missing
_WANTED = {"ec2:Encrypted": "true", "ec2:AssociatePublicIpAddress": "false"}
_LOOSE = {("ForAllValues:StringLike", "aws:TagKeys"), ("BoolIfExists", "ec2:AssociatePublicIpAddress")}


def faults(policy: dict[str, Any], *, worker: bool) -> list[str]:
    """What a policy allows beyond its need; a worker's may name the store and the registry alone."""
    found = [] if policy.get("Version") == "2012-10-17" else ["Version must be 2012-10-17"]
    sids = [statement.get("Sid", "") for statement in policy["Statement"]]
    found += [f"statement {sid!r} is there twice" for sid in sorted({sid for sid in sids if sids.count(sid) > 1})]
    for statement in policy["Statement"]:
        found += [f"statement {statement.get('Sid', '?')}: {fault}" for fault in _statement(statement, worker=worker)]
    return found


def _statement(statement: dict[str, Any], *, worker: bool) -> list[str]:
    unknown = set(statement) - {"Sid", "Effect", "Action", "Resource", "Condition"}
    if unknown or statement.get("Effect") != "Allow":
        return [
            f"must be an Allow of Action, Resource and Condition, not {', '.join(sorted(unknown)) or statement.get('Effect')}"
        ]
    conditions = statement.get("Condition", {})
    tests = [(operator, key, value) for operator, test in conditions.items() for key, value in test.items()]
    keys = {key for operator, key, _ in tests if _binds(operator, key)}
    found = [
        f"the condition {operator} on {key} binds nothing: it holds where the key is missing, or for all but one value"
        for operator, key, _ in tests
        if not _binds(operator, key)
    ]
    found += [
        f"the condition on {key} must be {_WANTED[key]}"
        for _, key, value in tests
        if key in _WANTED and _listed(value) != [_WANTED[key]]
    ]
    found += [f"the condition on {key} is open: {value}" for _, key, value in tests if _open(value)]
    for action in _listed(statement.get("Action")):
        bounds = _BOUNDS.get(action)
        if bounds is None:
            found.append(f"{action} is no action that a node needs")
            continue
        if worker and action.split(":")[0] not in _WORKER:
            found.append(f"{action} is not for workers")
        for resource in _listed(statement.get("Resource")):
            needed = next((keys for pattern, keys in bounds.items() if re.fullmatch(pattern, resource)), None)
            if needed is None:
                found.append(f"{action} on {resource}: name the resource that is needed")
            else:
                found += [f"{action} on {resource} needs a condition on {key}" for key in needed if key not in keys]
        if action == "ec2:CreateTags":
            found += _tags(keys)
    return found


def _tags(keys: set[str]) -> list[str]:
    """Tags may be set as a node of the cluster starts, or on one that is the cluster's."""
    at_start = {"ec2:CreateAction", f"aws:RequestTag/{TAG}"} <= keys
    if at_start or {f"aws:ResourceTag/{TAG}", "aws:TagKeys"} <= keys:
        return []
    either = f"ec2:CreateAction and aws:RequestTag/{TAG}"
    return [f"ec2:CreateTags needs conditions on {either}, or on aws:ResourceTag/{TAG} and aws:TagKeys"]


def _binds(operator: str, key: str) -> bool:
    return operator in _BINDING or (operator, key) in _LOOSE


def _open(value: object) -> bool:
    """Whether a condition holds for anything."""
    return any(str(each).startswith("*") for each in _listed(value))


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
