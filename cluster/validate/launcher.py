"""`ray_cluster.yaml`: Ray's own validator, EC2's own description of an instance, and what keeps a cluster small and shut."""

import re
from functools import cache
from typing import Any

from cluster.session import quiet

LONGEST_IDLE_MINUTES = 10
LEAST_DISK_GIB = 100  # system, image and spilled objects
_TLS = ("RAY_USE_TLS=1", "RAY_TLS_CA_CERT=", "RAY_TLS_SERVER_CERT=", "RAY_TLS_SERVER_KEY=")
_WATCH = re.compile(r"nohup python -m cluster\.notices\b[^&<]*>[^<]*<\s*/dev/null\s*&")


def faults(config: dict[str, Any]) -> list[str]:
    """What is wrong with a cluster's file, a line each."""
    refused = _by_ray(config)
    if refused:
        return refused  # the rest relies on its form
    groups = config["available_node_types"].items()
    refused = [
        f"group {name}: node_config: {fault}" for name, group in groups for fault in _by_ec2(group["node_config"])
    ]
    if refused:
        return refused
    found = [*_provider(config), *_scaling(config), *_start(config)]
    return found + [f"group {name}: {fault}" for name, group in groups for fault in _group(group)]


def _by_ray(config: dict[str, Any]) -> list[str]:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    quiet("ray.autoscaler._private.util")  # it warns of fields that it has itself filled in
    try:
        validate_config(prepare_config(config))
    except ValidationError as error:
        return [f"Ray refuses it: {'.'.join(map(str, error.absolute_path)) or 'top'}: {error.message}"]
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        return [f"Ray refuses it: {error}"]
    if len(config.get("available_node_types", {})) < 2:
        return ["available_node_types: a head and at least one group of workers are needed"]
    return []


@cache
def _run_instances() -> Any:  # noqa: ANN401 - botocore's model of the request, without types
    from botocore.session import get_session

    return get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _by_ec2(node_config: dict[str, Any]) -> list[str]:
    """Every field of a node against EC2's RunInstances, which Ray passes it to."""
    from botocore.validate import ParamValidator

    asked = {**node_config, "MinCount": 1, "MaxCount": 1}
    subnets = asked.pop("SubnetIds", [None])  # Ray's own: it tries one after the other
    report: str = ParamValidator().validate({**asked, "SubnetId": subnets[0]}, _run_instances()).generate_report()
    return report.splitlines()


def _provider(config: dict[str, Any]) -> list[str]:
    from ray._common.utils import load_class
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    provider, found = config["provider"], []
    try:
        known = issubclass(load_class(provider.get("module", "")), AWSNodeProvider)
    except (AttributeError, ImportError, TypeError, ValueError):
        known = False
    if not known:
        found.append("provider.module: name cluster.aws.SpotElseOnDemand; Ray's own has no way from spot to on demand")
    if not provider.get("use_internal_ips"):
        found.append("provider.use_internal_ips: set true; nodes would get public addresses")
    if provider.get("cache_stopped_nodes", True):
        found.append(
            "provider.cache_stopped_nodes: set false; stopped nodes still cost their disks, and spot nodes cannot be stopped"
        )
    if "security_group" in provider:
        found.append(
            "provider.security_group: give SecurityGroupIds; Ray opens port 22 to the world in a group that it makes"
        )
    if not config.get("auth", {}).get("ssh_proxy_command"):
        found.append("auth.ssh_proxy_command: no way to a head without a public address")
    return found


