"""The one place that starts Ray or joins a cluster."""

import contextlib
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import BadInputError, JobFailedError
from cluster.telemetry import say

MIB = 1 << 20
_STARTS = 3  # of Ray on this machine
_FREE_S = 5.0  # until room that was let go of is free again
_SAY_S = 10.0  # s between two remarks of a job that waits for nodes
_ANSWER_S = 30.0  # s in which a node runs a task that does nothing, where it is there


class SessionConfig(BaseModel):
    """Where a job's Ray tasks run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    ray_address: str = ""
    """Cluster to join, HOST:PORT; default: $RAY_ADDRESS (`ray job submit` sets it), else this machine alone."""
    ray_cpus: int = Field(default=0, ge=0)
    """CPUs that a session on this machine alone may use; 0: as many as this process may."""
    object_store_mib: int = Field(default=2048, ge=128)
    """Shared memory of a session on this machine alone, MiB."""
    wait_for_resources: float = Field(default=900.0, ge=0)
    """Seconds that a job on a cluster waits for nodes with the CPUs and GPUs that it needs to start; then it fails."""


def beside_driver() -> dict[str, Any]:
    """Options of a small actor that is lost only if the driver's node is."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    return {"num_cpus": 0, "scheduling_strategy": here}


_running = SessionConfig()  # of the session that this process is in


def joins_cluster(config: SessionConfig) -> bool:
    """Whether a session joins a cluster that is there, to which nodes may come, rather than start Ray on this machine."""
    return bool(_address(config))


def _address(config: SessionConfig) -> str:
    return config.ray_address or os.environ.get("RAY_ADDRESS", "")


def available_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def ray_session(config: SessionConfig, *, debug: bool = False) -> Iterator[None]:
    """Ray is up inside the `with`; a session that is already up in this process is used and left running.

    Raises:
        BadInputError: the named cluster cannot be reached, or it is a job server that is named.
    """
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # a task without GPUs leaves CUDA_VISIBLE_DEVICES alone
    import ray

    global _running  # noqa: PLW0603 - a process is in one session
    _running = config
    if ray.is_initialized():
        yield
        return
    address = _address(config)
    if address.startswith(("http://", "https://")):
        raise BadInputError(
            f"--ray-address {address}: a job server (by $RAY_ADDRESS, unless the flag was given), which takes jobs from "
            "`manet submit` alone; to run on this machine, unset RAY_ADDRESS (submit reads RAY_API_SERVER_ADDRESS first)"
        )
    level = logging.INFO if debug else logging.ERROR
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, logging_level=level, log_to_driver=debug)
        else:
            _start_local(config, level=level, debug=debug)
    except SystemExit:  # Ray's own answer to SIGTERM while it starts
        raise KeyboardInterrupt from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address:
            raise BadInputError(
                f"--ray-address {address}: cannot join the cluster: {_first_line(error)}; "
                "is it up, and are RAY_AUTH_MODE=token and RAY_AUTH_TOKEN set?"
            ) from error
        raise JobFailedError(f"Ray could not be started on this machine: {_first_line(error)}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray sets one of its own, which ends the process where it stands
    try:
        yield
    finally:
        if is_session_lost():
            _end_processes()
        else:
            ray.shutdown()


def _start_local(config: SessionConfig, *, level: int, debug: bool) -> None:
    """Start Ray here; again when a busy machine took longer than the half minute that Ray grants its own processes.

    Raises:
        JobFailedError: it did not start in `_STARTS` tries.
    """
    import ray

    _own_token()
    for attempt in range(1, _STARTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=config.ray_cpus or available_cpus(),
                object_store_memory=config.object_store_mib * MIB,
                include_dashboard=False,
                logging_level=level,
                log_to_driver=debug,
            )
        except Exception as error:  # Ray raises no type of its own for this
            ray.shutdown()
            if "timed out" not in str(error):
                raise
            if attempt == _STARTS:
                raise JobFailedError(f"Ray did not start in {_STARTS} tries: {_first_line(error)}") from error
            say(f"Ray did not start in time; trying again ({attempt} of {_STARTS - 1})")
        else:
            return


def is_session_lost() -> bool:
    """Whether Ray's own processes, which this process started, are ending: a signal to its whole group reaches them too.

    The small ones end at once, raylet and GCS up to a minute later; one of them alone may have crashed.
    """
    from ray._private import worker

    node: Any = worker._global_node
    dead = {kind for kind, _ in node.dead_processes()} if node is not None else set()
    return len(dead) > 1 or not dead.isdisjoint({"raylet", "gcs_server"})


def _end_processes() -> None:
    """End what is left of a lost session; `ray.shutdown` would ask it for a minute first."""
    from ray._private import worker

    node: Any = worker._global_node
    node.kill_all_processes(check_alive=False, allow_graceful=False)


def _own_token() -> None:
    """Give a session on this machine a token of its own, which its processes inherit and no file holds.

    Without it Ray writes one to ~/.ray/auth_token, readable by every user of the machine, who could then run code as this
    user. RAY_AUTH_MODE=disabled, and a token that is set, are left as they are.
    """
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)
    if not named and os.environ.get("RAY_AUTH_MODE", "token") == "token":
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def quiet(name: str) -> None:
    """Let a Ray library say errors only; to be called after it is imported, since it sets up its own logging then."""
    logging.getLogger(name).setLevel(logging.ERROR)


