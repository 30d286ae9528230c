import json
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
GROUPS = CONFIG["available_node_types"]


def test_ray_accepts_the_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(CONFIG))


def test_groups_scale_from_zero_and_the_head_takes_no_work() -> None:
    assert GROUPS["head"]["resources"] == {"CPU": 0}
    assert {name: group["min_workers"] for name, group in GROUPS.items()} == {"head": 0, "decode": 0, "gpu": 0}
    assert sum(group["max_workers"] for group in GROUPS.values()) == CONFIG["max_workers"]
    assert "GPU" not in GROUPS["decode"]["resources"]
    assert GROUPS["gpu"]["resources"]["GPU"] >= 1
    assert GROUPS["gpu"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert 0 < CONFIG["idle_timeout_minutes"] <= 10


def test_own_profiles_group_and_token() -> None:
    assert CONFIG["provider"]["security_group"]["GroupName"]
    for name, group in GROUPS.items():
        profile = group["node_config"]["IamInstanceProfile"]["Name"]
        assert profile == ("manet-ray-head" if name == "head" else "manet-ray-worker")
    for command in (CONFIG["head_start_ray_commands"][-1], CONFIG["worker_start_ray_commands"][-1]):
        assert "RAY_AUTH_MODE=token" in command
        assert "RAY_AUTH_TOKEN_PATH=" in command
        assert "RAY_AUTH_TOKEN=" not in command
    assert "--dashboard-host=127.0.0.1" in CONFIG["head_start_ray_commands"][-1]


def test_every_number_has_a_reason() -> None:
    numbered = [
        line for line in (ROOT / "ray_cluster.yaml").read_text().splitlines()
        if line.strip().startswith(("max_workers: 2", "upscaling_speed", "idle_timeout", "resources: {CPU: 0}"))
        or "InstanceType" in line or "VolumeSize" in line
    ]  # fmt: skip
    assert len(numbered) >= 8
    assert all("#" in line for line in numbered), [line for line in numbered if "#" not in line]


@pytest.mark.parametrize("name", ["head", "worker"])
def test_policies_allow_nothing_broad(name: str) -> None:
    policy = json.loads((ROOT / "cluster" / "iam" / f"{name}.json").read_text())
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        for action in statement["Action"]:
            assert "*" not in action
        if statement["Resource"] == ["*"]:
            assert all(action.startswith("ec2:Describe") for action in statement["Action"]), statement["Sid"]
