"""Data modules of images with a class index per pixel: a folder of images and masks, and digits on a canvas.

These are plain LightningDataModules. Batches come from torch's `DataLoader`, so a run resumes within an epoch
by reading the trained batches again.
"""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from project.datamodules.digits import Digits
from project.datamodules.splits import split_size
from project.datamodules.storage.preprocessing import channel_statistics, per_channel
from project.errors import DataError, InputError
from project.runtime.bounds import Range, check_arguments
from project.runtime.seeding import generator

Split = Literal["train", "val", "test"]
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
"""Lossless formats of masks."""


class MaskedImages(Dataset[tuple[Tensor, Tensor]]):
    """Normalized images (C, H, W) and masks (H, W) of one split, with a transform of both together.

    Args:
        images: (N, C, H, W) uint8.
        masks: (N, H, W) uint8.
        rows: row numbers of the split.
        normalize: transform of an image.
        transform: transform of a pair of `tv_tensors` [none].
    """

    def __init__(
        self, images: Tensor, masks: Tensor, rows: Sequence[int], normalize: Any, transform: Any = None
    ) -> None:
        self.images, self.masks, self.rows = images, masks, rows
        self.normalize, self.transform = normalize, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self.rows[index]
        image, mask = tv_tensors.Image(self.images[row]), tv_tensors.Mask(self.masks[row])
        if self.transform is not None:
            image, mask = self.transform(image, mask)
        return self.normalize(image).as_subclass(Tensor), mask.as_subclass(Tensor).long()


class MaskDataModule(L.LightningDataModule):
    """Base class of data modules of images and masks, which are held in memory.

    A subclass implements `load`. Validation and test images are random samples that depend on `split_seed`.

    Args:
        input_shape: (C, H, W) of an image; the network is built for this shape.
        num_classes: number of classes.
        batch_size: images per training step and device (default 16).
        eval_batch_size: maximum number of images per evaluation batch and device (default 32).
        val_size: number of validation images, or their fraction of all images if below 1 (default 0.1).
        test_size: number of test images, or their fraction of all images if below 1 (default 0.2).
        split_seed: seed of the splits (default 0).
        ignore_index: class index of pixels without a label (default 255).
        flip_prob: probability of a horizontal flip of training images (default 0).
        crop_scale: smallest area of a random crop, as a fraction of the image; crops are scaled to the
            original size; 1: no crop (default 1).
        num_workers: processes that augment images; 0: none (default 0).

    Raises:
        InputError: an argument is out of its range; in `setup`, images and masks do not fit `input_shape` or
            `num_classes`.
    """

    def __init__(
        self,
        *,
        input_shape: Annotated[Sequence[int], Range(1)],
        num_classes: Annotated[int, Range(2, 256)],
        batch_size: Annotated[int, Range(1)] = 16,
        eval_batch_size: Annotated[int, Range(1)] = 32,
        val_size: Annotated[float, Range(0, below=1)] | Annotated[int, Range(0)] = 0.1,
        test_size: Annotated[float, Range(0, below=1)] | Annotated[int, Range(0)] = 0.2,
        split_seed: Annotated[int, Range(0, 2**63 - 1)] = 0,
        ignore_index: Annotated[int, Range(0, 255)] = 255,
        flip_prob: Annotated[float, Range(0, 1)] = 0.0,
        crop_scale: Annotated[float, Range(above=0, high=1)] = 1.0,
        num_workers: Annotated[int, Range(0)] = 0,
    ) -> None:
        super().__init__()
        check_arguments("data", MaskDataModule, locals())
        self.input_shape = tuple(input_shape)
        self.num_classes = num_classes
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_size, self.test_size, self.split_seed = val_size, test_size, split_seed
        self.ignore_index = ignore_index
        self.flip_prob, self.crop_scale = flip_prob, crop_scale
        self.num_workers = num_workers
        self.mean: list[float] | None = per_channel("mean", None, input_shape[0])
        self.std: list[float] | None = self.mean
        self.splits: dict[str, MaskedImages] = {}

    @abstractmethod
    def load(self) -> tuple[Tensor, Tensor]:
        """Return images (N, C, H, W) and masks (N, H, W), both uint8."""

    def mask_name(self, index: int) -> str:
        """Return the name of a mask for messages."""
        return f"mask {index}"

    def setup(self, stage: str) -> None:
        """Load, check and split the images, and measure mean and std of the training images."""
        if self.splits:
            return
        images, masks = self.load()
        self._check(images, masks)
        count = len(images)
        sizes = {"val": split_size(self.val_size, count), "test": split_size(self.test_size, count)}
        if min(sizes.values()) < 0 or sum(sizes.values()) >= count:
            raise InputError(
                f"data.val_size={self.val_size}, data.test_size={self.test_size}: leave no training images "
                f"of {count}; lower them"
            )
        shuffled = torch.randperm(count, generator=generator(self.split_seed)).tolist()
        rows = {
            "val": shuffled[: sizes["val"]],
            "test": shuffled[sizes["val"] : sum(sizes.values())],
            "train": shuffled[sum(sizes.values()) :],
        }
        measured = [channel_statistics(channel) for channel in images[rows["train"]].unbind(1)]
        self.mean = [mean for mean, _ in measured]
        self.std = [max(std, 1e-3) for _, std in measured]
        normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)])
        for split, chosen in rows.items():
            transform = self._augmentation() if split == "train" else None
            self.splits[split] = MaskedImages(images, masks, chosen, normalize, transform)

    def _augmentation(self) -> Any:
        steps: list[Any] = []
        if self.crop_scale < 1:
            steps.append(
                v2.RandomResizedCrop(self.input_shape[1:], scale=(self.crop_scale, 1.0), antialias=True)
            )
        if self.flip_prob:
            steps.append(v2.RandomHorizontalFlip(self.flip_prob))
        return v2.Compose(steps) if steps else None

    def _check(self, images: Tensor, masks: Tensor) -> None:
        if tuple(images.shape[1:]) != self.input_shape:
            raise InputError(
                f"data.input_shape={list(self.input_shape)}: the images have shape {list(images.shape[1:])}; "
                "set data.resize, or data.input_shape to that"
            )
        labels = masks.masked_fill(masks == self.ignore_index, 0).flatten(1).amax(1)
        wrong = torch.nonzero(labels >= self.num_classes).flatten()
        if len(wrong):
            first = int(wrong[0])
            raise DataError(
                f"data.num_classes={self.num_classes}: {self.mask_name(first)} has class index "
                f"{int(labels[first])} (expected 0 to {self.num_classes - 1}, or {self.ignore_index} for "
                f"pixels without a label; {len(wrong)} of {len(masks)} masks are wrong); raise "
                "data.num_classes, or correct the masks"
            )

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        return self._loader("val", self.eval_batch_size) if len(self.splits["val"]) else []

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        return self._loader("test", self.eval_batch_size) if len(self.splits["test"]) else []

    def _loader(self, split: Split, batch_size: int, *, shuffle: bool = False) -> DataLoader[Any]:
        workers = self.num_workers if split == "train" else 0
        return DataLoader(
            self.splits[split],
            batch_size,
            shuffle=shuffle,
            num_workers=workers,
            persistent_workers=workers > 0,
        )


