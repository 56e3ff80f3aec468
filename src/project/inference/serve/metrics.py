"""Metrics of the server in Prometheus's text format."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from project.inference.serve.models import ModelSlot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ServerMetrics:
    """Counters and histograms of one server; names follow Prometheus's conventions."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.registry = registry
        self.requests = Counter(
            "project_requests", "Answered requests for predictions.", ["model", "status"], registry=registry
        )
        self.images = Counter("project_images", "Predicted images.", ["model"], registry=registry)
        self.seconds = Histogram(
            "project_request_seconds",
            "Time from a request to its answer.",
            ["model"],
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_images = Histogram(
            "project_batch_images", "Images in a forward pass.", ["model"], buckets=BATCHES, registry=registry
        )
        self.batch_seconds = Histogram(
            "project_batch_seconds", "Time of a forward pass.", ["model"], buckets=SECONDS, registry=registry
        )
        self.queue = Gauge(
            "project_queue_images", "Images that wait or are predicted.", ["model"], registry=registry
        )
        self.reloads = Gauge(
            "project_reloads_total", "Replacements by newer checkpoints.", ["model"], registry=registry
        )
        self.reload_failures = Gauge(
            "project_reload_failures_total", "Newer checkpoints that failed.", ["model"], registry=registry
        )
        self.info = Gauge(
            "project_model_info",
            "The served model.",
            ["model", "run", "checkpoint", "version"],
            registry=registry,
        )
        ProcessCollector(registry=registry)

    def observe_batch(self, model: str, count: int, seconds: float) -> None:
        """Record a forward pass."""
        self.batch_images.labels(model).observe(count)
        self.batch_seconds.labels(model).observe(seconds)

    def render(self, slots: dict[str, ModelSlot], reserved: dict[str, int]) -> bytes:
        """Return the text of all metrics.

        Args:
            slots: models by name.
            reserved: images with a place in the queue, by model.
        """
        self.info.clear()
        for name, slot in slots.items():
            self.info.labels(name, slot.model.run, slot.model.checkpoint, slot.model.version).set(1)
            self.queue.labels(name).set(reserved.get(name, 0))
            self.reloads.labels(name).set(slot.num_reloads)
            self.reload_failures.labels(name).set(slot.num_failures)
        return generate_latest(self.registry)
