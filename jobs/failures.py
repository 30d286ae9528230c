"""Why training failed, in one line; who is told when it starts again."""

import contextlib
from typing import Any

from cluster.errors import ClusterError, JobFailedError
from manet.errors import ManetError

_TOLD_BY_RAY = ("low on memory", "has been hanging", "timed out after")  # in the line before its advice


def restarts_told(progress: Any) -> Any:  # noqa: ANN401 - a queue; a callback of Ray Train, imported lazily
    """What Ray Train's controller calls as its state changes: the driver is told why training starts again."""
    import ray.exceptions
    from ray.train.v2._internal.execution.callback import ControllerCallback  # a UserCallback is not told what follows
    from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState

    class Restarts(ControllerCallback):
        def after_controller_state_update(self, previous_state: object, current_state: Any) -> None:  # noqa: ANN401
            if isinstance(current_state, (RestartingState, ReschedulingState)):
                line = f"{why(current_state.training_failed_error)}; starting again, from the newest checkpoint if there is one"
                with contextlib.suppress(ray.exceptions.RayError):  # the session is being stopped
                    progress.put({"failed": line})

    return Restarts()


def cause_of(error: Any) -> Exception:  # noqa: ANN401 - ray.train.v2.api.exceptions.TrainingFailedError, imported lazily
    """What ended training: the first failed worker's own error where it has one, else what says why in one line."""
    own = _first(error)[1]
    if isinstance(own, (ClusterError, ManetError)):
        return own
    return JobFailedError(f"training failed: {why(error)}; the same command goes on from the newest checkpoint")


def why(error: Any) -> str:  # noqa: ANN401 - as `cause_of`
    """Of what ended training the line that says why, and whose it is."""
    worker, first = _first(error)
    lines = [line.strip() for line in str(first).splitlines() if line.strip()] or [type(first).__name__]
    # the last line of a traceback; Ray's own errors end in advice
    line = next((line for line in lines if any(told in line for told in _TOLD_BY_RAY)), lines[-1])
    return worker + line[:300]


def _first(error: Any) -> tuple[str, Any]:  # noqa: ANN401 - as `cause_of`
    """The first failed worker and what it raised; of the controller's own failure that."""
    if failures := getattr(error, "worker_failures", None):
        rank = min(failures)
        worker, first = f"worker {rank}: ", failures[rank]
    else:
        worker, first = "", getattr(error, "controller_failure", error)
    return worker, getattr(first, "cause", None) or first
