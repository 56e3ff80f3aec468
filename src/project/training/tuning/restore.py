"""Restore a network after trial steps."""

from collections.abc import Iterator
from contextlib import contextmanager

from project.modules.classifier import ImageClassifier


@contextmanager
def restoring(module: ImageClassifier) -> Iterator[None]:
    """Restore the weights, statistics and schedule of a module on exit."""
    state = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
    schedule = module.scheduler_factory
    try:
        yield
    finally:
        module.zero_grad()
        module.load_state_dict(state)
        module.scheduler_factory = schedule
        module.train_metrics.reset()
