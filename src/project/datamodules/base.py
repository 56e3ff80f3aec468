"""What all data sets share: splits, statistics, preprocessing, checks and loaders."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import lightning as L
import torch
from torch import Tensor

from project.datamodules.loading.augmentation import Augmentation
from project.datamodules.loading.batch_order import EvaluationOrder, TrainingOrder
from project.datamodules.loading.file_images import join_damage
from project.datamodules.loading.images import (
    Images,
    MemoryImages,
    cut_validation,
    memory_of,
)
from project.datamodules.loading.loader import ImageLoader
from project.datamodules.storage.image_cache import PreparedFolder
from project.datamodules.storage.preprocessing import channel_statistics, preprocess
from project.datamodules.storage.validation import (
    check_classes,
    check_images,
    class_indices,
    digest_of,
    eight_bit_images,
    per_channel,
)
from project.errors import DataError, InputError
from project.runtime.bounds import Range

log = logging.getLogger(__name__)

PREPROCESSING = 1
"""To be raised when scaling or graying gives other pixels: then kept images are made anew."""

Split = Literal["train", "val", "test"]


class Part(NamedTuple):
    """One split: rows of an image set."""

    images: Images
    rows: Tensor  # N', long


def _caught(read: Callable[[], None]) -> list[DataError]:
    try:
        read()
    except DataError as error:
        return [error]
    return []


class ImageDataModule(L.LightningDataModule):
    """Base of all data sets. A subclass says where the images come from: `read`, and `prepare_data` if
    they must be fetched.

    The test split is the official one where there is one. Validation images are cut from the training
    images, stratified, by a generator of its own: the same images whatever the run's seed.

    Args:
        name: as in `data=…`, for messages.
        input_shape: (C, H, W) of an image after preprocessing; what the network is built for.
        num_classes: number of classes.
        batch_size: images of one training step, over all devices together.
        eval_batch_size: most images of one evaluation batch, on each device.
        val_size: validation images cut from the training images: a number, or a fraction below 1. With
            0 all images train, and there is no validation.
        split_seed: of the generator that cuts.
        folds: for cross-validation, a number of parts into which the training images are cut, stratified;
            one of them validates, whatever `val_size`. Null cuts by `val_size`.
        fold: that part, 0 to `folds` - 1.
        mean: of each channel on the scale [0, 1]; null computes it from the training images.
        std: likewise.
        resize: side or (H, W) to which images are scaled beforehand; null keeps their size.
        grayscale: turn colour images into gray ones beforehand.
        channels_last: make batches in that memory order, at no cost: images are kept in it.
        prepared: folder where decoded images are kept for the next start (see `PreparedFolder`), or null.
        augment: changes training batches, or null.
        seed: of the run; with the epoch, decides order and augmentation.

    Raises:
        InputError: in `setup`, if the images do not fit `input_shape` or `num_classes`.
    """

    maps_files = False
    """Whether `read` gives images that are mapped from files."""
    may_have_changed = False
    """A run may go on although its images are not those that it began with."""

    def __init__(
        self,
        *,
        name: str,
        input_shape: Annotated[Sequence[int], Range(1)],
        num_classes: Annotated[int, Range(2)],
        batch_size: Annotated[int, Range(1)] = 64,
        eval_batch_size: Annotated[int, Range(1)] = 256,
        val_size: Annotated[float, Range(0, below=1)] | Annotated[int, Range(0)] = 0.1,
        split_seed: Annotated[int, Range(0, 2**63 - 1)] = 0,
        folds: Annotated[int, Range(2)] | None = None,
        fold: Annotated[int, Range(0)] = 0,
        mean: Annotated[Sequence[float], Range(0, 1)] | None = None,
        std: Annotated[Sequence[float], Range(above=0)] | None = None,
        resize: int | Sequence[int] | None = None,
        grayscale: bool | None = False,
        channels_last: bool = False,
        prepared: str | None = None,
        augment: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.name = name
        if len(input_shape) != 3:
            raise InputError(f"data.input_shape={list(input_shape)}: give [channels,height,width]")
        channels, height, width = input_shape
        self.input_shape = (channels, height, width)
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_size = val_size
        self.split_seed = split_seed
        self.folds = folds
        if folds is not None and not 0 <= fold < folds:
            raise InputError(f"data.fold={fold}: must be 0 to {folds - 1}, with data.folds={folds}")
        self.fold = fold
        self.mean = per_channel("mean", mean, channels)
        self.std = per_channel("std", std, channels)
        self.resize = resize
        self.grayscale = grayscale
        self.channels_last = channels_last
        self.prepared = PreparedFolder(Path(prepared) if prepared else None)
        self.augment = augment
        self.seed = seed
        self._given_mean, self._given_std = mean is not None, std is not None
        self._resume_at: tuple[int, int] | None = None
        self._images_digest: str | None = None
        self._parts: dict[str, Part] = {}

    @property
    def class_names(self) -> list[str]:
        """Name of each class, in the order of the labels."""
        return [str(label) for label in range(self.num_classes)]

    @property
    def source(self) -> str:
        """Where the images come from, as the key of the configuration that says so: for messages."""
        return f"data={self.name}"

    @property
    def validates(self) -> bool:
        """Whether there are validation images."""
        return self.folds is not None or self.val_size > 0

    @property
    def memory(self) -> str:
        """How much memory the images of the splits that are set up take, and of what kind."""
        return memory_of(images for images, _ in self._parts.values())

    def content(self, split: Split) -> Mapping[str, Any] | None:
        """Name all that the images of `read` depend on, where they are worth keeping; else None."""
        return None

    @abstractmethod
    def read(self, split: Split) -> Images | tuple[Tensor, Tensor] | None:
        """Return the images of a split.

        Returns:
            Images (N, C, H, W) uint8 and class indices (N,), or an `Images` that is preprocessed already.
            None for `val` if it is to be cut from `train`.
        """

    def setup(self, stage: str) -> None:
        """Read the splits that the stage needs; where a trainer trains, the test split too, for what is wrong
        with it must not be found when training is over.
        """
        errors: list[DataError] = []
        if stage != "test" and "train" not in self._parts:
            errors += _caught(self._set_up_training)
        if stage == "test" or (stage == "fit" and self.trainer is not None):
            errors += _caught(self._set_up_test)
        if errors:
            raise join_damage(errors)
        if self.mean is None or self.std is None:
            self._measure_channels()
        if stage == "fit":
            log.info("  images  %s", self.memory)

    def count(self, split: Split) -> int:
        """Images in a split; 0 if it is empty or not set up."""
        return len(self._parts[split].rows) if split in self._parts else 0

    def pixels(self, split: Split, places: Tensor) -> Tensor:
        """Images (n, C, H, W) uint8 of a split as they are before normalization, on the CPU.

        Args:
            split: one that is set up.
            places: (n,) in the order in which one device evaluates the split.
        """
        images, rows = self._parts[split]
        return images.sample(rows[places])

    def train_dataloader(self) -> ImageLoader:
        """Shuffled, augmented batches."""
        part = self._parts["train"]
        rank, world_size, _ = self._place()
        order = TrainingOrder(
            len(part.rows),
            self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            same=self.trainer is not None and self.trainer.overfit_batches > 0,  # type: ignore[attr-defined]
        )
        if self._resume_at is not None:
            order.resume_at(*self._resume_at)
            self._resume_at = None
        return self._loader(part, order, self.augment)

    def val_dataloader(self) -> ImageLoader | list[ImageLoader]:
        """Every validation image once; no loader at all without validation images."""
        return self.evaluation_loader("val") if "val" in self._parts else []

    def test_dataloader(self) -> ImageLoader:
        """Every test image once."""
        return self.evaluation_loader("test")

    batches_on_device = visits_chunks = True
    """Loaders make batches where they are wanted: nothing need see each of them for that."""

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Do nothing: batches are made on the device."""
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the classes, the channels' statistics, and how far the present epoch is."""
        state: dict[str, Any] = {"mean": self.mean, "std": self.std, "class_names": self.class_names}
        if "train" in self._parts:
            state["images"] = self._which_images()
        if self.trainer is not None and self.trainer.state.fn == "fit":
            progress = self.trainer.fit_loop.epoch_loop.batch_progress
            if not progress.is_last_batch:
                state |= {"epoch": self.trainer.current_epoch, "batches_done": progress.current.ready}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the epoch was left, with the statistics that the weights were trained with.

        Raises:
            InputError: the classes are others by now, or the images of training and validation are.
        """
        if learnt := state_dict.get("class_names"):
            remedy = "give the classes the names that they had, or train anew"
            check_classes(learnt, self.class_names, self.source, remedy)
        known = state_dict.get("images")
        if known and "train" in self._parts and not self.may_have_changed and known != self._which_images():
            raise InputError(
                f"{self.source}: images were added, removed or renamed since the run began, and those of its "
                "validation and test may be trained on; restore them, start a new run, or say "
                "resume_force=true"
            )
        self.mean = self.mean if self._given_mean else state_dict["mean"]
        self.std = self.std if self._given_std else state_dict["std"]
        if self.trainer is not None and self.trainer.state.fn == "fit" and "batches_done" in state_dict:
            self._resume_at = (state_dict["epoch"], state_dict["batches_done"])

    def _which_images(self) -> str:
        """A digest of which images are trained on and validated."""
        if self._images_digest is None:
            splits: list[Split] = [split for split in ("train", "val") if split in self._parts]
            labels = [self._parts[split].images.labels.cpu()[self._parts[split].rows] for split in splits]
            self._images_digest = digest_of(labels, [self.files(split) or [] for split in splits])
        return self._images_digest

    def _set_up_training(self) -> None:
        val = self._load("val")
        if val is not None and self.folds is not None:
            raise InputError(
                f"data.folds={self.folds}: data={self.name} has validation images of its own; set "
                "data.folds=null, or move them to the training images"
            )
        train = self._required("train")
        if val is not None:
            self._parts["train"] = self._whole(train)
            self._parts["val"] = self._whole(val)
            return
        kept, taken = cut_validation(train.labels, self.val_size, self.folds, self.fold, self.split_seed)
        self._parts["train"] = Part(train, kept)
        if len(taken):
            self._parts["val"] = Part(train, taken)

    def _set_up_test(self) -> None:
        if "test" not in self._parts:
            self._parts["test"] = self._whole(self._required("test"))

    def _load(self, split: Split) -> Images | None:
        """Read, preprocess and check a split."""
        if (found := self._kept(split) or self._read(split)) is None:
            return None
        self._check(found, split)
        return found

    def _read(self, split: Split) -> Images | None:
        """Read and preprocess a split."""
        found = self.read(split)
        what = self._what(split)
        if not isinstance(found, tuple):
            if found is not None and not hasattr(found, "labels"):
                raise InputError(f"data: {what} have no labels; have read return images and labels")
            return found
        if len(found) != 2:
            raise InputError(f"data: {what} are {len(found)} things; have read return images and labels")
        pixels = eight_bit_images(found[0], what)
        labels = class_indices(found[1], len(pixels), what)
        side = self.input_shape[1:] if self.resize is not None else None
        processed = preprocess(pixels, gray=bool(self.grayscale), side=side)
        mapped = self.maps_files and processed is pixels
        return MemoryImages(processed, labels, channels_last=self.channels_last, mapped=mapped)

    def _kept(self, split: Split) -> Images | None:
        """Get a split from the prepared files; None if its images are not kept."""
        content = self.content(split)
        if content is None:
            return None

        def make() -> tuple[Tensor, Tensor]:
            images = self._read(split)
            assert isinstance(images, MemoryImages)
            self._check(images, split)  # what does not fit must not be kept
            return images.images, images.labels

        sides = "x".join(map(str, self.input_shape))
        content = {**content, "preprocessing": PREPROCESSING, "shape": self.input_shape}
        return self.prepared.images(
            f"{self.name}-{split}-{sides}", content, make, channels_last=self.channels_last
        )

    def _check(self, images: Images, split: Split) -> None:
        check_images(images, self.input_shape, self.num_classes, self._what(split))

    def _what(self, split: Split) -> str:
        return f"the {split} images of data={self.name}"

    def _required(self, split: Split) -> Images:
        if (found := self._load(split)) is None:
            raise InputError(
                f"data: there are none of {self._what(split)}; have read return images and labels"
            )
        return found

    def _whole(self, images: Images) -> Part:
        return Part(images, torch.arange(len(images.labels)))

    def training_sample(self, size: int = 5000) -> Tensor:
        """Normalized training images (n, C, H, W) float32, at most `size`, spaced evenly, on the device.

        The same on all ranks: for weights that are computed from images.
        """
        assert self.mean is not None
        assert self.std is not None
        images, rows = self._parts["train"]
        spaced = torch.linspace(0, len(rows) - 1, min(size, len(rows))).long()
        pixels = images.sample(rows[spaced]).to(self._place()[2])
        mean, std = (torch.tensor(values, device=pixels.device) for values in (self.mean, self.std))
        return (pixels / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)

    def _measure_channels(self, sample: int = 10_000) -> None:
        """Compute the statistics that were not given, from training images (at most `sample` of them)."""
        if "train" not in self._parts:
            self._set_up_training()
        images, rows = self._parts["train"]
        spaced = torch.linspace(0, len(rows) - 1, min(sample, len(rows))).long()
        measured = [channel_statistics(channel) for channel in images.sample(rows[spaced]).unbind(1)]
        if self.mean is None:
            self.mean = [mean for mean, _ in measured]
        if self.std is None:
            self.std = [max(std, 1e-3) for _, std in measured]

    def _place(self) -> tuple[int, int, torch.device]:
        """Rank, number of ranks and device of this process; without a trainer, one CPU."""
        if self.trainer is None:
            return 0, 1, torch.device("cpu")
        strategy = self.trainer.strategy
        return self.trainer.global_rank, self.trainer.world_size, strategy.root_device

    def part(self, split: Split) -> Part:
        """The images of a split that is set up, and which of them are its own, in the order of evaluation."""
        return self._parts[split]

    def files(self, split: Split) -> list[str] | None:
        """Of each of the split's images the file that it is from, in the order of evaluation; None if they
        have none of their own.
        """
        return None

    def evaluation_loader(self, split: Split) -> ImageLoader:
        """Every image of a split once, unchanged, in order."""
        part = self._parts[split]
        rank, world_size, _ = self._place()
        order = EvaluationOrder(len(part.rows), self.eval_batch_size, rank=rank, world_size=world_size)
        return self._loader(part, order, None)

    def _loader(
        self, part: Part, order: TrainingOrder | EvaluationOrder, augmentation: Augmentation | None
    ) -> ImageLoader:
        assert self.mean is not None
        assert self.std is not None
        rank, _, device = self._place()
        return ImageLoader(
            part.images,
            part.rows,
            order,
            mean=self.mean,
            std=self.std,
            device=device,
            augmentation=augmentation,
            seed=self.seed,
            rank=rank,
        )
