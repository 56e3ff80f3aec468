"""Names of metrics: split and kind of `val/loss`, `val_loss` and `loss`."""

import re
from collections.abc import Iterable
from typing import NamedTuple

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLITS |= {"test": "test"}
NAME = re.compile(rf"({'|'.join(SPLITS)})[/_](.+)")
SMALLER_IS_BETTER = re.compile(
    r"loss|error|duration|time|perplexity|(?<![a-z])(mae|mse|rmse|nll|ece|wer|cer)\b"
)


class MetricName(NamedTuple):
    """Parts of a metric's name.

    Args:
        split: `train`, `val`, `test`, or empty for none.
        kind: name without the split, such as `loss`.
    """

    split: str
    kind: str


def parse(name: str) -> MetricName:
    """Return split and kind of a metric's name, separated by a slash or an underscore.

    The ending `_epoch`, which Lightning adds to means over an epoch, belongs to neither.
    """
    found = NAME.fullmatch(name.removesuffix("_epoch"))
    return MetricName(SPLITS[found[1]], found[2]) if found else MetricName("", name)


def is_of_split(name: str, split: str) -> bool:
    """Return True if a metric is measured on a split."""
    return parse(name).split == split


def is_smaller_better(name: str) -> bool:
    """Guess from a metric's name if smaller values are better."""
    return SMALLER_IS_BETTER.search(name) is not None


def on_other_splits(name: str, known: Iterable[str]) -> list[str]:
    """Return the metrics of the same kind on other splits, the test split first, then validation."""
    split, kind = parse(name)
    same = [other for other in known if other != name and split and parse(other).kind == kind]
    order = ("test", "val", "train")
    return sorted((one for one in same if parse(one).split), key=lambda one: order.index(parse(one).split))
