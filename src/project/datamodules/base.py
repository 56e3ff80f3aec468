"""Base classes of data modules: splits, preprocessing, statistics, checks, loaders and exact resume."""

import logging
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import lightning as L
import torch
from torch import Tensor

from project.datamodules.loading.augmentation import Augmentation
from project.datamodules.loading.batch_order import BalancedOrder, EvaluationOrder, Order, TrainingOrder
from project.datamodules.loading.loader import ImageLoader, Images, MemoryImages, join_errors
from project.datamodules.splits import split_validation
from project.datamodules.storage.exact_copies import find_copies
from project.datamodules.storage.preprocessing import (
    digest_splits,
)
from project.datamodules.targets import TargetType, check_classes
from project.errors import DataError, InputError
from project.runtime.bounds import Range, check_arguments
from project.runtime.process import as_called
from project.runtime.text import printable

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
LOAD_SPLIT_REMEDY = "have load_split return images and labels"
MAX_IMBALANCE = 10
"""Training inputs of the largest class per input of the smallest, above which a line reports it."""


class Subset(NamedTuple):
    """Images of one split: rows of a set of images that several splits may share."""

    images: Images
    rows: Tensor  # N', long

    @classmethod
    def of(cls, images: Images) -> "Subset":
        """Return the subset of all images, in their order."""
        return cls(images, torch.arange(len(images.labels)))


