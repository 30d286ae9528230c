"""`ray_cluster.yaml`: what Ray and EC2 make of it; that it is in order, test_deployment.py holds."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.aws import SpotElseOnDemand
from cluster.validate import kustomize

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "ray_cluster.yaml").read_text()
CONFIG: dict[str, Any] = yaml.safe_load(TEXT)
GROUPS = CONFIG["available_node_types"]
POLICIES = {name: json.loads((ROOT / "cluster" / "iam" / f"{name}.json").read_text()) for name in ("head", "worker")}
CONTROL = {"ray-cluster-name": "manet", "ray-node-type": "worker"}
NO_CAPACITY = "InsufficientInstanceCapacity"


def test_the_head_may_start_just_these_groups() -> None:
    (start,) = [each for each in POLICIES["head"]["Statement"] if each["Sid"] == "StartNodesOfTheTwoGroups"]
    asked = start["Condition"]["StringEquals"]
    workers = [group["node_config"] for name, group in GROUPS.items() if name != CONFIG["head_node_type"]]
    assert sorted(asked["ec2:InstanceType"]) == sorted(node["InstanceType"] for node in workers)
    profiles = {node["IamInstanceProfile"]["Name"] for node in workers}
    assert [start["Condition"]["ArnEquals"]["ec2:InstanceProfile"]] == [
        f"arn:aws:iam::ACCOUNT:instance-profile/{name}" for name in profiles
    ]
    assert asked["aws:RequestTag/ray-cluster-name"] == CONFIG["cluster_name"]


def test_the_head_may_do_all_that_workers_may() -> None:
    """The driver runs there: it reads and writes what they do."""
    assert all(statement in POLICIES["head"]["Statement"] for statement in POLICIES["worker"]["Statement"])


def test_every_number_has_a_reason() -> None:
    numbered = [
        line for line in TEXT.splitlines()
        if line.strip().startswith(("max_workers: 2", "upscaling_speed", "idle_timeout", "resources: {CPU: 0}"))
        or "InstanceType:" in line or "VolumeSize" in line
    ]  # fmt: skip
    assert len(numbered) >= 8
    assert all("#" in line for line in numbered), [line for line in numbered if "#" not in line]


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> SpotElseOnDemand:
    """The provider as Ray makes it; EC2's answers are given by each test, its requests checked against EC2's own model."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    from ray.autoscaler._private import providers

    providers._clear_provider_cache()
    found = providers._get_node_provider(CONFIG["provider"], CONFIG["cluster_name"])
    assert isinstance(found, SpotElseOnDemand)
    return found


def _started(market: bool) -> dict[str, Any]:
    """What EC2 answers when it starts one node, and is asked for one."""
    asked = {key: value for key, value in GROUPS["gpu"]["node_config"].items() if key != "SubnetIds"}
    if not market:
        asked.pop("InstanceMarketOptions")
    return {
        "service_response": {"Instances": [{"InstanceId": "i-1", "State": {"Name": "pending", "Code": 0}}]},
        "expected_params": {
            **asked, "MinCount": 1, "MaxCount": 2, "SubnetId": "subnet-00000000000000000",
            "TagSpecifications": [
                {"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in
                 [("ray-cluster-name", "manet"), *sorted(CONTROL.items())]]},
            ],
        },
    }  # fmt: skip


def test_spot_comes_first(provider: SpotElseOnDemand) -> None:
    from botocore.stub import Stubber

    with Stubber(provider.ec2_fail_fast.meta.client) as ec2:
        ec2.add_response("run_instances", **_started(market=True))
        assert list(provider.create_node(GROUPS["gpu"]["node_config"], CONTROL, 2)) == ["i-1"]
        ec2.assert_no_pending_responses()


def test_what_spot_refuses_is_started_on_demand(provider: SpotElseOnDemand) -> None:
    from botocore.stub import Stubber
    from ray.autoscaler._private.constants import BOTO_CREATE_MAX_RETRIES

    with Stubber(provider.ec2_fail_fast.meta.client) as ec2:
        for _ in range(BOTO_CREATE_MAX_RETRIES):  # Ray tries as often before it gives up
            ec2.add_client_error("run_instances", NO_CAPACITY, "none left")
        ec2.add_response("run_instances", **_started(market=False))
        assert list(provider.create_node(GROUPS["gpu"]["node_config"], CONTROL, 2)) == ["i-1"]
        ec2.assert_no_pending_responses()
    assert "InstanceMarketOptions" in GROUPS["gpu"]["node_config"]


@pytest.mark.parametrize("error", ["UnauthorizedOperation", "InvalidParameterValue"])
def test_another_refusal_is_not_paid_for(provider: SpotElseOnDemand, error: str) -> None:
    from botocore.stub import Stubber
    from ray.autoscaler._private.constants import BOTO_CREATE_MAX_RETRIES
    from ray.autoscaler.node_launch_exception import NodeLaunchException

    with Stubber(provider.ec2_fail_fast.meta.client) as ec2:
        for _ in range(BOTO_CREATE_MAX_RETRIES):
            ec2.add_client_error("run_instances", error, "no")
        with pytest.raises(NodeLaunchException) as raised:
            provider.create_node(GROUPS["gpu"]["node_config"], CONTROL, 2)
    assert raised.value.category == error


def _groups_of_kuberay() -> dict[str, Any]:
    """The GPU overlay's groups as Ray's autoscaler has them."""
    from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig

    documents, _ = kustomize.build(ROOT / "cluster" / "kuberay" / "overlays" / "gpu")
    (spec,) = [document["spec"] for document in documents if document["kind"] == "RayCluster"]
    groups = {}
    for group in spec["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        resources = {"CPU": float(limits["cpu"])} | ({"GPU": 1.0} if "nvidia.com/gpu" in limits else {})
        groups[group["groupName"]] = NodeTypeConfig(
            name=group["groupName"], min_worker_nodes=0, max_worker_nodes=group["maxReplicas"],
            resources=resources, priority=group.get("priority", 0),
        )  # fmt: skip
    return groups


def _launched(demand: dict[str, float], count: int, recovered: dict[str, float]) -> dict[str, int]:
    """Nodes that Ray's autoscaler would start for `count` tasks of `demand`."""
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    request = SchedulingRequest(
        disable_launch_config_check=True, node_type_configs=_groups_of_kuberay(), max_num_nodes=100,
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(demand)] * count),
        recoverable_resource_availabilities=recovered,
    )  # fmt: skip
    reply = ResourceDemandScheduler(None).schedule(request)
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def test_kuberays_groups_are_asked_for_as_meant() -> None:
    """Pictures that are decoded start no GPU node; GPUs come from spot, and on demand after spot has not come."""
    assert _launched({"CPU": 1}, 30, {}) == {"decode": 2}
    assert _launched({"GPU": 1, "CPU": 1}, 3, {}) == {"gpu-spot": 3}
    assert _launched({"GPU": 1, "CPU": 1}, 3, {"gpu-spot": 0.0}) == {"gpu": 3}
