"""Which values of a configuration runs are compared by."""

from typing import Any

HYPERPARAMETERS = {
    "data": ("batch_size", "val_size"),
    "trainer": ("max_epochs", "precision", "accumulate_grad_batches", "gradient_clip_val"),
}
MODES = {"crop_mode": "random_crop_padding", "flip_schedule": "flip_prob"}
"""Keys of the augmentation that count where another one is not 0."""
LEFT_OUT = ("input_shape", "num_classes", "random_erasing_prob", "fused")
"""Last parts of keys whose values follow from the data or from other keys, or change speed alone."""


def hyperparameters(config: dict[str, Any]) -> dict[str, Any]:
    """What TensorBoard's HParams page shows of a configuration: one plain value a dotted name.

    Left out are what follows from something else, and switches that are off.
    """
    shown: dict[str, Any] = {"seed": config["seed"]}
    for group in ("model", "data", "optim", "scheduler", "loss"):
        shown[group] = config[group]["_target_"].rpartition(".")[2]
    for group in ("model", "optim", "scheduler", "loss", "augment"):
        for name, value in config[group].items():
            follows = name.startswith("_") or name in LEFT_OUT
            off = group == "augment" and not config[group].get(MODES.get(name, name))
            if not follows and not off:
                shown[f"{group}.{name}"] = value
    for group, names in HYPERPARAMETERS.items():
        shown |= {f"{group}.{name}": config[group][name] for name in names if name in config[group]}
    if config["data"].get("folds") is not None:
        shown.pop("data.val_size", None)
        shown |= {f"data.{name}": config["data"].get(name, 0) for name in ("folds", "fold")}
    return shown