class SupervisedDataModule(L.LightningDataModule):
    """Base class of data modules of inputs and targets: splits, loaders, exact resume.

    A subclass implements `load_inputs`. By `target_type`, targets are class indices (N,) long, labels (N, K)
    float of 0 and 1, or real values (N, D) float. Validation inputs are a sample of the training inputs,
    stratified by class. The sample depends on `split_seed` alone, so runs with different seeds validate on
    the same inputs.

    Args:
        name: name of the data set, as in `data=…`; used in messages.
        input_shape: shape of one input after preprocessing; the network is built for this shape.
        num_classes: number of outputs of the network: classes, labels K, or values D.
        batch_size: inputs per training step, summed over all devices (default 64).
        eval_batch_size: maximum number of inputs per evaluation batch and device (default 256).
        val_size: number of validation inputs taken from the training inputs, or their fraction if below 1
            (default 0.1). 0 trains on all inputs, without validation.
        split_seed: seed of the split into training and validation inputs (default 0).
        folds: number of folds for cross-validation, stratified by class; replaces `val_size` (default null:
            no folds).
        fold: index of the validation fold, 0 to `folds` - 1 (default 0).
        target_type: kind of targets (default null: `TARGET_TYPE` of the class).
        sampler: `balanced` draws inputs with replacement, all classes equally often (see `BalancedOrder`);
            null shuffles them (default null).
        seed: seed of the run; with the epoch, determines batch order and augmentation (default 0).

    Raises:
        InputError: an argument is out of its range; in `setup`, the inputs or targets do not fit
            `input_shape`, `num_classes` or `target_type`.
    """

    TARGET_TYPE: ClassVar[TargetType] = "class"
    """Kind of targets: `class`, `multilabel` or `real`."""
    INPUT_NDIM: ClassVar[int | None] = None
    """Length of `input_shape`: 3 for images, 1 for vectors; None for any."""

    DATASET_FACTS: ClassVar[dict[str, Any] | None] = None
    """Literal facts that checks read from the source before a run, without importing torch: the number of
    training `images`, or the argument that gives it; the `shape`; the number of `classes`; the arguments that
    hold the `download` folder or the `class_folders`. None: unknown.
    """

    CASES: ClassVar[str] = "images"
    """Word for inputs in log lines."""

    allow_changed_images = False  # True lets a run resume with images that were added, removed or renamed
    batches_on_device = supports_batched_hooks = True  # loaders make batches on the device

    def __init__(
        self,
        *,
        name: str,
        input_shape: Annotated[Sequence[int], Range(1)],
        num_classes: Annotated[int, Range(1)],
        batch_size: Annotated[int, Range(1)] = 64,
        eval_batch_size: Annotated[int, Range(1)] = 256,
        val_size: Annotated[float, Range(0, below=1)] | Annotated[int, Range(0)] = 0.1,
        split_seed: Annotated[int, Range(0, 2**63 - 1)] = 0,
        folds: Annotated[int, Range(2)] | None = None,
        fold: Annotated[int, Range(0)] = 0,
        target_type: Literal["class", "multilabel", "real"] | None = None,
        sampler: Literal["balanced"] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_arguments("data", SupervisedDataModule, locals())
        if folds is not None and fold >= folds:
            raise InputError(f"data.fold={fold}: must be 0 to {folds - 1}, with data.folds={folds}")
        self.name = name
        self.input_shape = tuple(input_shape)
        self.num_classes = num_classes
        self.target_type: TargetType = target_type or self.TARGET_TYPE
        if self.target_type == "class" and num_classes < 2:
            raise InputError(
                f"data.num_classes={num_classes}: too few for classification (expected at least 2, got "
                f"{num_classes}); set data.num_classes"
            )
        if sampler is not None and self.target_type != "class":
            raise InputError(
                f"data.sampler={sampler}: balances classes (expected one class per input, got "
                f"{self.target_type} targets); set data.sampler=null"
            )
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_size = val_size
        self.split_seed = split_seed
        self.folds = folds
        self.fold = fold
        self.sampler = sampler
        self.seed = seed
        self.mean: list[float] | None = None
        self.std: list[float] | None = None
        self._given_mean = self._given_std = False
        self._resume_at: tuple[int, int] | None = None
        self._subsets: dict[str, Subset] = {}

    @abstractmethod
    def load_inputs(self, split: Split) -> Images | None:
        """Return the checked inputs and targets of a split.

        Returns None for `val` if validation inputs are to be taken from the training inputs.
        """

    @abstractmethod
    def _measure_inputs(self) -> None:
        """Compute mean and std of the training inputs, unless they are configured."""

    @property
    def class_names(self) -> list[str]:
        """Class names in the order of the labels."""
        return [str(label) for label in range(self.num_classes)]

    @property
    def source(self) -> str:
        """Configuration key and value that select the images, for messages."""
        return f"data={self.name}"

    @property
    def has_validation(self) -> bool:
        """True if there are validation images."""
        return self.folds is not None or self.val_size > 0

    @property
    def memory_summary(self) -> str:
        """Memory that the loaded splits take, in MB, memory-mapped and in RAM."""
        distinct = {id(images): images for images, _ in self._subsets.values()}.values()
        mapped = sum(images.nbytes for images in distinct if images.is_mapped)
        read = sum(images.nbytes for images in distinct if not images.is_mapped)
        sizes = [
            f"{size / 1e6:,.1f} MB {kind}" for size, kind in ((mapped, "mapped"), (read, "in memory")) if size
        ]
        return ", ".join(sizes) or "streamed from files"

    def subset(self, split: Split) -> Subset:
        """Return the images of a loaded split, and its rows in evaluation order."""
        return self._subsets[split]

    def count(self, split: Split) -> int:
        """Return the number of images in a split; 0 if it is empty or not loaded."""
        return len(self._subsets[split].rows) if split in self._subsets else 0

    def targets(self, split: Split) -> Tensor:
        """Return the targets of a loaded split in evaluation order, on the CPU: (N,) or (N, K)."""
        images, rows = self._subsets[split]
        return images.labels.cpu()[rows]

    def files(self, split: Split) -> list[str] | None:
        """Return the image file of each row of a split, in evaluation order; None if images have no files."""
        return None

    def setup(self, stage: str) -> None:
        """Load the splits of a stage; `fit` also loads the test split, whose errors come before training."""
        has_test = stage == "test" or (stage == "fit" and self.trainer is not None)
        wanted: list[tuple[Split, bool]] = [("train", stage != "test"), ("test", has_test)]
        errors: list[DataError] = []
        for split, is_wanted in wanted:
            try:
                if is_wanted and split not in self._subsets:
                    self._set_up(split)
            except DataError as error:
                errors.append(error)
        if errors:
            raise join_errors(errors)
        if self.mean is None or self.std is None:
            self._measure_inputs()
        if stage == "fit":
            log.info("%8s  %s", self.CASES, self.memory_summary)
            self._report_imbalance()
            self._report_test_copies()

    def train_dataloader(self) -> ImageLoader:
        subset = self._subsets["train"]
        rank, world_size, _ = self._rank_and_device()
        options: dict[str, Any] = {
            "seed": self.seed,
            "rank": rank,
            "world_size": world_size,
            "repeat_first": self.trainer is not None and self.trainer.overfit_batches > 0,  # type: ignore[attr-defined]
        }
        if self.sampler == "balanced":
            order: TrainingOrder = BalancedOrder(self.targets("train"), self.batch_size, **options)
        else:
            order = TrainingOrder(len(subset.rows), self.batch_size, **options)
        if self._resume_at is not None:
            order.resume_at(*self._resume_at)
            self._resume_at = None
        return self._loader(subset, order, augment=True)

    def training_batch(self, epoch: int, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Return a training batch of this rank, images (B, C, H, W) and targets, as an epoch yields it."""
        self._resume_at = (epoch, batch_idx)
        return next(iter(self.train_dataloader()))

    def val_dataloader(self) -> ImageLoader | list[ImageLoader]:
        return self.evaluation_loader("val") if "val" in self._subsets else []

    def test_dataloader(self) -> ImageLoader:
        return self.evaluation_loader("test")

    def evaluation_loader(self, split: Split) -> ImageLoader:
        """Return a loader that yields every image of a split once, in order and without augmentation."""
        subset = self._subsets[split]
        rank, world_size, _ = self._rank_and_device()
        order = EvaluationOrder(len(subset.rows), self.eval_batch_size, rank=rank, world_size=world_size)
        return self._loader(subset, order, augment=False)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # loaders make it on the device

    def state_dict(self) -> dict[str, Any]:
        """Return class names, channel statistics, the digest of the images, and the position in the epoch."""
        state: dict[str, Any] = {"mean": self.mean, "std": self.std, "class_names": self.class_names}
        if "train" in self._subsets:
            state["images"] = self._digest
        if self.trainer is not None and self.trainer.state.fn == "fit":
            progress = self.trainer.fit_loop.epoch_loop.batch_progress
            if not progress.is_last_batch:
                state |= {"epoch": self.trainer.current_epoch, "batches_done": progress.current.ready}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore channel statistics and the position within the epoch.

        Raises:
            InputError: classes or images differ from those of the checkpoint.
        """
        if trained := state_dict.get("class_names"):
            remedy = "restore the class names, or start a new run"
            check_classes(trained, self.class_names, self.source, remedy)
        known = state_dict.get("images")
        if known and "train" in self._subsets and not self.allow_changed_images and known != self._digest:
            raise InputError(
                f"{self.source}: images were added, removed or renamed since the run began, so validation or "
                "test images may become training images; restore the files, start a new run, or set "
                "resume_force=true"
            )
        self.mean = self.mean if self._given_mean else state_dict["mean"]
        self.std = self.std if self._given_std else state_dict["std"]
        if self.trainer is not None and self.trainer.state.fn == "fit" and "batches_done" in state_dict:
            self._resume_at = (state_dict["epoch"], state_dict["batches_done"])

    @cached_property
    def _digest(self) -> str:
        """Digest that identifies the training and validation images."""
        splits: list[Split] = [split for split in ("train", "val") if split in self._subsets]
        labels = [self._subsets[split].images.labels.cpu()[self._subsets[split].rows] for split in splits]
        return digest_splits(labels, [self.files(split) or [] for split in splits])

    def _set_up(self, split: Split) -> None:
        """Load a split into `_subsets`; `train` also adds `val`."""
        val = self.load_inputs("val") if split == "train" else None
        if val is not None and self.folds is not None:
            raise InputError(
                f"data.folds={self.folds}: data={self.name} has its own validation split; set "
                "data.folds=null, or move them to the training images"
            )
        if (images := self.load_inputs(split)) is None:
            raise InputError(f"data: {self._title(split)} are missing; {LOAD_SPLIT_REMEDY}")
        if split == "test":
            self._subsets["test"] = Subset.of(images)
        elif val is not None:
            self._subsets |= {"train": Subset.of(images), "val": Subset.of(val)}
        else:
            parts = split_validation(
                self.strata(images.labels), self.val_size, self.folds, self.fold, self.split_seed
            )
            rows, val_rows = parts
            self._subsets["train"] = Subset(images, rows)
            if len(val_rows):
                self._subsets["val"] = Subset(images, val_rows)

    def strata(self, targets: Tensor) -> Tensor:
        """Return the classes (N,) by which splits are stratified; zeros for other targets than classes."""
        is_class = self.target_type == "class"
        return targets if is_class else torch.zeros(len(targets), dtype=torch.long)

    def _report_imbalance(self) -> None:
        """Log a line if the largest class has more than `MAX_IMBALANCE` times the inputs of the smallest."""
        if self.target_type != "class":
            return
        counts = self.targets("train").bincount(minlength=self.num_classes)
        largest, smallest = int(counts.argmax()), int(counts.argmin())
        most, least = int(counts[largest]), int(counts[smallest])
        is_handled = self.sampler == "balanced"
        if most > MAX_IMBALANCE * least and not is_handled:
            log.info(
                "  classes  imbalanced: %s training %s of %s, %s of %s; loss.class_weights=balanced or "
                "data.sampler=balanced give all classes equal weight",
                f"{most:,}",
                self.CASES,
                self.class_names[largest],
                f"{least:,}",
                self.class_names[smallest],
            )

    def _report_test_copies(self) -> None:
        """Log a line if test images are also training images, pixel by pixel.

        Only images in memory are compared: streamed images are not read for it.
        """
        if "test" not in self._subsets or self._rank_and_device()[0]:
            return
        (images, rows), (test, test_rows) = self._subsets["train"], self._subsets["test"]
        if not isinstance(images, MemoryImages) or not isinstance(test, MemoryImages):
            return
        if images.images.dtype != torch.uint8 or images.images.device.type != "cpu":
            return
        pixels, test_pixels = (part.to_rows(part.images).numpy() for part in (images, test))
        if copies := find_copies(pixels, test_pixels, rows.numpy()):
            log.info(
                "   copies  %s of %s test images are also training images, such as %s (training: %s); %s",
                f"{len(copies):,}",
                f"{len(test_rows):,}",
                self._image_name("test", copies[0][1]),
                self._image_name("train", copies[0][0]),
                as_called("python scripts/data.py lists them"),
            )

    def _image_name(self, split: Split, position: int) -> str:
        """Return the file of an image, or its number in the split."""
        files = self.files(split)
        return printable(files[position]) if files else f"image {position}"

    def _title(self, split: Split) -> str:
        return f"the {split} images of data={self.name}"

    def _rank_and_device(self) -> tuple[int, int, torch.device]:
        """Return rank, world size and device of this process; rank 0 of 1 on the CPU without a trainer."""
        if self.trainer is None:
            return 0, 1, torch.device("cpu")
        strategy = self.trainer.strategy
        return self.trainer.global_rank, self.trainer.world_size, strategy.root_device

    def _loader(self, subset: Subset, order: Order, *, augment: bool) -> ImageLoader:
        assert self.mean is not None
        assert self.std is not None
        rank, _, device = self._rank_and_device()
        return ImageLoader(
            subset.images,
            subset.rows,
            order,
            mean=self.mean,
            std=self.std,
            device=device,
            augmentation=self._augmentation if augment else None,
            seed=self.seed,
            rank=rank,
        )

    @property
    def _augmentation(self) -> Augmentation | None:
        return None