def cluster_cpus() -> int:
    """CPUs that the running session has now; at least 1."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def require_resources(
    *, cpus: float, gpus: float, workers: int = 1, spare_cpus: float = 0, spare_resource: str = "", flags: str
) -> None:
    """Hold until the running session can give what would otherwise be waited for without an end.

    This machine alone can never give more than it has. To a cluster nodes may come: they are asked for, and waited for.

    Args:
        cpus: CPUs of one worker.
        gpus: GPUs of one worker.
        workers: how many there must be at once.
        spare_cpus: CPUs that must be left beside them.
        spare_resource: custom resource of which the nodes of these CPUs have as much; empty: none.
        flags: what to lower, for the message.

    Raises:
        BadInputError: this machine is too small.
        JobFailedError: the cluster still was after `--wait-for-resources`.
    """
    named = f" and {spare_cpus:g} {spare_resource!r}" if spare_resource else ""
    beside = f", and {spare_cpus:g} CPUs{named} beside them" if spare_cpus else ""
    wanted = f"{workers} worker(s) of {cpus:g} CPUs and {gpus:g} GPUs{beside}"
    worker, spare = {"CPU": cpus, "GPU": gpus}, {name: spare_cpus for name in ("CPU", spare_resource) if name}
    nodes = alive_nodes()
    if _room(nodes, worker, spare) >= workers:
        return
    if not joins_cluster(_running):
        raise BadInputError(f"{wanted} are asked for, but this machine has {_have(nodes)} for Ray; lower {flags}")
    bundle = {name: each for name, each in worker.items() if each}
    _wait_for([bundle] * workers + ([spare] if spare_cpus else []), wanted, flags)


def wait_for_room(*, cpus: float, gpus: float, least: int, spare_cpus: float = 0, ask: bool = False, flags: str) -> int:
    """Workers that the running session has room for, once it has room for the fewest; nodes that are being drained give none.

    Args:
        cpus: CPUs of one worker.
        gpus: GPUs of one worker.
        least: fewest workers.
        spare_cpus: CPUs that must be left beside them.
        ask: after a loss: count only nodes that answer, as Ray takes its time to call a node dead.
        flags: what to lower, for the message.

    Raises:
        BadInputError: this machine is too small.
        JobFailedError: the cluster still was after `--wait-for-resources`.
    """
    began = time.monotonic()
    while True:
        require_resources(cpus=cpus, gpus=gpus, workers=least, spare_cpus=spare_cpus, flags=flags)
        room = _room(_staying(ask=ask), {"CPU": cpus, "GPU": gpus}, {"CPU": spare_cpus})
        if room >= least:
            return room
        if time.monotonic() - began >= _running.wait_for_resources:
            raise JobFailedError(
                f"the nodes that answer and stay have room for {room} worker(s) of {cpus:g} CPUs and {gpus:g} GPUs, not for "
                f"{least}; let the cluster grow, lower {flags}, or raise --wait-for-resources"
            )
        time.sleep(_SAY_S / 2)


def _room(nodes: list[dict[str, float]], worker: Mapping[str, float], spare: Mapping[str, float]) -> int:
    """Workers that some nodes have room for, with what is spared left beside them."""
    if not any(fits(node, spare) for node in nodes):
        return 0
    count = sum(fits(node, worker) for node in nodes)
    while count and _sum(nodes, "CPU") - count * worker["CPU"] < spare["CPU"] - 1e-9:
        count -= 1
    return count


def _staying(*, ask: bool) -> list[dict[str, float]]:
    """What each node that is not being drained has for Ray; of those that answer, if they are asked."""
    import ray

    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    there = (_answering(nodes) if ask else set(nodes)) - _draining()
    return [nodes[name] for name in there]


def _answering(nodes: Iterable[str]) -> set[str]:
    """Those of some nodes that run a task, of no CPU, within `_ANSWER_S`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {
        ray.remote(num_cpus=0, max_retries=0)(_here)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False))
        .remote(): name
        for name in nodes
    }
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
    found = set()
    for answer in answered:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(answer)
            found.add(asked[answer])
    return found


