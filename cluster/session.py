"""The one place that starts Ray or joins a cluster."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import BadInputError, JobFailedError

MIB = 1 << 20


class SessionConfig(BaseModel):
    """Where a job's Ray tasks run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    ray_address: str = ""
    """Cluster to join, HOST:PORT; default: $RAY_ADDRESS (`ray job submit` sets it), else this machine alone."""
    ray_cpus: int = Field(default=0, ge=0)
    """CPUs that a session on this machine alone may use; 0: as many as this process may."""
    object_store_mib: int = Field(default=2048, ge=128)
    """Shared memory of a session on this machine alone, MiB."""


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
    address = config.ray_address or os.environ.get("RAY_ADDRESS", "")
    level = logging.INFO if debug else logging.ERROR
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, logging_level=level, log_to_driver=debug)
        else:
            ray.init(
                address="local",
                num_cpus=config.ray_cpus or available_cpus(),
                object_store_memory=config.object_store_mib * MIB,
                include_dashboard=False,
                logging_level=level,
                log_to_driver=debug,
            )
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
        ray.shutdown()


def quiet(name: str) -> None:
    """Let a Ray library say errors only; to be called after it is imported, since it sets up its own logging then."""
    logging.getLogger(name).setLevel(logging.ERROR)


def cluster_cpus() -> int:
    """CPUs that the running session has now; at least 1."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def require_resources(*, cpus: float, gpus: float) -> None:
    """Refuse at once what no node of the running session can ever give.

    Raises:
        BadInputError: no node has that many CPUs and GPUs (a cluster that scales up is asked nothing).
    """
    import ray

    if os.environ.get("RAY_ADDRESS"):
        return
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        best = max((node.get("GPU", 0) for node in nodes), default=0)
        raise BadInputError(
            f"a worker asks for {cpus:g} CPUs and {gpus:g} GPUs, but the largest node here has "
            f"{max(node.get('CPU', 0) for node in nodes):g} CPUs and {best:g} GPUs; lower --model-cpus / --model-gpus"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
