"""Cells of the resume matrix: configurations, and the places at which their runs are interrupted."""

import itertools
from typing import Any, NamedTuple


class Place(NamedTuple):
    """Place at which a run is interrupted: a checkpoint is written, or a stop signal is sent.

    Args:
        hook: `batch` (in the hooks after it), `between` (before the next batch), `validated` (after
            the validation), `epoch` (at its end), `signal` (sent within the batch) or `pause` (by a search,
            at the end of the epoch).
        epoch: index of the epoch, from 0.
        batch: number of the last trained batch in the epoch, from 1; 0 for `epoch` and `pause`.
    """

    hook: str
    epoch: int
    batch: int = 0


class Cell(NamedTuple):
    """Configuration, and the places at which its run is interrupted."""

    options: tuple[str, ...]
    places: tuple[Place, ...]
    ranks: int = 1
    chain: bool = False  # interrupt the resumed run again at the next place


BATCHES = 7  # per epoch; with 110 images the last batch has 4
COMMON = (
    *("data=synthetic", "data.input_shape=[3,8,8]", "data.num_classes=3", "data.train_size=110"),
    *("data.test_size=24", "data.noise=1.5", "data.val_size=10", "data.batch_size=16"),
    *("data.eval_batch_size=8", "trainer.accelerator=cpu", "trainer.max_epochs=3", "optim.lr=0.02"),
    *("trainer.log_every_n_steps=3", "deterministic=true", "callbacks.early_stopping.patience=9"),
)
STREAMED = (
    *("data=image_folder", "data.path=IMAGES", "data.memory_budget_mb=0", "data.image_cache=null"),
    "data.resize=8",
)
OF_SYNTHETIC = (
    *("data=synthetic", "data.input_shape", "data.num_classes", "data.train_size", "data.noise"),
    "data.test_size",
)
PLACES = (
    Place("epoch", 0),
    Place("batch", 1, 1),  # the first batch
    Place("batch", 1, 2),  # after nine steps, at a logging step
    Place("between", 1, 3),
    Place("batch", 1, 6),  # just before the last batch
    Place("batch", 1, 7),  # the last batch, before the validation
    Place("validated", 1, 7),
    Place("epoch", 1),
)
STEPS = tuple(place for place in PLACES if place.batch in (0, 2, 6, 7))  # with two batches per step

