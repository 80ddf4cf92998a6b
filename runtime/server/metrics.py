"""What Prometheus reads: answers, their time, and the statistics of the schedulers."""

from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from .drawing import Served

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The figures of one server. They are in a registry of their own, so a process may hold several servers."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, served: Mapping[str, Served]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Schedulers(served))
        ProcessCollector(registry=self._registry)
        labels = ("method", "route")
        self._requests = Counter("cfgdiff_requests", "Requests.", (*labels, "status"), registry=self._registry)
        self._seconds = Histogram(
            "cfgdiff_request_seconds", "From a request to the end of its answer.", labels,
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip

    def count(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        """One request, by its route: a label never holds what a client chose."""
        route = getattr(scope.get("route"), "path", None)
        known = route is not None and scope["method"] in ("GET", "POST", "DELETE", "HEAD", "OPTIONS")
        labels = (scope["method"], route) if known else ("other", "other")
        self._requests.labels(*labels, str(status)).inc()
        self._seconds.labels(*labels).observe(seconds)

    def text(self) -> bytes:
        """In the format of Prometheus."""
        return generate_latest(self._registry)


class _Schedulers(Collector):
    """Each number in `Scheduler.stats` as a figure of that name, by model; a name in _total is a counter."""

    def __init__(self, served: Mapping[str, Served]) -> None:
        self._served = served

    def describe(self) -> list[Any]:
        """Nothing is asked of the schedulers before the first reading."""
        return []

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """The figures by now."""
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for model, served in self._served.items():
            for key, value in served.scheduler.stats().items():
                if not isinstance(value, Real) or isinstance(value, bool):
                    continue
                family = CounterMetricFamily if key.endswith("_total") else GaugeMetricFamily
                text = f"{key.replace('_', ' ')} of the scheduler."
                name = f"cfgdiff_{key}"
                families.setdefault(name, family(name, text, labels=["model"])).add_metric([model], float(value))
        yield from families.values()
