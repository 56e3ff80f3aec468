"""Check the data set: number, shape and classes of its images, and the length of a training on them.

No image is decoded: the facts come from `DATASET_FACTS` of the data set, or from the names of its files.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import ListConfig

from project.config.resolvers import folder_shape, image_shape
from project.config.source_index import constant_of
from project.config.validation.command_request import CommandRequest
from project.datamodules.splits import split_size
from project.datamodules.storage.class_folders import class_folders, find_layout, training_files
from project.errors import InputError
from project.modules.optim.training_length import TrainingLength

REPEATED = ("num_classes", "input_shape")
"""Arguments of a data set that other objects repeat."""
BUILT_FOR_DATA = ("model", "loss", "augment")
"""Groups whose constructors take the arguments in `REPEATED`."""


class DataFacts(NamedTuple):
    """Facts of a data set that are known before it is read.

    Args:
        images: number of training images, before validation images are taken from them; None if unknown.
        shape: (C, H, W) of the images in their files; None if unknown.
        classes: number of classes; None if unknown.
        has_validation: true if the data set has its own validation split.
        folder: folder that contains the class folders; None for other data sets.
    """

    images: int | None
    shape: tuple[int, int, int] | None
    classes: int | None
    has_validation: bool = False
    folder: str | None = None


class PlannedLength(NamedTuple):
    """Length of a configured training.

    Args:
        batches: batches per epoch; None if unknown.
        epochs: epochs; None if unlimited or unknown.
        steps: optimizer steps of all epochs; None if unlimited or unknown.
    """

    batches: int | None
    epochs: int | None
    steps: int | None


def data_facts(right: Mapping[str, Any]) -> DataFacts | None:
    """Return the `DATASET_FACTS` that the configured data set's class declares; None if it declares none.

    Args:
        right: valid values by dotted key, without those that a check has refused.
    """
    target = right.get("data._target_")
    declared = constant_of(target, "DATASET_FACTS") if isinstance(target, str) else None
    if not isinstance(declared, dict):
        return None
    if (key := declared.get("class_folders")) is not None:
        return _of_folder(right, right.get(f"data.{key}"))
    images = declared.get("images")
    if isinstance(images, str):  # name of the argument that holds the number
        images = right.get(f"data.{images}")
    return DataFacts(
        images if isinstance(images, int) else None, declared.get("shape"), declared.get("classes")
    )


def reason_without_validation(right: Mapping[str, Any]) -> str:
    """Return the `key=value` by which a training has no validation; empty if it has one."""
    facts = data_facts(right)
    no_split = right.get("data.val_size") == 0 and right.get("data.folds") is None
    if no_split and facts is not None and not facts.has_validation:
        return "data.val_size=0"
    return "trainer.limit_val_batches=0" if right.get("trainer.limit_val_batches") == 0 else ""


def training_images(right: Mapping[str, Any], facts: DataFacts | None) -> int | None:
    """Return the number of training images without validation images; None if unknown."""
    if facts is None or facts.images is None or facts.has_validation:
        return facts.images if facts is not None else None
    folds, share = right.get("data.folds"), right.get("data.val_size")
    if folds is not None:
        return facts.images - facts.images // folds
    return facts.images - split_size(share, facts.images) if isinstance(share, int | float) else None


def training_length(right: Mapping[str, Any]) -> PlannedLength:
    """Return the length of the configured training, as far as known.

    Args:
        right: valid values by dotted key, without those that a check has refused.
    """
    images = training_images(right, data_facts(right))
    size, limit = right.get("data.batch_size"), right.get("trainer.limit_train_batches", 1.0)
    batches = None
    if images and isinstance(size, int) and not right.get("trainer.overfit_batches"):
        batches = -(-images // size)
        batches = min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))
    epochs, steps = _limit(right.get("trainer.max_epochs")), _limit(right.get("trainer.max_steps"))
    per_step = right.get("trainer.accumulate_grad_batches")
    if batches is None or not isinstance(per_step, int):
        return PlannedLength(batches, None if steps is not None else epochs, steps)
    if epochs is None and steps is None:
        return PlannedLength(batches, None, None)
    length = TrainingLength.of_limits(batches, per_step, max_epochs=epochs or -1, max_steps=steps or -1)
    return PlannedLength(batches, length.in_units_of("epoch"), length.in_units_of("step"))


def _limit(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _of_folder(right: Mapping[str, Any], path: Any) -> DataFacts | None:
    if not isinstance(path, str) or (counted := _count(path)) is None:
        return None
    images, classes, has_validation, has_test = counted
    test_size = right.get("data.test_size")
    if images is not None and not has_test and isinstance(test_size, int | float):
        images = max(0, images - split_size(test_size, images))
    return DataFacts(images, None, classes, has_validation, path)


@cache  # shared by several checks and by the jobs of a sweep
def _count(path: str) -> tuple[int, int, bool, bool] | None:
    """Return the numbers of training images and classes, and true for each of val and test that exists.

    None without images.
    """
    root = Path(path)
    try:
        folders = class_folders(root)
        count = len(training_files(root))
        splits = find_layout(root).splits
    except (InputError, OSError):
        return None
    return count, len(folders), "val" in splits, "test" in splits


def find_problems(right: Mapping[str, Any], command: CommandRequest) -> Iterator[str]:
    """Yield a line for each key that does not match the configured data set.

    Args:
        right: valid values by dotted key, without those that a check has refused.
        command: facts about the command line.
    """
    facts = data_facts(right)
    yield from _wrong_fold(right)
    yield from _wrong_statistics(right)
    yield from _contradictions(right)
    yield from _wrong_weights(right)
    yield from _wrong_targets(right, command)
    yield from _wrong_vectors(right, command)
    if facts is not None:
        classes = right.get("data.num_classes")
        if facts.classes is not None and isinstance(classes, int) and classes != facts.classes:
            yield (
                f"data.num_classes={classes}: data={command.data} has {facts.classes} classes; set "
                f"data.num_classes={facts.classes} or leave it out"
            )
        yield from _wrong_shape(right, facts, command)
        wrong_split = list(_wrong_split(right, facts, command))
        yield from wrong_split or _wrong_batch(right, facts, command)
    yield from _uneven_batch(right)
    yield from _wrong_augmentation(right)


def _wrong_fold(right: Mapping[str, Any]) -> Iterator[str]:
    folds, fold = right.get("data.folds"), right.get("data.fold")
    if not isinstance(fold, int):
        return
    if folds is None:
        if "data.folds" in right and fold > 0:
            yield f"data.fold={fold}: no effect without data.folds; set data.folds=5, for example"
    elif fold >= folds:
        yield f"data.fold={fold}: must be at least 0 and at most {folds - 1}, with data.folds={folds}"


def _wrong_statistics(right: Mapping[str, Any]) -> Iterator[str]:
    shape = right.get("data.input_shape")
    if not isinstance(shape, list):
        return
    if len(shape) != 3:
        if _fact(right, "INPUT_NDIM") == 3:
            yield f"data.input_shape={shape}: expected [channels,height,width]"
        return
    given = {key: values for key in ("data.mean", "data.std") if isinstance(values := right.get(key), list)}
    wrong = [
        f"{key}={values}: {len(values)}" for key, values in given.items() if len(values) not in (1, shape[0])
    ]
    if wrong:
        too = f" ({wrong[1]} too)" if len(wrong) > 1 else ""
        yield (
            f"{wrong[0]} values for {shape[0]} channels{too}; give one per channel, one for all, or null to "
            "compute them"
        )


def _fact(right: Mapping[str, Any], name: str) -> Any:
    """Return a plain value that the class of the data module declares; None without one."""
    target = right.get("data._target_")
    return constant_of(target, name) if isinstance(target, str) else None


TARGETS = {
    "class": "one class per input",
    "multilabel": "several labels per input",
    "real": "real values",
}
"""Kinds of targets in messages, by `TARGET_TYPE` of tasks and data modules."""
TASKS = {"class": "classification", "multilabel": "multilabel", "real": "regression"}
"""Option of the group `task` for each kind of targets."""


def task_misfit(task: Any, given: Any) -> str:
    """Return the targets that a task's class expects and those given; empty if they agree or are unknown."""
    wanted = constant_of(task, "TARGET_TYPE") if isinstance(task, str) else None
    if wanted not in TARGETS or given not in TARGETS or wanted == given:
        return ""
    return f"expected {TARGETS[str(wanted)]}, got {TARGETS[str(given)]}"


