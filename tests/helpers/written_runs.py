"""Minimal run folders with the files that `scripts/train.py` writes, for tests without training."""

import json
from pathlib import Path
from typing import Any

import yaml

MODEL_CLASSES = {"mlp": "project.modules.networks.mlp.MLP", "cnn": "project.modules.networks.cnn.CNN3x3"}
MODEL_OPTIONS = {"mlp": {"widths": [128]}, "cnn": {"channels": [32, 64]}}
OPTIMIZERS = {"sgd": ("torch.optim.SGD", 0.01), "adam": ("torch.optim.Adam", 0.001)}


def write_run(folder: Path, *overrides: str, acc: float = 0.5, **status: Any) -> Path:
    """Write a minimal run folder; `overrides` as on the command line, `status` as in status.json."""
    values = dict(override.split("=", 1) for override in overrides)
    model, (optimizer, lr) = values.get("model", "mlp"), OPTIMIZERS[values.get("optim", "sgd")]
    seed = int(values.get("seed", 1))
    augment = {
        "_target_": "project.datamodules.loading.augmentation.Augmentation",
        "flip_prob": 0.5 if values.get("augment") == "crop_flip" else 0.0,
        "random_crop_padding": 4 if values.get("augment") == "crop_flip" else 0,
    }
    config: dict[str, Any] = {
        "model": {"_target_": MODEL_CLASSES[model], "input_shape": [1, 28, 28], **MODEL_OPTIONS[model]},
        "data": {"_target_": "project.datamodules.digits.Digits", "seed": seed, "augment": augment},
        "augment": augment,
        "optim": {"_target_": optimizer, "_partial_": True, "lr": lr},
        "callbacks": {"best": {"dirpath": f"{folder}/checkpoints"}},
        "logger": {"csv": {"file": f"{folder}/metrics.csv"}},
        "name": folder.name,
        "seed": seed,
        "paths": {"run": str(folder)},
    }
    for key, value in values.items():
        if "." in key:
            group, _, name = key.partition(".")
            config.setdefault(group, {})[name] = json.loads(value)
    (folder / ".hydra").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    facts = {
        "state": "done",
        "monitor": "val/acc",
        "mode": "max",
        "value": acc,
        "metrics": {"val/acc": acc, "test/acc": acc - 0.01, "val/loss": 1 - acc, "val/images": 100.0},
        "duration_s": 10.0,
        "started": "2026-01-31T09:30:00+00:00",
        "error": None,
    }
    (folder / "status.json").write_text(json.dumps(facts | status))
    return folder


def write_curve(folder: Path, *accuracies: float, per_epoch: int = 1) -> None:
    lines = ["step,train/loss,epoch,val/acc,test/acc"]
    for number, accuracy in enumerate(accuracies):
        epoch = number // per_epoch
        lines += [f"{10 * number + 5},0.5,{epoch},,", f"{10 * number + 10},0.4,{epoch},{accuracy},"]
    lines.append(f"{10 * len(accuracies)},,{len(accuracies)},,0.9")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def write_sweep(folder: Path) -> Path:
    """Write a sweep of 2 networks, 2 optimizers and 3 seeds: four points."""
    number = 0
    for model, base in (("mlp", 0.8), ("cnn", 0.9)):
        for optim, more in (("sgd", 0.0), ("adam", 0.05)):
            for seed in (1, 2, 3):
                overrides = (f"model={model}", f"optim={optim}", f"seed={seed}")
                write_run(folder / str(number), *overrides, acc=base + more + 0.01 * seed)
                number += 1
    return folder
