"""How Ray Data runs here: silently, without burning a core while it waits, and never waiting without an end."""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from cluster.errors import JobFailedError
from cluster.session import beside_driver, quiet

_Item = TypeVar("_Item")
TICK_S = 1.0  # s between two looks at a stream that gives nothing
REPORT_S = 2.0  # s between two reports of a worker to the board
SILENT_S = 30.0  # s after which a worker's last report is no longer believed
FULL = 1.0  # of an actor pool: every actor holds the units that it may, so another one would help
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
    from ray._private import auto_init_hook
    from ray.data import DataContext

    auto_init_hook.enable_auto_connect = False  # a stream that outlives its session must not start another one
    quiet("ray.data")
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray's own bound, 1.75, counts units that wait in actors beyond those that they work at: ours hold none, and would never grow
    context.autoscaling_config.actor_pool_util_upscaling_threshold = FULL
    callbacks = cast(list[type], context.custom_execution_callback_classes)
    if Paced not in callbacks:
        callbacks.append(Paced)


class Board:
    """What every worker of a stream is at, for the driver to say what it waits for. An actor of its own, of no CPU."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, dict[str, int]]] = {}

    def report(self, worker: str, stages: dict[str, int]) -> None:
        """How many units of a worker are in which stage."""
        self._found[worker] = (time.monotonic(), stages)

    def stages(self) -> dict[str, int]:
        """Units by stage, of all workers that still report."""
        total: Counter[str] = Counter()
        for at, stages in self._found.values():
            if time.monotonic() - at < SILENT_S:
                total.update(stages)
        return dict(total)


def open_board() -> Any:  # noqa: ANN401 - a handle of a Ray actor
    """A board on the running session."""
    import ray

    return ray.remote(max_restarts=-1, **beside_driver())(Board).remote()


def waiting_for(board: Any) -> str:  # noqa: ANN401
    """What the board says, in words."""
    import ray

    try:
        stages: dict[str, int] = ray.get(board.stages.remote(), timeout=10)
    except (ray.exceptions.RayError, TimeoutError):
        return "the cluster (no report from its workers)"
    named = ", ".join(f"{stage} ({count})" for stage, count in sorted(stages.items(), key=lambda kv: -kv[1]) if count)
    return named or "workers to start"


def keep_reporting(board: Any, worker: str, stages: Callable[[], dict[str, int]]) -> None:  # noqa: ANN401
    """Report to the board every few seconds, from a thread of this process, as long as it lives."""

    def report() -> None:
        while True:
            board.report.remote(worker, stages())
            time.sleep(REPORT_S)

    threading.Thread(target=report, daemon=True, name="report").start()


def watched(stream: Iterator[_Item], timeout: float, waiting: Callable[[], str], flag: str) -> Iterator[_Item | None]:
    """The items of a stream that may stop giving any; None about every second in between.

    Args:
        stream: is drained in a thread.
        timeout: seconds without an item after which it counts as stalled.
        waiting: says what it waits for.
        flag: what sets `timeout`, for the message.

    Raises:
        JobFailedError: the stream is stalled.
        Exception: whatever the stream raises.
    """
    items: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def drain() -> None:
        try:
            for item in stream:
                items.put(("item", item))
            items.put(("end", None))
        except BaseException as error:  # handed over
            items.put(("error", error))

    threading.Thread(target=drain, daemon=True, name="stream").start()
    since = time.monotonic()
    while True:
        try:
            kind, value = items.get(timeout=min(TICK_S, timeout))
        except queue.Empty:
            if time.monotonic() - since > timeout:
                raise JobFailedError(
                    f"no progress for {timeout:g} s, waiting for: {waiting()}; what is finished is saved: mend that and run "
                    f"the same command again, or raise {flag}"
                ) from None
            yield None
            continue
        if kind == "end":
            return
        if kind == "error":
            raise value
        since = time.monotonic()
        yield value