def _here() -> bool:
    return True


def _draining() -> set[str]:
    """Ids of the nodes whose end was announced."""
    import ray

    found: Any = ray._private.state.state.get_draining_nodes()
    return set(found)


def _wait_for(bundles: list[dict[str, float]], wanted: str, flags: str) -> None:
    """Ask the cluster for room as a placement group, which an autoscaler sees; let go of it when it is there."""
    from ray.util import placement_group, remove_placement_group

    limit, began = _running.wait_for_resources, time.monotonic()
    group = placement_group(bundles)
    try:
        while True:
            waited = time.monotonic() - began
            say(f"waiting for {wanted}: the cluster has {_have(alive_nodes())} ({waited:.0f} of {limit:g} s)")
            if group.wait(max(0.1, min(_SAY_S, limit - waited))):
                say(f"{wanted}: there after {time.monotonic() - began:.0f} s")
                break
            if time.monotonic() - began >= limit:
                raise JobFailedError(
                    f"{wanted} did not come within {limit:g} s: the cluster has {_have(alive_nodes())}; let it grow, "
                    f"lower {flags}, or raise --wait-for-resources"
                )
    finally:
        remove_placement_group(group)
    _wait_until_free(bundles)


def _wait_until_free(bundles: list[dict[str, float]]) -> None:
    """Wait, for some seconds at most, until the room that was let go of is free: an autoscaler that still sees it taken when
    the work for it comes would start nodes for both.
    """
    import ray

    wanted, deadline = _sum(bundles, "CPU"), time.monotonic() + _FREE_S
    while ray.available_resources().get("CPU", 0) < wanted and time.monotonic() < deadline:
        time.sleep(0.1)


def alive_nodes() -> list[dict[str, float]]:
    """What each node of the running session has for Ray."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _have(nodes: list[dict[str, float]]) -> str:
    return f"{_sum(nodes, 'CPU'):g} CPUs and {_sum(nodes, 'GPU'):g} GPUs on {len(nodes)} node(s)"


def _sum(nodes: list[dict[str, float]], name: str) -> float:
    return sum(node.get(name, 0) for node in nodes)


def fits(node: Mapping[str, float], worker: Mapping[str, float]) -> int:
    """Workers that one node has room for; 1 where they book nothing."""
    counts = [node.get(name, 0) / each for name, each in worker.items() if each]
    return int(min(counts) + 1e-9) if counts else 1


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
