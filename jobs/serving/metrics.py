"""What a gateway counts, for Prometheus. Each gateway counts for itself: the label `gateway` tells them apart."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from starlette.routing import BaseRoute, Match

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)


class ServingMetrics:
    """The metrics of one gateway.

    Args:
        gateway: its name.
    """

    def __init__(self, gateway: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._gateway = gateway
        self.requests = self._make(Counter, "requests", "Requests by route and status.", ("route", "status"))
        self.seconds = self._make(Histogram, "request_seconds", "Seconds of a request.", ("route",), buckets=_SECONDS)
        self.stage = self._make(
            Histogram, "stage_seconds", "Seconds of a search by stage.", ("stage",), buckets=_SECONDS
        )
        self.refused = self._make(Counter, "refused", "Requests that were turned away, by reason.", ("reason",))
        self.batch = self._make(Histogram, "batch_pictures", "Pictures of a pass.", buckets=(1, 2, 4, 8, 16, 32, 64))
        self.pending = self._make(Gauge, "pending", "Searches in hand; a batch counts as eight.")
        self.version = self._make(Gauge, "index_version", "Version of the index that answers.")
        self.rows = self._make(Gauge, "index_pictures", "Live pictures of the index.")
        self.restarts = self._make(Gauge, "decoder_restarts", "Decode processes that a picture ended.")
        self.retries = self._make(Counter, "embedder_retries", "Pictures described again because a replica was lost.")

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request of a route, as `route_of` names it."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def stages(self, milliseconds: Mapping[str, float]) -> None:
        """Count a search's stages."""
        for stage, value in milliseconds.items():
            self.stage.labels(stage).observe(value / 1e3)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)

    def _make(self, kind: Any, name: str, text: str, labels: tuple[str, ...] = (), **more: Any) -> Any:  # noqa: ANN401 - metric classes
        metric = kind(f"manet_serve_{name}", text, ("gateway", *labels), registry=self._registry, **more)
        return _Of(metric, self._gateway, bare=not labels)


def route_of(scope: MutableMapping[str, Any], routes: Sequence[BaseRoute]) -> str:
    """The path of the route that answers a request, or would: one may be refused before its route is looked for."""
    route: Any = scope.get("route")
    for wanted in (Match.FULL, Match.PARTIAL):  # partial: it does not take the method
        route = route or next((each for each in routes if each.matches(scope)[0] == wanted), None)
    return str(getattr(route, "path", "other"))


class _Of:
    """A metric with the gateway's name filled in."""

    def __init__(self, metric: Any, gateway: str, *, bare: bool) -> None:  # noqa: ANN401
        self._metric, self._gateway = metric, gateway
        self._one = metric.labels(gateway) if bare else None

    def labels(self, *values: str) -> Any:  # noqa: ANN401
        """One series."""
        return self._metric.labels(self._gateway, *values)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._one, name)
