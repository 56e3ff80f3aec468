"""Changes of a resumed run's configuration, and those that would make its results wrong."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from project.errors import InputError
from project.runs.migrations import migrate
from project.runs.results import comparable_text, flatten, format_value

IGNORED_KEYS = (
    *("paths", "name", "ckpt_path", "resume", "resume_force", "retry_failed", "seeds", "folds", "logger"),
)
"""Keys of the command and of the run's paths."""
IGNORED_KEY_ENDS = ("dirpath", "image_cache", "file", "folder", "run")

FREE_DATA_KEYS = (
    *("data.batch_size", "data.eval_batch_size", "data.num_workers", "data.memory_budget_mb"),
    *("data.timeout_s", "data.augment", "data.channels_last", "data.seed"),
)
"""Keys below `data` that may change. Outside `data` all keys may change but those below."""
OTHER_PARAMETER_GROUPS = "the optimizer's parameter groups would not be those of its state"
OTHER_IMAGES = "the images that the rest of the epoch is made of would be others"
ALWAYS_WRONG = {
    "model": "the weights were trained in another network",
    "data": "validation and test images, or their preprocessing, would not be those of the epochs before",
    "optim.weight_decay_norm_bias": OTHER_PARAMETER_GROUPS,
    "optim.layerwise_lr_decay": OTHER_PARAMETER_GROUPS,
    "optim._target_": "the optimizer's state is that of another one",
}
WRONG_WITHIN_EPOCH = {
    "data.batch_size": OTHER_IMAGES,
    "seed": OTHER_IMAGES,
    "trainer.accumulate_grad_batches": "optimizer steps would begin at other batches",
    "trainer.limit_train_batches": "the epoch would have another end",
    "trainer.overfit_batches": OTHER_IMAGES,
}
ABSENT = object()


class Change(NamedTuple):
    """A key with another value than before."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {_text(self.before)} → {_text(self.now)}"


def find_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return the keys by which two resolved configurations differ, without copies such as `data.seed`."""
    flat_before, flat_now = (flatten(config, class_names=False) for config in (before, now))
    changes = []
    for key in dict.fromkeys([*flat_before, *flat_now]):
        old, new = flat_before.get(key, ABSENT), flat_now.get(key, ABSENT)
        own = _is_below(key, IGNORED_KEYS) or key.rpartition(".")[2] in IGNORED_KEY_ENDS
        if not own and (old is ABSENT or new is ABSENT or comparable_text(old) != comparable_text(new)):
            changes.append(Change(key, old, new))
    return [change for change in changes if not any(_copies(change, other) for other in changes)]


def find_refusals(changes: Sequence[Change], batches_done: int = 0) -> list[str]:
    """Return a line for each change that would make a run wrong.

    `batches_done` counts batches of the epoch at which the run is resumed (0: an epoch's end).
    """
    lines = []
    for change in changes:
        key = change.key
        is_dropout = key.startswith("model.") and key.endswith("dropout")
        free = is_dropout or _is_below(key, FREE_DATA_KEYS)
        reason = None if free else _reason(key, ALWAYS_WRONG)
        are_zero = {value == 0 for value in (change.before, change.now) if isinstance(value, int | float)}
        if is_dropout and len(are_zero) == 2:
            reason = "with 0 a network may have no such layers, and others would have other names"
        if reason is None and batches_done and (reason := _reason(key, WRONG_WITHIN_EPOCH)):
            reason = f"{batches_done} batches of the epoch are done, and {reason}"
        if reason is not None:
            lines.append(
                f"{key}={_text(change.now)}: was {_text(change.before)} so far; {reason}; leave it "
                "as it was, start a new run, or set resume_force=true"
            )
    return lines


def check_changes(
    checkpoint: Mapping[str, Any], config: Mapping[str, Any], *, force: bool = False
) -> list[Change]:
    """Return the changes of a resumed run's configuration since its checkpoint.

    Raises:
        InputError: a change would make the run wrong, and `force` is false.
    """
    changes = find_changes(migrate(checkpoint.get("config") or config), config)
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    batches_done = 0 if progress["is_last_batch"] else progress["current"]["ready"]
    if not force and (refused := find_refusals(changes, batches_done)):
        raise InputError("\n".join(refused))
    return changes


def _is_below(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _reason(key: str, reasons: Mapping[str, str]) -> str | None:
    return next((reasons[name] for name in reasons if _is_below(key, [name])), None)


def _copies(change: Change, other: Change) -> bool:
    """Return true for a key that repeats the value of another one with fewer groups above it."""
    same = str(change).partition(": ")[2] == str(other).partition(": ")[2]
    names = [one.key.rpartition(".")[2] for one in (change, other)]
    return same and names[0] == names[1] and other.key.count(".") < change.key.count(".")


def _text(value: Any) -> str:
    return "nothing" if value is ABSENT else format_value(value)
