"""Nearest training images of an image, in the feature space of the network."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from project.inference.evaluate.forward import set_up_split
from project.inference.explain.explainer import Explainer

BATCH_SIZE = 256


class Neighbors(NamedTuple):
    """The k nearest training images of N images, the nearest first.

    Args:
        positions: (N, k) positions in the training split, in evaluation order.
        similarities: (N, k) cosine similarities of the features, in [-1, 1].
        labels: (N, k) classes.
        pixels: (N, k, C, H, W) uint8.
        files: image file of each training image, if images have files.
        num_searched: number of training images that were searched.
    """

    positions: Tensor
    similarities: Tensor
    labels: Tensor
    pixels: Tensor
    files: list[str] | None
    num_searched: int


def find_neighbors(
    explainer: Explainer,
    images: Tensor,
    count: int,
    max_images: int | None = None,
    own: Tensor | None = None,
) -> Neighbors:
    """Find the training images whose penultimate features have the largest cosine similarity.

    Args:
        explainer: the network and its data.
        images: (N, C, H, W) uint8.
        count: number k of neighbors, at most the number of training images.
        max_images: number of training images to search, evenly spaced [all].
        own: (N,) positions of the images in the training split, which are not neighbors of themselves.

    Raises:
        InputError: the training images cannot be read.
    """
    data = explainer.trained.datamodule
    data.prepare_data()
    set_up_split(data, "train")
    total = data.count("train")
    searched = torch.linspace(0, total - 1, min(max_images or total, total)).long()
    wanted = F.normalize(explainer.features(images), dim=1)
    best = torch.full((len(images), 0), 0.0)
    places = torch.zeros(len(images), 0, dtype=torch.long)
    for part in searched.split(BATCH_SIZE):
        features = F.normalize(explainer.features(data.pixels("train", part)), dim=1)
        similar = wanted @ features.T  # N, b
        if own is not None:
            similar[own[:, None] == part] = -torch.inf
        similar = torch.cat([best, similar], dim=1)
        best, order = similar.topk(min(count, similar.shape[1]), dim=1)
        places = torch.cat([places, part.expand(len(images), -1)], dim=1).gather(1, order)
    pixels = data.pixels("train", places.flatten()).unflatten(0, places.shape)
    return Neighbors(places, best, data.targets("train")[places], pixels, data.files("train"), len(searched))
