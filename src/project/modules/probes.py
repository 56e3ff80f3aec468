"""Classifiers that measure the quality of frozen features: k nearest neighbors and a linear one."""

import torch
from torch import Tensor
from torch.nn import functional as F


def knn_predictions(bank: Tensor, labels: Tensor, queries: Tensor, num_classes: int, k: int = 20) -> Tensor:
    """Return the class (M,) with the most votes among the k nearest neighbors by cosine similarity.

    Each neighbor has one vote; a tie goes to the class of the smallest index.

    Args:
        bank: features (N, D).
        labels: classes (N,) of the bank, long.
        queries: features (M, D).
        num_classes: number of classes.
        k: number of neighbors, at most N are used.
    """
    directions = F.normalize(bank, dim=1)
    predictions = []
    for part in F.normalize(queries, dim=1).split(1024):  # bounds the memory for the similarities
        neighbors = (part @ directions.T).topk(min(k, len(bank)), dim=1).indices  # m, k
        votes = F.one_hot(labels[neighbors], num_classes).sum(1)  # m, num_classes
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


def linear_predictions(
    bank: Tensor, labels: Tensor, queries: Tensor, num_classes: int, l2: float = 1e-3, max_iter: int = 200
) -> Tensor:
    """Return the classes (M,) that multinomial logistic regression predicts.

    Features are standardized by the bank. The objective is the mean cross-entropy plus `l2` / 2 times the
    squared norm of the weights, without the biases, minimized by L-BFGS.

    Args:
        bank: features (N, D).
        labels: classes (N,) of the bank, long.
        queries: features (M, D).
        num_classes: number of classes.
        l2: weight of the penalty.
        max_iter: maximum number of iterations.
    """
    with torch.inference_mode(False), torch.enable_grad():  # evaluation loops disable gradients
        return _fit_and_predict(bank.clone(), labels.clone(), queries.clone(), num_classes, l2, max_iter)


def _fit_and_predict(
    bank: Tensor, labels: Tensor, queries: Tensor, num_classes: int, l2: float, max_iter: int
) -> Tensor:
    mean, std = bank.mean(0), bank.std(0).clamp(min=1e-6)
    inputs = (bank - mean) / std
    weight = torch.zeros(num_classes, bank.shape[1], device=bank.device, dtype=bank.dtype, requires_grad=True)
    bias = torch.zeros(num_classes, device=bank.device, dtype=bank.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=max_iter, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(inputs, weight, bias), labels) + 0.5 * l2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return F.linear((queries - mean) / std, weight, bias).detach().argmax(1)