class ImageMasks(MaskDataModule):
    """Images in `path/images` and their masks in `path/masks`, matched by file name without suffix.

    Pixels of a mask are class indices, in a grayscale or palette image. All images are held in memory.

    Args:
        path: folder that contains both folders.
        input_shape: see `MaskDataModule`.
        num_classes: see `MaskDataModule`.
        resize: side or (H, W) to which images and masks are scaled (default null: no scaling).
        base: other arguments of `MaskDataModule`.

    Raises:
        InputError: folders, images or masks are missing, or sizes differ.
    """

    def __init__(
        self,
        *,
        path: str,
        input_shape: Annotated[Sequence[int], Range(1)],
        num_classes: Annotated[int, Range(2, 256)],
        resize: int | Sequence[int] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(input_shape=input_shape, num_classes=num_classes, **base)
        self.path = Path(path)
        self.resize = resize
        self.names: list[str] = []

    def mask_name(self, index: int) -> str:
        return f"mask {self.names[index]}"

    def load(self) -> tuple[Tensor, Tensor]:
        """Decode all images and masks."""
        pairs = self._pairs()
        self.names = [mask.name for _, mask in pairs]
        mode = "L" if self.input_shape[0] == 1 else "RGB"
        images, masks = [], []
        for image_file, mask_file in pairs:
            image, mask = _read(image_file, mode), _read(mask_file, None)
            if image.shape[:2] != mask.shape:
                raise DataError(
                    f"data.path={self.path}: {mask_file.name} does not fit its image (expected "
                    f"{image.shape[0]}×{image.shape[1]} class indices, got an array of {mask.shape}); save "
                    "masks as grayscale or palette images of the same size"
                )
            pixels = torch.from_numpy(image).view(*image.shape[:2], -1).permute(2, 0, 1)  # C, H, W
            indices = torch.from_numpy(mask)
            if self.resize is not None:
                size = [*self.input_shape[1:]]
                resize = v2.Resize(size, antialias=True)
                pixels, indices = resize(tv_tensors.Image(pixels), tv_tensors.Mask(indices))
            images.append(pixels.as_subclass(Tensor))
            masks.append(indices.as_subclass(Tensor))
        shapes = {tuple(image.shape[1:]) for image in images}
        if len(shapes) > 1:
            raise InputError(
                f"data.resize=null: images of {len(shapes)} sizes, such as {sorted(shapes)[:2]}; set "
                "data.resize, e.g. data.resize=128"
            )
        return torch.stack(images), torch.stack(masks)

    def _pairs(self) -> list[tuple[Path, Path]]:
        folders = (self.path / "images", self.path / "masks")
        for folder in folders:
            if not folder.is_dir():
                raise InputError(f"data.path={self.path}: no folder {folder.name}; expected images and masks")
        masks = {file.stem: file for file in folders[1].iterdir() if file.suffix.lower() in MASK_SUFFIXES}
        images = sorted(file for file in folders[0].iterdir() if file.is_file() and file.name[0] != ".")
        missing = [file.name for file in images if file.stem not in masks]
        if missing or not images:
            what = f"{missing[0]} has no mask" if missing else "no images"
            more = f" ({len(missing)} of {len(images)} images)" if missing else ""
            raise InputError(
                f"data.path={self.path}: {what}{more}; expected masks/NAME.png for each images/NAME.jpg"
            )
        return [(file, masks[file.stem]) for file in images]


def _read(file: Path, mode: str | None) -> Any:
    """Return an image file as uint8 array (H, W) or (H, W, 3); for mode None, the palette indices."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return np.array(image if mode is None else image.convert(mode), dtype=np.uint8)
    except (OSError, ValueError) as error:
        raise DataError(f"data.path: {file} cannot be read ({error}); replace or remove it") from error


class DigitMasks(MaskDataModule):
    """Digits of the packaged data set `Digits` on a canvas, with the digit of each pixel as its class.

    Class 0 is the background, class d + 1 the digit d. Each canvas has one to four digits, one per quadrant.
    Training, validation and test canvases may contain the same digit image.

    Args:
        input_shape: (1, H, W) with sides of at least 56 pixels (default [1, 64, 64]).
        num_classes: 11.
        count: number of canvases (default 1000).
        data_seed: seed of digits and positions (default 0).
        base: other arguments of `MaskDataModule`.
    """

    DATASET_FACTS: ClassVar = {"images": None, "shape": None, "classes": 11}

    def __init__(
        self,
        *,
        input_shape: Sequence[int] = (1, 64, 64),
        num_classes: int = 11,
        count: Annotated[int, Range(10)] = 1000,
        data_seed: Annotated[int, Range(0, 2**63 - 1)] = 0,
        **base: Any,
    ) -> None:
        super().__init__(input_shape=input_shape, num_classes=num_classes, **base)
        if input_shape[0] != 1 or min(input_shape[1:]) < 56:
            raise InputError(
                f"data.input_shape={list(input_shape)}: expected [1,H,W] with sides of at least 56"
            )
        self.count = count
        self.data_seed = data_seed

    def load(self) -> tuple[Tensor, Tensor]:
        """Draw the canvases."""
        loaded = Digits(val_size=0).load_split("train")
        assert loaded is not None
        digits, labels = loaded
        side, (_, height, width) = digits.shape[-1], self.input_shape
        images = torch.zeros(self.count, 1, height, width, dtype=torch.uint8)
        masks = torch.zeros(self.count, height, width, dtype=torch.uint8)
        draws = generator(self.data_seed, 1)
        num_digits = torch.randint(1, 5, (self.count,), generator=draws).tolist()
        for canvas in range(self.count):
            for quadrant in torch.randperm(4, generator=draws)[: num_digits[canvas]].tolist():
                row = int(torch.randint(len(digits), (), generator=draws))
                top, left = (
                    half * (length // 2) + int(torch.randint(length // 2 - side + 1, (), generator=draws))
                    for half, length in ((quadrant // 2, height), (quadrant % 2, width))
                )
                place = (canvas, slice(top, top + side), slice(left, left + side))
                images[place[0], 0, place[1], place[2]] = digits[row, 0]
                masks[place] = torch.where(digits[row, 0] > 127, labels[row] + 1, 0).to(torch.uint8)
        return images, masks