FACTORS: dict[str, dict[str, tuple[str, ...]]] = {
    "data": {
        "memory": (),
        "streamed": (*STREAMED, "data.num_workers=0"),
        "workers": (*STREAMED, "data.num_workers=2"),
    },
    "chunk": {"1": ("trainer.batches_per_hook=1",), "4": ("trainer.batches_per_hook=4",), "null": ()},
    "schedule": {
        "epochs": ("scheduler=step", "scheduler.step_size=1"),
        "steps": ("scheduler=step", "scheduler.step_size=5", "scheduler.interval=step"),
        "onecycle": ("scheduler=onecycle",),
        "plateau": ("scheduler=plateau", "scheduler.patience=0", "monitor=val/loss", "mode=min"),
        "cosine": ("scheduler=cosine",),
        "warmup": ("scheduler=warmup_cosine", "scheduler.warmup=0.5"),
    },
    "optimizer": {
        "sgd": ("optim=sgd", "optim.momentum=0.9"),
        "adam": ("optim=adam",),
        "adamw": ("optim=adamw", "optim.weight_decay_norm_bias=false"),
        "muon": ("optim=muon",),
        "muon_sgd": ("optim=muon_sgd",),
        "rmsprop": ("optim=rmsprop",),
    },
    "network": {
        "dropout": ("model=cnn", "model.channels=[4,8]", "model.hidden_dim=16"),
        "batch_norm": ("model=resnet", "model.depth=8", "model.width=4"),
    },
    "augment": {
        "none": (),
        "strong": ("augment=strong", "augment.random_crop_padding=1", "augment.random_erasing_size=3"),
        "alternating": ("augment=strong", "augment.flip_schedule=alternating", "augment.mixup=0"),
    },
    "average": {"off": (), "ema": ("callbacks.ema.decay=0.9",)},
    "stopping": {"late": (), "early": ("callbacks.early_stopping.patience=1", "trainer.max_epochs=5")},
    "accumulate": {"1": (), "2": ("trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.5")},
    "ranks": {"1": (), "2": ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")},
}
"""Factors whose values are combined pairwise: each pair of two factors occurs in a cell."""


def pairwise() -> dict[str, Cell]:
    """Return cells that cover all pairs of values in `FACTORS`, found greedily."""
    names = list(FACTORS)
    missing = {
        ((first, one), (second, two))
        for first, second in itertools.combinations(names, 2)
        for one in FACTORS[first]
        for two in FACTORS[second]
    }
    cells = {}
    while missing:
        chosen = dict(min(missing))
        for name in sorted(names, key=lambda name: -len(FACTORS[name])):
            if name not in chosen:
                chosen[name] = max(FACTORS[name], key=lambda value: _gain(chosen | {name: value}, missing))
        missing -= _pairs(chosen)
        title = " ".join(f"{name}={chosen[name]}" for name in names)
        options = [option for name in names for option in FACTORS[name][chosen[name]]]
        places = PLACES if chosen["accumulate"] == "1" else STEPS
        # The end of the first epoch, and some of the other places in turn.
        others, turn = places[1:], len(cells)
        some = (places[0], others[turn % len(others)], others[(turn + 2) % len(others)])
        cells[title] = Cell(tuple(options), tuple(sorted(some, key=places.index)), int(chosen["ranks"]))
    return cells


def _pairs(chosen: dict[str, str]) -> set[Any]:
    names = [name for name in FACTORS if name in chosen]
    return set(itertools.combinations([(name, chosen[name]) for name in names], 2))


def _gain(chosen: dict[str, str], missing: set[Any]) -> int:
    return len(_pairs(chosen) & missing)


DROPOUT, BATCH_NORM = FACTORS["network"]["dropout"], FACTORS["network"]["batch_norm"]
PLATEAU, DDP = FACTORS["schedule"]["plateau"], FACTORS["ranks"]["2"]
STRONG, EMA, MOMENTUM = FACTORS["augment"]["strong"], FACTORS["average"]["ema"], FACTORS["optimizer"]["sgd"]
RESTING = (
    *(
        "model=airbench",
        "model.widths=[8,8,8]",
        "optim=muon_sgd",
        "scheduler=linear",
        "data.input_shape=[3,16,16]",
    ),
    *("+scheduler.role_ends.whitening=0.4", "trainer.gradient_clip_val=0.5"),
    "+callbacks.freeze_finished_params={_target_:project.callbacks.freeze.FreezeFinishedParams,role_ends:{whitening:0.4}}",
)


def places(*where: tuple[Any, ...]) -> tuple[Place, ...]:
    """Parse places from a short notation."""
    return tuple(Place(*place) for place in where)


def limit(**limits: Any) -> tuple[str, ...]:
    """Return overrides of trainer options."""
    return tuple(f"trainer.{name}={'null' if value is None else value}" for name, value in limits.items())


SPECIAL = {
    "all places": Cell((*DROPOUT, *STRONG, *EMA), PLACES),
    "all places, chunks": Cell((*DROPOUT, *PLATEAU, "trainer.batches_per_hook=4"), PLACES),
    "all places, ranks": Cell((*BATCH_NORM, *PLATEAU, *EMA, *DDP), PLACES, ranks=2),
    "all places, accumulated": Cell(
        (*BATCH_NORM, *limit(accumulate_grad_batches=3)), (PLACES[0], PLACES[3], *PLACES[4:])
    ),
    "interrupted again and again": Cell((*DROPOUT, *PLATEAU, *EMA, *STRONG), PLACES, chain=True),
    "again and again, workers": Cell(
        (*DROPOUT, *STREAMED, "data.num_workers=2", *STRONG), (PLACES[1], PLACES[2], PLACES[-1]), chain=True
    ),
    "validation in mid-epoch": Cell(
        (*DROPOUT, *EMA, *limit(val_check_interval=3, batches_per_hook=4)),
        places(("batch", 1, 3), ("validated", 1, 3), ("between", 1, 3), ("batch", 1, 4), ("validated", 1, 6)),
    ),
    "validation across epochs": Cell(
        (*DROPOUT, *MOMENTUM, *limit(val_check_interval=5, check_val_every_n_epoch=None)),
        places(("batch", 1, 3), ("validated", 1, 3), ("epoch", 1), ("batch", 2, 1)),
    ),
    "validation every second epoch": Cell(
        (*DROPOUT, *PLATEAU, *limit(check_val_every_n_epoch=2, max_epochs=5)),
        places(("epoch", 0), ("epoch", 1), ("validated", 1, 7), ("batch", 2, 4), ("epoch", 2)),
    ),
    "plateau on the training loss": Cell(
        (*DROPOUT, *PLATEAU, "monitor=train/loss", "callbacks.early_stopping.patience=1"), PLACES[:6]
    ),
    "stopped in mid-epoch": Cell(
        (
            *(*DROPOUT, *limit(val_check_interval=2, max_epochs=6), "optim.lr=0.5"),
            "callbacks.early_stopping.patience=2",
        ),
        places(("batch", 0, 3), ("validated", 0, 4), ("validated", 0, 6), ("epoch", 0)),
    ),
    "resting layers": Cell(RESTING, places(("epoch", 0), ("epoch", 1), ("batch", 2, 2))),
    "limited": Cell(
        (*BATCH_NORM, *limit(limit_train_batches=5), *STRONG), (*PLACES[:3], Place("batch", 1, 5))
    ),
    "steps": Cell((*DROPOUT, *limit(max_epochs=-1, max_steps=17)), (*PLACES[:4], Place("batch", 2, 3))),
    "steps accumulated": Cell(
        (*DROPOUT, *limit(max_epochs=-1, max_steps=9, accumulate_grad_batches=2)),
        (*STEPS, Place("batch", 2, 2)),
    ),
    "overfit": Cell(
        (*DROPOUT, *STRONG, *limit(overfit_batches=3)), places(("epoch", 0), ("batch", 1, 1), ("batch", 1, 3))
    ),
    "bf16-mixed": Cell((*BATCH_NORM, *limit(precision="bf16-mixed")), PLACES[1:5]),
    "bf16-true": Cell((*DROPOUT, *MOMENTUM, *limit(precision="bf16-true")), PLACES[1:5]),
    "16-true": Cell((*DROPOUT, *MOMENTUM, *EMA, *limit(precision="16-true")), PLACES[1:5]),
    "64-true": Cell((*DROPOUT, *EMA, *limit(precision="64-true")), PLACES[2:5]),
    "channels last": Cell((*BATCH_NORM, "model.width=8", "channels_last=true", *STRONG), PLACES[2:5]),
    "no validation": Cell((*DROPOUT, "data.val_size=0", *limit(log_every_n_steps=50)), PLACES[:5]),
    "few logits held": Cell(
        (*DROPOUT, *limit(log_every_n_steps=100, max_epochs=12)), places(("batch", 10, 5))
    ),
    "told to stop": Cell(
        (*DROPOUT, *PLATEAU, *EMA, *limit(batches_per_hook=1)),
        places(*(("signal", 1, batch) for batch in (1, 2, 6, 7))),
    ),
    "told to stop, chunks": Cell(
        (*DROPOUT, *STRONG, *limit(batches_per_hook=4)), places(("signal", 0, 6), ("signal", 1, 3))
    ),
    "told to stop, accumulated": Cell(
        (*BATCH_NORM, *limit(accumulate_grad_batches=3)),
        places(("signal", 0, 4), ("signal", 1, 5), ("signal", 2, 1)),
    ),
    "told to stop, workers": Cell((*DROPOUT, *STREAMED, "data.num_workers=2"), places(("signal", 1, 2))),
    "told to stop, ranks": Cell((*DROPOUT, *DDP, *EMA), places(("signal", 0, 7), ("signal", 1, 2)), ranks=2),
    "paused": Cell(
        (*DROPOUT, *PLATEAU, *EMA, *STRONG, "callbacks.last.every_epochs=0"),
        places(("pause", 0), ("pause", 1)),
    ),
    "paused, ranks": Cell(
        (*BATCH_NORM, *DDP, *EMA, "scheduler=cosine"),
        places(
            ("pause", 0),
        ),
        ranks=2,
    ),
}
"""Cells that the pairs do not cover. A run stopped by a signal or a pause is stopped again after resuming."""
