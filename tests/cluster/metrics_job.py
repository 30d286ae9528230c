"""A job that counts one of everything, and stays until a node has told of it: `python -m tests.cluster.metrics_job`."""

import time
from typing import Any

from cluster.session import SessionConfig, ray_session
from cluster.telemetry import COUNTERS, Meter, Metrics

REPORTED_S = 30  # a worker's metrics are reported every 10 s, and go with it


def _wait() -> None:
    time.sleep(REPORTED_S)


def main() -> None:
    """Run for half a minute."""
    with ray_session(SessionConfig()):
        import ray

        kept, metrics = ray.put(bytes(1 << 20)), Metrics()
        wait: Any = ray.remote(_wait)
        with Meter("describe", 10, "pictures") as meter:
            for name in COUNTERS:
                metrics.add(name, "rows", 1)
            meter.advance(4)
            ray.get(wait.remote())
        assert len(ray.get(kept)) == 1 << 20


if __name__ == "__main__":
    main()
