"""Changes in a resumed run's configuration, and the changes that would make its results wrong."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from project.errors import InputError
from project.runs.migrations import migrate
from project.runs.results import comparable_text, flatten, format_value

IGNORED_KEYS = (
    *("paths", "name", "ckpt_path", "resume", "resume_force", "retry_failed", "join", "seeds", "folds"),
    "logger",
)
"""Keys of the command and of paths, which may change."""
IGNORED_KEY_ENDS = ("dirpath", "image_cache", "file", "folder", "run")

FREE_DATA_KEYS = (
    *("data.batch_size", "data.eval_batch_size", "data.num_workers", "data.memory_budget_mb"),
    *("data.timeout_s", "data.augment", "data.channels_last", "data.seed"),
)
"""Keys below `data` that may change. Outside `data`, all keys may change except those below."""
OTHER_PARAMETER_GROUPS = "the optimizer's parameter groups would not match its saved state"
OTHER_IMAGES = "the rest of the epoch would have other images"
ALWAYS_WRONG = {
    "task._target_": "the saved weights belong to another task",
    "model": "the saved weights belong to another network",
    "data": "validation and test images, or their preprocessing, would differ from earlier epochs",
    "optim.weight_decay_norm_bias": OTHER_PARAMETER_GROUPS,
    "optim.layerwise_lr_decay": OTHER_PARAMETER_GROUPS,
    "optim._target_": "the saved state belongs to another optimizer",
}
WRONG_WITHIN_EPOCH = {
    "data.batch_size": OTHER_IMAGES,
    "seed": OTHER_IMAGES,
    "trainer.accumulate_grad_batches": "optimizer steps would start at other batches",
    "trainer.limit_train_batches": "the epoch would end at another batch",
    "trainer.overfit_batches": OTHER_IMAGES,
}
ABSENT = object()


class Change(NamedTuple):
    """Change of a key's value."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {_text(self.before)} → {_text(self.now)}"


def find_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return the changes between two resolved configurations, without copies such as `data.seed`."""
    flat_before, flat_now = (flatten(config, class_names=False) for config in (before, now))
    changes = []
    for key in dict.fromkeys([*flat_before, *flat_now]):
        old, new = flat_before.get(key, ABSENT), flat_now.get(key, ABSENT)
        own = _is_below(key, IGNORED_KEYS) or key.rpartition(".")[2] in IGNORED_KEY_ENDS
        if not own and (old is ABSENT or new is ABSENT or comparable_text(old) != comparable_text(new)):
            changes.append(Change(key, old, new))
    return [change for change in changes if not any(_copies(change, other) for other in changes)]


def find_refusals(changes: Sequence[Change], batches_done: int = 0) -> list[str]:
    """Return a line for each change that would make the results of a run wrong (see `find_reasons`)."""
    return [
        f"{change.key}={_text(change.now)}: was {_text(change.before)}; {reason}; keep the old value, start "
        "a new run, or set resume_force=true"
        for change, reason in find_reasons(changes, batches_done)
    ]


def find_reasons(changes: Sequence[Change], batches_done: int = 0) -> list[tuple[Change, str]]:
    """Return the changes that would make the results of a run wrong, each with the reason.

    Args:
        changes: changes since the checkpoint.
        batches_done: batches done of the epoch in which the run is resumed [0: resumed between epochs].
    """
    found = []
    for change in changes:
        key = change.key
        is_dropout = key.startswith("model.") and key.endswith("dropout")
        free = is_dropout or _is_below(key, FREE_DATA_KEYS)
        reason = None if free else _reason(key, ALWAYS_WRONG)
        are_zero = {value == 0 for value in (change.before, change.now) if isinstance(value, int | float)}
        if is_dropout and len(are_zero) == 2:
            reason = "without dropout a network may have fewer layers, and the others other names"
        if reason is None and batches_done and (reason := _reason(key, WRONG_WITHIN_EPOCH)):
            reason = f"{batches_done} batches of the epoch are done, and {reason}"
        if reason is not None:
            found.append((change, reason))
    return found


def check_changes(
    checkpoint: Mapping[str, Any], config: Mapping[str, Any], *, force: bool = False
) -> list[Change]:
    """Return the changes in a resumed run's configuration since its checkpoint.

    Raises:
        InputError: a change would make the results wrong, and `force` is false.
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
    """Return True if a change repeats one of the same name and value at a higher level."""
    same = str(change).partition(": ")[2] == str(other).partition(": ")[2]
    names = [one.key.rpartition(".")[2] for one in (change, other)]
    depth = other.key.count(".") - change.key.count(".")
    repeats = depth < 0 or (depth == 0 and change.key.startswith("task."))
    return same and names[0] == names[1] and repeats


def _text(value: Any) -> str:
    return "nothing" if value is ABSENT else format_value(value)
