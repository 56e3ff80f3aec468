"""Trying things on a network that is as before afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from project.modules.classifier import ImageClassifier


@contextmanager
def as_before(module: ImageClassifier) -> Iterator[None]:
    """Give a network back its weights, statistics and schedule, however the trial ends."""
    state = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
    schedule = module.scheduler_factory
    try:
        yield
    finally:
        module.zero_grad()
        module.load_state_dict(state)
        module.scheduler_factory = schedule
        module.train_metrics.reset()