def _scaling(config: dict[str, Any]) -> list[str]:
    groups, found = config["available_node_types"], []
    head = groups[config["head_node_type"]]
    if head["resources"].get("CPU") != 0 or "InstanceMarketOptions" in head["node_config"]:
        found.append("the head takes no work and is no spot node: resources {CPU: 0}, no InstanceMarketOptions")
    found += [
        f"group {name}: min_workers: set 0; idle nodes cost"
        for name, group in groups.items()
        if group.get("min_workers")
    ]
    if sum(group.get("max_workers", 0) for group in groups.values()) != config.get("max_workers"):
        found.append("max_workers: must be the sum of the groups' max_workers, or a group can never be whole")
    if not 0 < config.get("idle_timeout_minutes", 0) <= LONGEST_IDLE_MINUTES:
        found.append(f"idle_timeout_minutes: set 1 to {LONGEST_IDLE_MINUTES}; an idle GPU node is paid for")
    if not any(group["resources"].get("GPU") for group in groups.values()):
        found.append("no group has a GPU")
    for name, group in groups.items():
        market = group["node_config"].get("InstanceMarketOptions", {}).get("MarketType")
        if group is not head and market != "spot":
            found.append(
                f"group {name}: InstanceMarketOptions: set MarketType spot; the provider goes on demand by itself"
            )
    profiles = {name: group["node_config"].get("IamInstanceProfile") for name, group in groups.items()}
    if any(
        profile == profiles[config["head_node_type"]] for name, profile in profiles.items() if groups[name] is not head
    ):
        found.append("a worker has the head's IamInstanceProfile, which may start and end nodes")
    return found


def _group(group: dict[str, Any]) -> list[str]:
    node, found = group["node_config"], []
    found += [
        f"node_config.{name} is missing"
        for name in ("IamInstanceProfile", "ImageId", "InstanceType", "SecurityGroupIds", "SubnetIds")
        if not node.get(name)
    ]
    if node.get("MetadataOptions", {}).get("HttpTokens") != "required":
        found.append("MetadataOptions: set HttpTokens required; else a request forged inside a node gets its keys")
    disks = [mapping.get("Ebs", {}) for mapping in node.get("BlockDeviceMappings", [])]
    if not disks or any(not disk.get("Encrypted") for disk in disks):
        found.append("BlockDeviceMappings: set Encrypted true")
    if sum(disk.get("VolumeSize", 0) for disk in disks) < LEAST_DISK_GIB:
        found.append(f"BlockDeviceMappings: VolumeSize below {LEAST_DISK_GIB} GiB leaves no room for spilled objects")
    return found


def _start(config: dict[str, Any]) -> list[str]:
    docker = config.get("docker", {})
    options, found = " ".join(docker.get("run_options", [])), []
    if "RAY_AUTH_MODE=token" not in options:
        found.append(
            "docker.run_options: --env=RAY_AUTH_MODE=token is missing: the cluster would obey anyone who reaches it"
        )
    found += [
        f"docker.run_options: --env={name}... is missing: the token would travel in the clear"
        for name in _TLS
        if name not in options
    ]
    if "~/.ray/auth_token" not in config.get("file_mounts", {}):
        found.append("file_mounts: ~/.ray/auth_token is missing: nodes have no token")
    images = [
        docker.get("image"),
        *(group.get("docker", {}).get("worker_image") for group in config["available_node_types"].values()),
    ]
    found += [
        f"docker: image {image}: name a version" for image in images if image and not re.search(r":\d[\w.-]*$", image)
    ]
    head, worker = (" ".join(config.get(f"{kind}_start_ray_commands", [])) for kind in ("head", "worker"))
    if not re.search(r"--dashboard-host=(?:127\.0\.0\.1|localhost)\b", head):
        found.append(
            "head_start_ray_commands: --dashboard-host=127.0.0.1 is missing; reach it with: ray dashboard ray_cluster.yaml"
        )
    for kind, command in (("head", head), ("worker", worker)):
        if "--object-store-memory=" not in command:
            found.append(f"{kind}_start_ray_commands: --object-store-memory is missing")
    if not any(_WATCH.fullmatch(command.strip()) for command in config.get("worker_start_ray_commands", [])):
        found.append(
            "worker_start_ray_commands: nohup python -m cluster.notices > /tmp/notices.log 2>&1 < /dev/null & is missing: a spot "
            "market's notice would be lost (and without the & the node's start would wait for it)"
        )
    return found
