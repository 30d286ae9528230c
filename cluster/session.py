"""The one place that starts Ray or joins a cluster."""

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import BadInputError, JobFailedError
from cluster.telemetry import say

MIB = 1 << 20
_STARTS = 3  # of Ray on this machine


class SessionConfig(BaseModel):
    """Where a job's Ray tasks run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    ray_address: str = ""
    """Cluster to join, HOST:PORT; default: $RAY_ADDRESS (`ray job submit` sets it), else this machine alone."""
    ray_cpus: int = Field(default=0, ge=0)
    """CPUs that a session on this machine alone may use; 0: as many as this process may."""
    object_store_mib: int = Field(default=2048, ge=128)
    """Shared memory of a session on this machine alone, MiB."""


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
        BadInputError: the named cluster cannot be reached.
    """
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # a task without GPUs leaves CUDA_VISIBLE_DEVICES alone
    import ray

    if ray.is_initialized():
        yield
        return
    address = _address(config)
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
        if not is_session_lost():  # it would ask them for a minute
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
    """Whether Ray's own processes, which this process started, were ended: a signal to its whole group reaches them too."""
    from ray._private import worker

    node: Any = worker._global_node
    return node is not None and not {"raylet", "gcs_server"}.isdisjoint(kind for kind, _ in node.dead_processes())


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


def require_resources(*, cpus: float, gpus: float, workers: int = 1, spare_cpus: float = 0, flags: str) -> None:
    """Refuse at once what the running session can never give, and would wait for without an end.

    Args:
        cpus: CPUs of one worker.
        gpus: GPUs of one worker.
        workers: how many there must be at once.
        spare_cpus: CPUs that must be left beside them.
        flags: what to lower, for the message.

    Raises:
        BadInputError: the nodes are too small or too few (of a cluster that may scale up nothing is asked).
    """
    import ray

    if os.environ.get("RAY_ADDRESS"):
        return
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(_fit(node, cpus, gpus) for node in nodes)
    total_cpus, total_gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
    if room < workers or total_cpus - workers * cpus < spare_cpus:
        beside = f", and {spare_cpus:g} CPUs beside them" if spare_cpus else ""
        raise BadInputError(
            f"{workers} worker(s) of {cpus:g} CPUs and {gpus:g} GPUs are asked for{beside}, "
            f"but this machine has {total_cpus:g} CPUs and {total_gpus:g} GPUs for Ray; lower {flags}"
        )


def _fit(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Workers that one node has room for."""
    counts = [node.get(name, 0) / each for name, each in (("CPU", cpus), ("GPU", gpus)) if each]
    return int(min(counts)) if counts else 1


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
