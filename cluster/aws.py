"""Ray's node provider for AWS, which pays the full price for a node when there is no spot capacity.

`ray_cluster.yaml` names it. Ray's own autoscaler has no such fallback: it turns to another node type after a node that was
given did not come up in time, not after EC2 has refused to give one, and so would ask for the same spot node for ever.
"""

import logging
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

NO_SPOT = frozenset(
    {"InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow", "UnfulfillableCapacity"}
)
"""EC2's error codes for a spot node that cannot be had now, in any of the subnets."""

_log = logging.getLogger(__name__)


class SpotElseOnDemand(AWSNodeProvider):
    """Starts a group's nodes on spot when its node_config says so, else on demand."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Start up to `count` nodes; instance id -> instance.

        Raises:
            NodeLaunchException: EC2 gives none, on demand neither.
        """
        try:
            started: dict[str, Any] = super().create_node(node_config, tags, count)
        except NodeLaunchException as error:
            if error.category not in NO_SPOT or "InstanceMarketOptions" not in node_config:
                raise
            _log.warning("No spot %s (%s): on demand instead", node_config["InstanceType"], error.category)
            on_demand = {name: value for name, value in node_config.items() if name != "InstanceMarketOptions"}
            started = super().create_node(on_demand, tags, count)
        return started
