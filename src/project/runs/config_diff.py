"""What a run that goes on changed in its configuration, and which of that would make it wrong."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from project.errors import InputError
from project.runs.hparam_diff import frozen, text
from project.runs.migrations import migrate

OWN = ("paths", "name", "ckpt_path", "resume", "resume_force", "retry_failed", "seeds", "folds", "logger")
"""Keys that say where a run lies and how it was asked for."""
FREE_ENDS = ("dirpath", "image_cache", "file", "folder", "run")

FREE = (
    *("data.batch_size", "data.eval_batch_size", "data.num_workers", "data.memory_budget_mb"),
    *("data.timeout_s", "data.augment", "data.channels_last", "data.seed"),
)
"""Of the data these may change; elsewhere all that is not named below."""
ALWAYS = {
    "model": "the weights were trained in another network",
    "data": "validation and test images, or what they look like, would not be those of the epochs before",
    "decay_norms_and_biases": "the optimizer's groups would be others than those of its state",
    "layer_decay": "the optimizer's groups would be others than those of its state",
    "optim._target_": "the optimizer's state is that of another one",
}
"""What would be wrong wherever a run is taken up, and why."""
WITHIN_EPOCH = {
    "data.batch_size": "the images that the rest of the epoch is made of would be others",
    "seed": "the images that the rest of the epoch is made of would be others",
    "trainer.accumulate_grad_batches": "optimizer steps would begin at other batches",
    "trainer.limit_train_batches": "the epoch would have another end",
    "trainer.overfit_batches": "the images that the rest of the epoch is made of would be others",
}
"""What would be wrong before an epoch's end."""


class Change(NamedTuple):
    """A key with another value than before."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} → {_shown(self.now)}"


ABSENT = object()


def find_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Compare two resolved configurations.

    Returns:
        The keys that differ, without those that only copy others, as `data.seed` does `seed`.
    """
    flat_before, flat_now = _flatten(before), _flatten(now)
    changes = []
    for key in dict.fromkeys([*flat_before, *flat_now]):
        old, new = flat_before.get(key, ABSENT), flat_now.get(key, ABSENT)
        if not _is_own(key) and (old is ABSENT or new is ABSENT or frozen(old) != frozen(new)):
            changes.append(Change(key, old, new))
    return [change for change in changes if not any(_copies(change, other) for other in changes)]


def find_refusals(changes: Sequence[Change], batches_done: int = 0) -> list[str]:
    """Say which changes would make a run wrong.

    Args:
        changes: by `find_changes`.
        batches_done: of the epoch that the run is taken up in; 0 at an epoch's end.

    Returns:
        A line for each.
    """
    lines = []
    for change in changes:
        reason = _reason(change.key, ALWAYS) if _may_not_change(change.key) else None
        if reason is None and _adds_layers(change):
            reason = "with 0 a network may have no such layers, and others would have other names"
        if reason is None and batches_done and (reason := _reason(change.key, WITHIN_EPOCH)):
            reason = f"{batches_done} batches of the epoch are done, and {reason}"
        if reason is not None:
            lines.append(
                f"{change.key}={_shown(change.now)}: was {_shown(change.before)} so far; {reason}; leave it "
                "as it was, start a new run, or set resume_force=true"
            )
    return lines


def check(checkpoint: Mapping[str, Any], config: Mapping[str, Any], *, anyway: bool = False) -> list[Change]:
    """Compare the configuration that a checkpoint was trained with to the one that a run goes on with.

    Args:
        checkpoint: as it was saved.
        config: resolved.
        anyway: refuse nothing.

    Returns:
        What is not as it was.

    Raises:
        InputError: that would be wrong.
    """
    changes = find_changes(migrate(checkpoint.get("config") or config), config)
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    batches_done = 0 if progress["is_last_batch"] else progress["current"]["ready"]
    if not anyway and (refused := find_refusals(changes, batches_done)):
        raise InputError("\n".join(refused))
    return changes


def _reason(key: str, reasons: Mapping[str, str]) -> str | None:
    return next((reasons[name] for name in reasons if key == name or key.startswith(f"{name}.")), None)


def _may_not_change(key: str) -> bool:
    free = any(key == name or key.startswith(f"{name}.") for name in FREE)
    return not free and not (key.startswith("model.") and key.endswith("dropout"))


def _adds_layers(change: Change) -> bool:
    """Whether a dropout begins or ends to be 0: without it an MLP counts its layers differently."""
    numbers = [value for value in (change.before, change.now) if isinstance(value, int | float)]
    dropout = change.key.startswith("model.") and change.key.endswith("dropout")
    return dropout and len(numbers) == 2 and (numbers[0] == 0) != (numbers[1] == 0)


def _is_own(key: str) -> bool:
    inside = any(key == name or key.startswith(f"{name}.") for name in OWN)
    return inside or key.rpartition(".")[2] in FREE_ENDS


def _copies(change: Change, other: Change) -> bool:
    """Whether a key has its value from another one, which lies less deep."""
    same = _shown(change.before) == _shown(other.before) and _shown(change.now) == _shown(other.now)
    return same and other.key.count(".") < change.key.count(".") and _last(other.key) == _last(change.key)


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _shown(value: Any) -> str:
    return "nothing" if value is ABSENT else text(value)


def _flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