def _wrong_targets(right: Mapping[str, Any], command: CommandRequest) -> Iterator[str]:
    """Yield a line if the task needs targets of another kind than those of the data set."""
    given = right.get("data.target_type") or _fact(right, "TARGET_TYPE")
    if misfit := task_misfit(right.get("task._target_"), given):
        remedy = f"set task={TASKS[str(given)]}, or choose another data set"
        yield f"data={command.data}: does not fit the task ({misfit}); {remedy}"
    if right.get("data.sampler") == "balanced" and given in ("multilabel", "real"):
        yield (
            f"data.sampler=balanced: balances classes (expected one class per input, got {TARGETS[given]}); "
            "set data.sampler=null"
        )


def _wrong_vectors(right: Mapping[str, Any], command: CommandRequest) -> Iterator[str]:
    """Yield a line if a network for images gets vectors."""
    shape, model = right.get("data.input_shape"), right.get("model._target_")
    if not isinstance(shape, list) or len(shape) != 1 or not isinstance(model, str):
        return
    if model.startswith("project.") and not constant_of(model, "TAKES_VECTORS"):
        yield (
            f"model._target_={model}: needs images (expected [channels,height,width], got vectors of "
            f"{shape[0]} features from data={command.data}); set model=mlp"
        )


def _contradictions(right: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each argument, such as `model.num_classes`, that contradicts the data set.

    Deeper keys may differ, such as `model.backbone.num_classes` of a pretrained network.
    """
    for group, name in product(BUILT_FOR_DATA, REPEATED):
        key, fact = f"{group}.{name}", f"data.{name}"
        if (value := right.get(key)) is not None and value != right.get(fact, value):
            yield f"{key}={value}: {fact} is {right[fact]}; leave it out, or write {key}='${{{fact}}}'"


def _wrong_weights(right: Mapping[str, Any]) -> Iterator[str]:
    classes = right.get("data.num_classes")
    for key, weights in right.items():
        if not key.endswith(".class_weights") or not isinstance(weights, list):
            continue
        if isinstance(classes, int) and len(weights) != classes:
            yield (
                f"{key}={weights}: {len(weights)} weights for data.num_classes={classes}; give one per class"
            )
        elif not sum(weights):
            yield f"{key}={weights}: all are 0, so the loss would be 0; give at least one above 0"


def _wrong_shape(right: Mapping[str, Any], facts: DataFacts, command: CommandRequest) -> Iterator[str]:
    shape, gray, resize = (right.get(f"data.{name}") for name in ("input_shape", "grayscale", "resize"))
    if not isinstance(shape, list) or len(shape) != 3:
        return
    resize = ListConfig(resize) if isinstance(resize, list) else resize
    try:
        if facts.folder is not None:
            expected = list(folder_shape(facts.folder, resize, gray))
        elif facts.shape is not None:
            expected = list(image_shape(facts.shape, resize, gray))
        else:
            return
    except InputError:
        return
    if shape != expected:
        yield (
            f"data.input_shape={shape}: the images of data={command.data} are {expected} (channels, height, "
            "width); leave data.input_shape out, and set data.resize or data.grayscale instead"
        )


def _wrong_split(right: Mapping[str, Any], facts: DataFacts, command: CommandRequest) -> Iterator[str]:
    """Yield a line if the training images cannot be split as configured."""
    count, folds, share = facts.images, right.get("data.folds"), right.get("data.val_size")
    if facts.has_validation:
        if folds is not None:
            yield (
                f"data.folds={folds}: data={command.data} has its own validation images; set "
                "data.folds=null, or move them to the training images"
            )
    elif count is None:
        return
    elif count < 1:
        yield f"data.test_size={right.get('data.test_size')}: leaves no training images; choose less"
    elif folds is not None:
        if folds > count:
            yield f"data.folds={folds}: data={command.data} has {count:,} training images; choose fewer folds"
    elif isinstance(share, int | float):
        size = split_size(share, count)
        if not 0 <= size < count or bool(size) != bool(share):
            yield (
                f"data.val_size={share}: choose 0 to {count - 1} of the {count} training images of "
                f"data={command.data}, or a fraction from {1 / count:.2g} to below 1"
            )


def _wrong_batch(right: Mapping[str, Any], facts: DataFacts, command: CommandRequest) -> Iterator[str]:
    """Yield a line if the command line sets a batch larger than the data set; a default may be larger."""
    size, images = right.get("data.batch_size"), training_images(right, facts)
    if "data.batch_size" not in command.keys or not isinstance(size, int) or images is None or size <= images:
        return
    assert facts.images is not None
    rest = f" (without {others:,} validation images)" if (others := facts.images - images) else ""
    yield (
        f"data.batch_size={size}: more than the {images:,} training images of data={command.data}{rest}; "
        f"choose at most {images}"
    )


def _uneven_batch(right: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line if a batch cannot be divided evenly among a known number of devices."""
    size, devices, nodes = (
        right.get(key) for key in ("data.batch_size", "trainer.devices", "trainer.num_nodes")
    )
    devices = len(devices) if isinstance(devices, list) else devices
    if not (isinstance(size, int) and isinstance(devices, int) and isinstance(nodes, int)) or devices < 1:
        return
    if size % (devices * nodes):
        yield (
            f"data.batch_size={size}: not divisible by the number of devices (expected a multiple of "
            f"{devices * nodes}, all devices together)"
        )


def _wrong_augmentation(right: Mapping[str, Any]) -> Iterator[str]:
    shape = right.get("data.input_shape")
    if not isinstance(shape, list) or len(shape) != 3:
        return
    side = min(shape[1:])
    erase, padding = right.get("augment.random_erasing_size"), right.get("augment.random_crop_padding")
    if isinstance(erase, int) and erase > side:
        yield f"augment.random_erasing_size={erase}: larger than the image, {side} pixels; choose less"
    if isinstance(padding, int) and padding >= side:
        yield f"augment.random_crop_padding={padding}: crops can miss images of {side} pixels; choose less"
    policy = right.get("augment.policy", "none")
    if policy != "none" and shape[0] not in (1, 3):
        yield f"augment.policy={policy}: changes images of 1 or 3 channels, not {shape[0]}; choose none"
    initial = right.get("augment.initial_size_fraction", 1.0)
    if initial != 1 and right.get("augment.full_size_epoch") == 0:
        yield f"augment.initial_size_fraction={initial}: without effect; set augment.full_size_epoch above 0"
    if (tta := right.get("tta")) in ("flip_translate", "selective") and side < 2:
        yield f"tta={tta}: images of {side} pixel are too small to shift; choose none or flip"
