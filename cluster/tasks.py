"""Independent units of work as Ray tasks: bounded in flight, results in order of completion, the first error ends the run."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from cluster.session import cluster_cpus, require_resources

LEAST = 64  # tasks in flight, on a cluster of any size
_Unit = TypeVar("_Unit")
_Result = TypeVar("_Result")
_kept: list[tuple[str, Callable[[Any], Any]]] = []  # of a worker: the work that it was given last, by its reference


def run_tasks(
    work: Callable[[_Unit], _Result],
    units: Iterable[_Unit],
    *,
    cpus: float = 1.0,
    gpus: float = 0.0,
    environ: Mapping[str, str] | None = None,
) -> Iterator[_Result]:
    """Run `work(unit)` for every unit on the running session.

    Args:
        work: a picklable function; it writes its own result to the store and returns counts. What it holds is read-only in the
            workers.
        units: what to work on; taken as there is room for them.
        cpus: CPUs that one task books and may use.
        gpus: GPUs of one task.
        environ: more variables of the processes that run them.

    Yields:
        The results, as they come.

    Raises:
        BadInputError, JobFailedError: the session has no room for one task, as `require_resources`.
        Exception: the first error of a task; a task whose worker died is tried three more times by Ray.
    """
    import ray

    if units:
        require_resources(cpus=cpus, gpus=gpus, flags="its CPUs and GPUs (see --help)")

    options: dict[str, Any] = {"runtime_env": {"env_vars": dict(environ)}} if environ else {}
    task: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=3, **options)(_call)
    shared = ray.put(work)  # as a part of the function it could not be of more than 95 MiB: some 3.5 million ids
    waiting: list[Any] = []
    queue = iter(units)
    try:
        while True:
            most = max(LEAST, 2 * cluster_cpus() / cpus)  # nodes come and go
            while len(waiting) < most and (unit := next(queue, None)) is not None:
                waiting.append(task.remote([shared], unit))
            if not waiting:
                return
            ready, waiting = ray.wait(waiting, num_returns=1)
            yield ray.get(ready[0])
    finally:
        for reference in waiting:
            ray.cancel(reference)


def _call(shared: list[Any], unit: Any) -> Any:  # noqa: ANN401 - as `run_tasks`
    """The work on one unit; a worker unpickles it once, so that what it keeps is kept from unit to unit."""
    import ray

    (reference,) = shared
    if not _kept or _kept[0][0] != reference.hex():
        _kept[:] = [(reference.hex(), ray.get(reference))]
    return _kept[0][1](unit)
