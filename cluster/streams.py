"""How Ray Data runs here: silently, and without burning a core while it waits."""

import os
import time
from typing import Any, cast

from cluster.session import SessionConfig, quiet

STEP_S = 0.05  # s between two steps of Ray Data's scheduler: work comes in units of seconds


class Paced:
    """A pause after each step of Ray Data's scheduling loop (an execution callback, its methods are Ray's).

    The loop (Ray 2.60) waits for finished tasks, but does not wait at all while a finished task's output is held back by
    a slower consumer, which is the normal state of a pipeline: it then takes one whole core from the work.
    """

    def before_execution_starts(self, executor: Any) -> None:  # noqa: ANN401 - ray.data's own executor
        """Nothing."""

    def on_execution_step(self, executor: Any) -> None:  # noqa: ANN401
        """Wait."""
        time.sleep(STEP_S)

    def after_execution_succeeds(self, executor: Any) -> None:  # noqa: ANN401
        """Nothing."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:  # noqa: ANN401
        """Nothing."""


def configure_data() -> None:
    """Set up Ray Data in this process; every stream made afterwards runs so."""
    from ray.data import DataContext

    quiet("ray.data")
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    callbacks = cast(list[type], context.custom_execution_callback_classes)
    if Paced not in callbacks:
        callbacks.append(Paced)


def alive_nodes() -> list[tuple[float, float]]:
    """CPUs and GPUs that each node of the running session has for Ray."""
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(float(each.get("CPU", 0)), float(each.get("GPU", 0))) for each in resources]


def may_scale(config: SessionConfig) -> bool:
    """Whether nodes may come that are not there yet: in a cluster that was joined."""
    return bool(config.ray_address or os.environ.get("RAY_ADDRESS"))
