"""Changes that a resumed run may make to its configuration."""

from typing import Any

import pytest

from project.errors import InputError
from project.runs.config_diff import check_changes, find_changes, find_refusals

BEFORE: dict[str, Any] = {
    "task": {"_target_": "Classifier", "network": "${model}"},
    "model": {"_target_": "Net", "widths": [64], "dropout": 0.1},
    "data": {"batch_size": 16, "val_size": 0.1, "seed": 1, "num_workers": 0},
    "optim": {"_target_": "SGD", "lr": 0.1},
    "scheduler": {"_target_": "constant"},
    "trainer": {"max_epochs": 2, "accumulate_grad_batches": 1},
    "callbacks": {"best": {"dirpath": "a/checkpoints"}},
    "paths": {"run": "a"},
    "seed": 1,
}


def changed(**values: Any) -> dict[str, Any]:
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in BEFORE.items()}
    for dotted, value in values.items():
        group, _, key = dotted.partition("__")
        if key:
            config[group][key] = value
        else:
            config[group] = value
    return config


def test_changes_are_listed_without_copies() -> None:
    now = changed(optim__lr=0.01, seed=2, data__seed=2, trainer__max_epochs=2.0, paths={"run": "b"})
    now["callbacks"] = {"best": {"dirpath": "b/checkpoints"}}
    now["augment"] = {"flip_prob": 0.5}
    assert [str(change) for change in find_changes(BEFORE, now)] == [
        "optim.lr: 0.1 → 0.01",
        "seed: 1 → 2",
        "augment.flip_prob: nothing → 0.5",
    ]


@pytest.mark.parametrize(
    ("now", "always", "within"),
    [
        (changed(model__dropout=0.0), 1, 1),
        (changed(optim__lr=0.01, trainer__max_epochs=9, data__num_workers=4, model__dropout=0.5), 0, 0),
        (changed(data__batch_size=32), 0, 1),
        (changed(seed=3, data__seed=3), 0, 1),
        (changed(trainer__accumulate_grad_batches=2), 0, 1),
        (changed(model__widths=[32], data__val_size=0.2), 2, 2),
        (changed(optim___target_="Adam"), 1, 1),
        (changed(scheduler={"_target_": "cosine"}), 0, 0),
    ],
)
def test_changes_that_make_results_wrong_are_refused(now: dict[str, Any], always: int, within: int) -> None:
    changes = find_changes(BEFORE, now)
    assert len(find_refusals(changes)) == always
    assert len(find_refusals(changes, batches_done=3)) == within


def test_changes_within_an_epoch_depend_on_the_checkpoint() -> None:
    def checkpoint(ready: int, last: bool) -> dict[str, Any]:
        progress = {"current": {"ready": ready}, "is_last_batch": last}
        return {"config": BEFORE, "loops": {"fit_loop": {"epoch_loop.batch_progress": progress}}}

    now = changed(data__batch_size=32)
    line = (
        r"^data\.batch_size=32: was 16; 3 batches of the epoch are done, and the rest .*; keep the old "
        r"value, start a new run, or set resume_force=true$"
    )
    with pytest.raises(InputError, match=line):
        check_changes(checkpoint(3, last=False), now)
    assert [change.key for change in check_changes(checkpoint(3, last=False), now, force=True)] == [
        "data.batch_size"
    ]
    assert [change.key for change in check_changes(checkpoint(7, last=True), now)] == ["data.batch_size"]
