"""What a job says: progress and remarks on stderr, and its summary, one JSON object, as the last line on stdout."""

import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_EVERY_S = 10.0
COUNTERS = {
    "pictures": "Pictures that are done, by kind: rows or rejects.",
    "stage_seconds": "Seconds that workers spent, by stage.",
    "stage_bytes": "Bytes moved, by stage.",
    "restarts": "What had to be done again, by kind: requests to the store, decode processes.",
}
GAUGES = {
    "stage_done": "What a running job's stage has done, in its unit.",
    "stage_total": "What a running job's stage has to do in all, in its unit.",
}


def exported() -> dict[str, frozenset[str]]:
    """This project's metrics as Prometheus sees them on each node's metrics port, and their labels."""
    counters = {f"ray_manet_{name}_total": frozenset({"kind"}) for name in COUNTERS}
    return counters | {f"ray_manet_{name}": frozenset({"stage", "unit"}) for name in GAUGES}


def say(line: str, **fields: object) -> None:
    """One remark on stderr: for a person, or with MANET_LOG=json an object for a machine, which has `fields` too."""
    if logs_json():
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "job": job_id(), "message": line, **fields})
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def logs_json() -> bool:
    """Whether each line of the log is to be an object: $MANET_LOG is json."""
    return os.environ.get("MANET_LOG") == "json"


def job_id() -> str:
    """The id by which this process was submitted (`ray job submit`), else host:pid."""
    given = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return given.get("metadata", {}).get("job_submission_id") or f"{socket.gethostname()}:{os.getpid()}"


def emit_summary(summary: Mapping[str, Any]) -> None:
    """The job's result, one line of JSON on stdout. Nothing is printed there after it."""
    sys.stdout.write(json.dumps(summary, sort_keys=False) + "\n")
    sys.stdout.flush()


class Meter:
    """Progress of one stage: a bar on a terminal, a plain line every ten seconds in a log, gauges where Ray runs.

    Args:
        label: name of the stage.
        total: how many there are.
        unit: what is counted, plural.
    """

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.done, self._said_at = 0, -1
        self._label, self._total, self._unit = label, total, unit
        self._started = self._said = time.monotonic()
        self._bar: Progress | None = None
        self._gauges: dict[str, Any] = {}

    def __enter__(self) -> "Meter":
        self._gauges = _gauges()
        self._export()
        if sys.stderr.isatty() and not logs_json():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(f"{self._label} ({self._unit})", total=self._total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self._said_at != self.done:
            self._say()

    def advance(self, count: int, note: str = "", part: str = "") -> None:
        """`count` more are done, those of `part`; `note` is added to the line of a log.

        A log of objects has one for each part.
        """
        self.done += count
        self._export()
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
        elif self.due() or (part and logs_json()):
            self._said, self._said_at = now, self.done
            self._say(note, part)

    def due(self) -> bool:
        """Whether the next `advance` says a line: a note that costs something need not be made otherwise."""
        return self._bar is None and time.monotonic() - self._said >= LOG_EVERY_S

    def _export(self) -> None:
        for name, value in (("stage_done", self.done), ("stage_total", self._total)):
            if name in self._gauges:
                self._gauges[name].set(value, tags={"stage": self._label, "unit": self._unit})

    def _say(self, note: str = "", part: str = "") -> None:
        fields = {"stage": self._label, "done": self.done, "total": self._total, "unit": self._unit}
        say(self._line() + (f", {note}" if note else ""), **fields, **({"part": part} if part else {}))

    def _line(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = self.done / seconds
        left = f", {(self._total - self.done) / rate:.0f} s left" if 0 < self.done < self._total else ""
        return f"{self._label}: {self.done}/{self._total} {self._unit}, {rate:.3g}/s{left}"


class Metrics:
    """Counters of a worker that Ray exports to Prometheus, as `ray_manet_*`."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter

        self._counters = {
            name: Counter(f"manet_{name}", description=text, tag_keys=("kind",)) for name, text in COUNTERS.items()
        }

    def add(self, name: str, kind: str, value: float) -> None:
        """Count something."""
        if value > 0:
            self._counters[name].inc(value, tags={"kind": kind})


def _gauges() -> dict[str, Any]:
    """Gauges of the driver that this process is; none where Ray does not run."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return {}
    from ray.util.metrics import Gauge

    return {name: Gauge(f"manet_{name}", description=text, tag_keys=("stage", "unit")) for name, text in GAUGES.items()}
